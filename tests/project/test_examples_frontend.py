"""docs/architecture.md, "I want to add a frontend": models of a framework that convbn does not know, in one file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import convbn
from convbn.fuse import kinds
from convbn.fuse.frontends.frontend import Applied, Capture, Frontend, Request
from convbn.fuse.operators.activation import Activation
from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.linear import Linear
from convbn.fuse.view.dataflow import Constant, Node, Reader, Value
from convbn.fuse.view.edits import Edit, SetConstant
from convbn.fuse.view.op import Op
from convbn.fuse.view.view import View

Array = NDArray[np.float32]


# The framework: layers in a row over a table of numbers, one sample a line.
@dataclass
class Layer:
    """What it is called, what it computes, its tensors by slot."""

    name: str
    op: Op
    tensors: list[Array | None] = field(default_factory=list)


@dataclass
class Stack:
    """Layers in a row."""

    columns: int
    layers: list[Layer]


# [capture]
# First the way in: the model as a view.
def capture(stack: Stack, request: Request) -> Capture:
    value = Value("input", (None, stack.columns))
    nodes = []
    for layer in stack.layers:
        constants = [
            None
            if tensor is None
            else Value(f"{layer.name}.{slot}", tensor.shape, constant=Constant.of(tensor))
            for slot, tensor in enumerate(layer.tensors, 1)
        ]
        node = Node(layer.name, layer.op, [value, *constants], [])
        for slot, read in enumerate(node.inputs):
            if read is not None:
                read.readers.append(Reader(node, slot))
        columns = layer.tensors[0].shape[0] if isinstance(layer.op, Linear) else value.shape[1]
        value = Value(f"{layer.name}.output", (None, columns), producer=node)
        node.outputs.append(value)
        nodes.append(node)
    value.observed = "the stack's output"

    # And the way out: each edit of a plan, made on a copy.
    def apply(edits: Sequence[Edit]) -> Applied:
        layers = {layer.name: replace(layer, tensors=list(layer.tensors)) for layer in stack.layers}
        for edit in edits:
            if isinstance(edit, SetConstant):
                tensors = layers[edit.node.name].tensors
                tensors += [None] * (edit.slot - len(tensors))
                tensors[edit.slot - 1] = edit.values
            else:
                del layers[edit.node.name]
        return Applied(
            Stack(stack.columns, list(layers.values())),
            Counter(layer.op.describe() for layer in layers.values()),
        )

    view = View(nodes, pure=True, replaceable=False)
    return Capture(view, view.operators(), apply, how="Read layer by layer.")


# [/capture]
def runnable(stack: Stack) -> onnx.ModelProto:
    """As ONNX: what the proof runs."""
    names = {Linear: ("Gemm", {"transB": 1}), BatchNorm: ("BatchNormalization", {}), Activation: ("Relu", {})}
    nodes, tensors, flows = [], [], "input"
    for layer in stack.layers:
        given = [
            numpy_helper.from_array(tensor, f"{layer.name}.{slot}")
            for slot, tensor in enumerate(layer.tensors)
            if tensor is not None
        ]
        kind, attributes = names[type(layer.op)]
        nodes.append(
            helper.make_node(kind, [flows, *(tensor.name for tensor in given)], [layer.name], **attributes)
        )
        tensors += given
        flows = layer.name
    source = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", stack.columns])
    target = helper.make_tensor_value_info(flows, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "stack", [source], [target], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


# [row]
STACKS = Frontend("stack", Stack.__module__, "Stack", capture, runnable)


# [/row]
# The example ends here. What follows shows that it works.
@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    kinds.register(STACKS)
    yield
    del kinds.FRONTENDS["stack"]


def stack() -> Stack:
    """Two BatchNorms behind linear layers, one with a ReLU between them; and one behind a ReLU, which stays."""
    rng = np.random.default_rng(0)

    def norm(name: str, columns: int) -> Layer:
        return Layer(name, BatchNorm(1e-5), list(rng.uniform(0.5, 2, (4, columns)).astype("f4")))

    def linear(name: str, rows: int, columns: int) -> Layer:
        return Layer(name, Linear(output_axis=0), [rng.standard_normal((rows, columns)).astype("f4")])

    def relu(name: str) -> Layer:
        return Layer(name, Activation("ReLU"))

    return Stack(
        3,
        [
            linear("l1", 8, 3),
            norm("n1", 8),
            relu("r1"),
            linear("l2", 5, 8),
            norm("n2", 5),
            relu("r2"),
            norm("n3", 5),
        ],
    )


def test_models_of_another_framework_fold_and_are_proven() -> None:
    model = stack()
    before = deepcopy(model)
    folded, report = convbn.fuse(model)
    assert [layer.name for layer in folded.layers] == ["l1", "r1", "l2", "r2", "n3"]
    assert [(entry.name, entry.into) for entry in report.folded] == [("n1", ("l1",)), ("n2", ("l2",))]
    assert [kept.name for kept in report.kept] == ["n3"]
    assert report.kind == "stack"
    assert report.verify is not None
    assert report.verify["status"] == "equal"
    for layer, other in zip(model.layers, before.layers, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(layer.tensors, other.tensors, strict=True))


def test_a_frontend_that_edits_wrongly_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets_the_weights(given: Stack, request: Request) -> Capture:
        captured = capture(given, request)
        return replace(
            captured, apply=lambda edits: captured.apply([e for e in edits if not isinstance(e, SetConstant)])
        )

    monkeypatch.setitem(kinds.FRONTENDS, "stack", replace(STACKS, capture=forgets_the_weights))
    with pytest.raises(convbn.CheckFailedError, match="not equal"):
        convbn.fuse(stack())


def test_a_kind_is_registered_once() -> None:
    with pytest.raises(convbn.UsageError, match="a frontend for stack already"):
        kinds.register(STACKS)


def test_what_no_frontend_takes_is_refused() -> None:
    assert kinds.kind_of(stack()) == "stack"
    assert kinds.kind_of(3) is None
    with pytest.raises(convbn.UsageError, match=r"cannot fold a builtins\.int"):
        convbn.fuse(3)
