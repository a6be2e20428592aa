"""An operator of one's own beside those that there are: what it may not be called, and that it goes again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random

from convbn.errors import UsageError
from convbn.fuse.algebra.affine import Affine
from convbn.fuse.fold import fold
from convbn.fuse.operators import registry
from convbn.fuse.operators.calls import Aten, OnnxCall
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Moves, Rule, onto_data
from convbn.fuse.refusal import Refusal
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.op import Op


@dataclass(frozen=True, slots=True)
class Same(Op):
    """What gives its input again."""


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    return onto_data(moves, node, affine, axis)


def read(call: OnnxCall) -> Op | None:
    return Same()


SAME = Operator(
    Same,
    Rule("same", Same, backward, through=True),
    onnx={"own::Same": read},
    aten=(Aten(("same_as_before",), None),),
)


@pytest.fixture
def registered() -> Iterator[None]:
    registry.register(SAME)
    yield
    registry.unregister(SAME)


def known() -> bool:
    return "batchnorm-through-same" in registry.known_names()


def test_it_is_known_until_it_goes() -> None:
    assert registry.rule_for(Same()) is None
    assert registry.evaluator_of(Same()) is None
    assert (known(), registry.passes_maps("own::Same")) == (False, False)
    registry.register(SAME)
    try:
        assert registry.rule_for(Same()) is SAME.rule
        assert registry.onnx_readers("own::Same") == (read,)
        assert registry.aten_rows("same_as_before") == SAME.aten
        assert SAME.aten[0] in registry.aten_rows()
        assert (known(), registry.passes_maps("own::Same")) == (True, True)
    finally:
        registry.unregister(SAME)
    assert registry.rule_for(Same()) is None
    assert registry.onnx_readers("own::Same") == registry.aten_rows("same_as_before") == ()
    assert (known(), registry.passes_maps("own::Same")) == (False, False)


@pytest.mark.usefixtures("registered")
def test_a_class_has_one_rule() -> None:
    with pytest.raises(UsageError, match="the operator Same has a rule already"):
        registry.register(Operator(Same, Rule("another", Same, backward)))
    with pytest.raises(UsageError, match="the operator Conv has a rule already"):
        registry.register(Operator(Conv, Rule("another", Conv, backward)))


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["same", "elementwise"])
def test_a_name_stands_for_one_rule(name: str) -> None:
    class Other(Op):
        """Another one."""

    with pytest.raises(UsageError, match=f"there is a rule 'batchnorm-through-{name}' already"):
        registry.register(Operator(Other, Rule(name, Other, backward, through=True)))
    assert registry.rule_for(Other()) is None


def test_one_without_a_rule_is_read_and_passes_nothing() -> None:
    plain = Operator(Same, onnx={"own::Same": read})
    registry.register(plain)
    try:
        assert registry.onnx_readers("own::Same") == (read,)
        assert not registry.passes_maps("own::Same")
    finally:
        registry.unregister(plain)


@pytest.mark.parametrize("there", [True, False])
def test_a_batchnorm_goes_past_it(there: bool) -> None:
    conv = helper.make_node("Conv", ["x", "w"], ["c"], name="conv")
    built = model([conv], {"x": [2, 4, 5, 5]}, [], {"w": random(4, 4, 1, 1), **batchnorm_parameters(4)})
    built.graph.node.append(helper.make_node("Same", ["c"], ["s"], name="same", domain="own"))
    built.graph.node.append(batchnorm("s", "y"))
    built.opset_import.append(helper.make_opsetid("own", 1))
    built.graph.output.append(helper.make_tensor_value_info("y", 1, None))
    if there:
        registry.register(SAME)
    try:
        left = operators(fold(built).model)
    finally:
        if there:
            registry.unregister(SAME)
    assert left == (["Conv", "Same"] if there else ["Conv", "Same", "BatchNormalization"])
