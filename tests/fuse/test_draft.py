"""One attempt to move a map: what it sets, takes back and refuses. Views are built by hand."""

from __future__ import annotations

import numpy as np
import pytest
from support.views import SHAPE, Graph, node_of, numbers, of

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.activation import Activation
from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.elementwise import Arithmetic, Elementwise
from convbn.fuse.operators.normalization import Normalization
from convbn.fuse.operators.reshape import Reshape
from convbn.fuse.plan.draft import Draft
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Value
from convbn.fuse.view.op import Op, Other

SCALE = Affine.scale_by(np.array([0.5, 2, 3, 4]))
SIGNS = Affine(np.array([1.0, -1, 1, -1]), np.array([1.0, 2, 3, 4]))
WHOLE = Affine(SCALE.scale, SIGNS.shift)
IDENTITY = Affine.scale_by(np.ones(4))
RELU = Activation("Relu")
NO = Refusal(Reason.BAD_STATISTICS, "for the test")


def touched(draft: Draft) -> list[tuple[str, int]]:
    return [(edit.node.name, edit.slot) for edit in draft.edits]


@pytest.fixture
def graph() -> Graph:
    return Graph()


# --- constants ---------------------------------------------------------------------------------------


def test_a_constant_is_the_one_that_was_set_last(graph: Graph) -> None:
    c = graph.conv("c", graph.x)
    draft, node = graph.draft(graph.bn(c)), node_of(c)
    before = draft.constant(node, 1)
    assert isinstance(before, Constant)
    assert draft.constant(node, 2) is None
    bias, weight = numbers(4), numbers(4, 4, 1, 1, fill=2)
    assert draft.set(node, 2, bias) is None
    assert draft.set(node, 1, numbers(4, 4, 1, 1, fill=3)) is None
    assert draft.set(node, 1, weight) is None
    assert (draft.constant(node, 1), draft.constant(node, 2)) == (weight, bias)
    assert touched(draft) == [("c", 2), ("c", 1)]
    assert [edit.constant for edit in draft.edits] == [bias, weight]
    assert draft.into == ("c",)


@pytest.mark.parametrize(("slot", "what"), [(0, "constant"), (1, "weight"), (2, "bias"), (3, "constant")])
def test_what_is_no_constant_is_called_by_its_name(graph: Graph, slot: int, what: str) -> None:
    c = graph.add("c", Conv(1), *(Value(f"v{i}", SHAPE) for i in range(4)))
    constant = graph.draft(graph.bn(c)).constant(node_of(c), slot)
    assert isinstance(constant, Refusal)
    of(constant, Reason.WEIGHT_NOT_CONSTANT, f"the {what} 'v{slot}' of Conv 'c'")


def test_what_cannot_be_set_is_not_noted(graph: Graph) -> None:
    c = graph.conv("c", graph.x)
    draft, node = graph.draft(graph.bn(c), replaceable=False), node_of(c)
    node.locks[2] = NO
    assert draft.set(node, 1, NO) is NO
    assert draft.set(node, 2, numbers(4)) is NO
    of(draft.set(node, 1, numbers(4, 4)), Reason.NOT_A_MODULE, "[4, 4]")
    assert draft.edits == ()


def test_a_failed_way_is_taken_back(graph: Graph) -> None:
    c = graph.conv("c", graph.x)
    draft, node = graph.draft(graph.bn(c)), node_of(c)
    kept, other = numbers(4), Refusal(Reason.TOO_FAR, "the second")

    def sets(slot: int, then: Refusal | None) -> Refusal | None:
        # A value may be moved again by the next way, so a failed one must leave none behind.
        refusal = draft.produce(c, WHOLE, 1, reader=c.readers[0].node)
        return draft.set(node, slot, numbers(4)) or refusal or then

    assert draft.first() is None
    assert draft.set(node, 5, kept) is None
    assert draft.first(lambda: sets(3, NO), lambda: sets(4, other)) is other
    assert touched(draft) == [("c", 5)]
    assert draft.first(lambda: sets(3, NO), lambda: sets(4, None), lambda: NO) is None
    assert sorted(touched(draft)) == [("c", 1), ("c", 2), ("c", 4), ("c", 5)]
    of(draft.produce(c, WHOLE, 1, reader=c.readers[0].node), Reason.SEVERAL_READERS, "comes back to 'c'")


# --- backward ----------------------------------------------------------------------------------------


def test_the_identity_goes_anywhere(graph: Graph) -> None:
    out = graph.bn(graph.x)
    draft = graph.draft(out)
    assert draft.produce(graph.x, IDENTITY, 1, reader=node_of(out)) is None
    out.observed = "an output"
    assert draft.consume(out, IDENTITY, 1) is None
    assert draft.edits == ()


def test_behind_an_input_or_a_constant(graph: Graph) -> None:
    out = graph.bn(graph.x)
    of(
        graph.draft(out).produce(graph.x, WHOLE, 1, reader=node_of(out)),
        Reason.NO_PRODUCER,
        "'x' is an input",
    )
    value = graph.add("k", Other("op"), graph.x)
    value.constant = numbers(*SHAPE)
    of(graph.draft(out).produce(value, WHOLE, 1, reader=node_of(out)), Reason.NO_PRODUCER, "'k' is an input")


def test_behind_what_somebody_sees(graph: Graph) -> None:
    c = graph.conv("c", graph.x)
    out = graph.bn(c)
    c.observed = "the graph's output"
    of(
        graph.draft(out).produce(c, WHOLE, 1, reader=node_of(out)),
        Reason.OBSERVED,
        "the output of Conv 'c' is also the graph's output",
    )


def test_read_twice_by_the_one_that_asks(graph: Graph) -> None:
    c = graph.conv("c", graph.x)
    out = graph.add("bn", BatchNorm(1e-5), c, c)
    refusal = graph.draft(out).produce(c, WHOLE, 1, reader=node_of(out))
    of(refusal, Reason.SEVERAL_READERS, "BatchNorm 'bn' reads the output of Conv 'c' twice")


def test_read_twice_by_others(graph: Graph) -> None:
    """They are another matter: the shift is put on and each of them is asked to take it off."""
    c = graph.conv("c", graph.x)
    out = graph.bn(c)
    for i in range(2):
        graph.conv(f"d{i}", c)
    assert graph.draft(out).produce(c, SCALE, 1, reader=node_of(out)) is None


@pytest.mark.parametrize(
    ("scope", "named"), [("body", "body of the BatchNorm"), ("", "main graph of the BatchNorm")]
)
def test_in_another_graph(graph: Graph, scope: str, named: str) -> None:
    c = graph.conv("c", graph.x, scope="elsewhere")
    out = graph.bn(c, scope=scope)
    of(graph.draft(out).produce(c, WHOLE, 1, reader=node_of(out)), Reason.OTHER_SCOPE, "Conv 'c'", named)
    graph.conv("d", out, scope="elsewhere")
    of(graph.draft(out).consume(out, SCALE, 1), Reason.OTHER_SCOPE, "Conv 'd'")


def test_behind_an_operator_without_rule(graph: Graph) -> None:
    out = graph.bn(graph.add("o", Other("Tanh"), graph.x))
    refusal = graph.draft(out).produce(node_of(out).inputs[0], WHOLE, 1, reader=node_of(out))  # type: ignore[arg-type]
    of(refusal, Reason.PRODUCER_NOT_LINEAR, "its input comes from Tanh 'o'")


@pytest.mark.parametrize(("pure", "goes"), [(True, True), (False, False)])
def test_through_an_operator_only_where_all_readers_are_known(graph: Graph, pure: bool, goes: bool) -> None:
    r = graph.add("r", RELU, graph.conv("c", graph.x))
    out = graph.bn(r)
    draft = graph.draft(out, pure=pure)
    refusal = draft.produce(r, SCALE, 1, reader=node_of(out))
    if goes:
        assert refusal is None
        assert touched(draft) == [("c", 1), ("c", 2)]
        assert draft.rule == "batchnorm-through-activation"
    else:
        of(refusal, Reason.PRODUCER_NOT_LINEAR, "Relu 'r'")


def test_into_an_operator_whoever_reads_elsewhere(graph: Graph) -> None:
    c = graph.conv("c", graph.x)
    out = graph.bn(c)
    draft = graph.draft(out, pure=False)
    assert draft.produce(c, WHOLE, 1, reader=node_of(out)) is None
    assert (draft.rule, draft.into) == ("batchnorm-into-conv", ("c",))


def test_a_rule_that_is_switched_off(graph: Graph) -> None:
    c = graph.conv("c", graph.x)
    out = graph.bn(c)
    graph.conv("d", out)
    draft = graph.draft(out, skip=("batchnorm-into-conv",))
    assert draft.rule is None
    for refusal in (draft.produce(c, WHOLE, 1, reader=node_of(out)), draft.consume(out, WHOLE, 1)):
        of(refusal, Reason.SKIPPED, "batchnorm-into-conv")
    assert draft.rule is None


def test_along_several_axes_at_once(graph: Graph) -> None:
    c = graph.conv("c", graph.x)
    out = graph.bn(c)
    refusal = graph.draft(out).produce(c, WHOLE, (1, 2), reader=node_of(out))
    of(refusal, Reason.AXIS_NOT_PROVEN, "Conv 'c' takes no map along several axes")


def test_along_several_axes_through_what_splits_them(graph: Graph) -> None:
    """The channels as 2 by 2; behind the convolution they are one axis again."""
    c = graph.conv("c", graph.x)
    r = graph.add("r", Reshape("Reshape"), c)
    r.shape = (1, 2, 2, 9)
    out = graph.bn(r)
    draft = graph.draft(out)
    assert draft.produce(r, SCALE, (1, 2), reader=node_of(out)) is None
    weight = draft.constant(node_of(c), 1)
    assert isinstance(weight, Constant)
    np.testing.assert_array_equal(weight.array()[:, 0, 0, 0], SCALE.scale)


def test_only_one_output_of_several_takes_it(graph: Graph) -> None:
    """A normalisation's further outputs are its statistics."""
    n = graph.add("n", Normalization("LayerNorm", 1), graph.x, numbers(4), numbers(4), outputs=2)
    out = graph.bn(n)
    statistic = node_of(n).outputs[1]
    refusal = graph.draft(out).produce(statistic, WHOLE, 1, reader=node_of(out))
    of(refusal, Reason.PRODUCER_NOT_LINEAR, "is a statistic of LayerNorm 'n'")
    assert graph.draft(out).produce(n, WHOLE, 1, reader=node_of(out)) is None


def test_the_mover_cannot_take_its_own_map(graph: Graph) -> None:
    out = graph.bn(graph.conv("c", graph.x))
    d = graph.conv("d", out)
    draft = graph.draft(out)
    of(
        draft.produce(out, WHOLE, 1, reader=node_of(d)),
        Reason.SEVERAL_READERS,
        "comes back to BatchNorm 'bn' itself",
    )
    c = node_of(out).inputs[0]
    assert c is not None
    of(graph.draft(out).consume(c, SCALE, 1), Reason.SEVERAL_READERS, "comes back to BatchNorm 'bn' itself")


# --- forward -----------------------------------------------------------------------------------------


def test_every_reader_applies_it(graph: Graph) -> None:
    out = graph.bn(graph.x)
    for name in "de":
        graph.conv(name, out)
    draft = graph.draft(out)
    assert draft.consume(out, SCALE, 1) is None
    assert draft.into == ("d", "e")


def test_in_front_of_what_somebody_sees(graph: Graph) -> None:
    out = graph.bn(graph.x)
    graph.conv("d", out)
    out.observed = "the graph's output"
    of(graph.draft(out).consume(out, SCALE, 1), Reason.OBSERVED, "'bn' is also the graph's output")


def test_read_twice_by_one_operator(graph: Graph) -> None:
    out = graph.bn(graph.x)
    graph.add("s", Elementwise(Arithmetic.ADD), out, out)
    of(graph.draft(out).consume(out, SCALE, 1), Reason.SEVERAL_READERS, "'bn' is read twice by one operator")


@pytest.mark.parametrize("op", [Other("Tanh"), Activation("Relu")])
def test_in_front_of_what_takes_none(graph: Graph, op: Op) -> None:
    out = graph.bn(graph.x)
    graph.add("o", op, out)
    refusal = graph.draft(out).consume(out, WHOLE, 1)
    of(refusal, Reason.PRODUCER_NOT_LINEAR, "cannot take a scale" if isinstance(op, Other) else "no shift")
