"""Chains of nodes that exporters put behind parameters: what they compute, and what is left to the runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.graphs import batchnorm, batchnorm_parameters, operators, random, relative_error, run

from convbn.fuse.fold import fold
from convbn.fuse.frontends.onnx.reading.constants import CHAIN
from convbn.fuse.operators.calls import OnnxCall
from convbn.fuse.refusal import Reason
from convbn.fuse.view.dataflow import Constant, Value

node = helper.make_node
WEIGHT = random(6, 4, 1, 1)
FEEDS = {"x": random(2, 4, 5, 5, seed=3)}


def behind(
    chain: Sequence[onnx.NodeProto], stored: Mapping[str, np.ndarray], opset: int = 21
) -> onnx.ModelProto:
    """A convolution by ``w`` and a BatchNorm, of whose constants ``chain`` computes one."""
    made = {name for link in chain for name in link.output}
    arrays = {"w": WEIGHT, **batchnorm_parameters(6), **stored}
    graph = helper.make_graph(
        [*chain, node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y")],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items() if name not in made],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def odd(operator: str, output: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node whose attributes need not be of the type that the operator gives them."""
    built = node(operator, inputs, [output])
    built.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    return built


def tensor(array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(array)


ROWS = random(6, 4)
FOLDED = {
    "default of shape": ([node("ConstantOfShape", ["s"], ["bn.mean"])], {"s": np.int64([6])}),
    "value of shape": (
        [node("ConstantOfShape", ["s"], ["bn.mean"], value=tensor(np.float32([2])))],
        {"s": np.int64([6])},
    ),
    "floats": ([node("Constant", [], ["bn.mean"], value_floats=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])], {}),
    "by way of double": (
        [node("Cast", ["v"], ["d"], to=TensorProto.DOUBLE), node("Cast", ["d"], ["w"], to=TensorProto.FLOAT)],
        {"v": WEIGHT},
    ),
    "transposed": ([node("Transpose", ["v"], ["w"], perm=[3, 2, 1, 0])], {"v": random(1, 1, 4, 6)}),
    "reversed": ([node("Transpose", ["v"], ["w"])], {"v": random(1, 1, 4, 6)}),
    "sizes kept by zero": ([node("Reshape", ["v", "s"], ["w"])], {"v": ROWS, "s": np.int64([0, 0, 1, -1])}),
    "sizes as they are": (
        [node("Reshape", ["v", "s"], ["w"], allowzero=1)],
        {"v": ROWS, "s": np.int64([6, 4, 1, 1])},
    ),
    "squeezed": ([node("Squeeze", ["v"], ["bn.mean"])], {"v": random(1, 6, 1)}),
    "squeezed along": (
        [node("Squeeze", ["v", "s"], ["bn.mean"])],
        {"v": random(1, 6, 1), "s": np.int64([0, -1])},
    ),
    "squeezed scalar": (
        [node("Squeeze", ["v"], ["o"]), node("Expand", ["o", "s"], ["bn.mean"])],
        {"v": np.float32(2), "s": np.int64([6])},
    ),
    "unsqueezed": ([node("Unsqueeze", ["v", "s"], ["w"])], {"v": ROWS, "s": np.int64([-1, 2])}),
    "expanded": ([node("Expand", ["v", "s"], ["w"])], {"v": WEIGHT, "s": np.int64([1, 1, 3, 1])}),
    "shape of the weight": (
        [node("Shape", ["w"], ["s"], start=0, end=1), node("ConstantOfShape", ["s"], ["bn.mean"])],
        {},
    ),
}


@pytest.mark.parametrize("case", FOLDED)
def test_what_a_chain_computes_is_a_constant(case: str) -> None:
    built = behind(*FOLDED[case])
    result = fold(built)
    assert operators(result.model)[-1] == "Conv"
    assert relative_error(run(built, FEEDS), run(result.model, FEEDS)) < 1e-6


LEFT = {
    "by way of text": (
        [node("Cast", ["v"], ["t"], to=TensorProto.STRING), node("Cast", ["t"], ["w"], to=TensorProto.FLOAT)],
        {"v": WEIGHT},
    ),
    # Runtimes round to four bits each in their own way.
    "by way of four bits": (
        [node("Cast", ["v"], ["t"], to=TensorProto.INT4), node("Cast", ["t"], ["w"], to=TensorProto.FLOAT)],
        {"v": WEIGHT},
    ),
    "sparse": (
        [
            node(
                "Constant",
                [],
                ["bn.mean"],
                sparse_value=helper.make_sparse_tensor(
                    helper.make_tensor("v", TensorProto.FLOAT, [2], [1.0, 2.0]),
                    helper.make_tensor("i", TensorProto.INT64, [2], [1, 3]),
                    [6],
                ),
            )
        ],
        {},
    ),
    "axes that a run computes": (
        [
            node("Shape", ["x"], ["s"]),
            node("Slice", ["s", "zero", "zero"], ["none"]),
            node("Squeeze", ["v", "none"], ["bn.mean"]),
        ],
        {"v": random(6), "zero": np.int64([0])},
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_left_to_the_runtime(case: str) -> None:
    built = behind(*LEFT[case])
    result = fold(built)
    assert result.report.kept[0].reason in (Reason.WEIGHT_NOT_CONSTANT, Reason.PARAMETERS_NOT_CONSTANT)
    assert relative_error(run(built, FEEDS), run(result.model, FEEDS)) == 0


MALFORMED = {
    "cast to nothing": ([odd("Cast", "w", "v")], {"v": WEIGHT}),
    "cast to undefined": ([odd("Cast", "w", "v", to=0)], {"v": WEIGHT}),
    "cast to no type": ([odd("Cast", "w", "v", to=999)], {"v": WEIGHT}),
    "order of another rank": ([odd("Transpose", "w", "v", perm=[0, 1])], {"v": WEIGHT}),
    "zero beyond the rank": ([odd("Reshape", "w", "v", "s")], {"v": ROWS, "s": np.int64([6, 4, 0, 1])}),
    "two sizes left open": ([odd("Reshape", "w", "v", "s")], {"v": ROWS, "s": np.int64([-1, -1, 1, 1])}),
    "another size": ([odd("Reshape", "w", "v", "s")], {"v": ROWS, "s": np.int64([6, 5, 1, 1])}),
    "sizes no integers": ([odd("Reshape", "w", "v", "s")], {"v": ROWS, "s": np.float32([np.inf, 4, 1, 1])}),
    "squeezed of a size": ([odd("Squeeze", "bn.mean", "v", "s")], {"v": random(1, 6), "s": np.int64([1])}),
    "unsqueezed twice": ([odd("Unsqueeze", "w", "v", "s")], {"v": ROWS, "s": np.int64([-1, 3])}),
    "sizes that do not broadcast": (
        [odd("Expand", "w", "v", "s")],
        {"v": WEIGHT, "s": np.int64([5, 1, 1, 1])},
    ),
    "a negative size": ([odd("ConstantOfShape", "bn.mean", "s")], {"s": np.int64([-6])}),
    "a huge size": ([odd("ConstantOfShape", "bn.mean", "s")], {"s": np.int64([1 << 40])}),
    "very many sizes": ([odd("ConstantOfShape", "bn.mean", "s")], {"s": np.ones(65, np.int64)}),
    "sizes not numbers": ([odd("ConstantOfShape", "bn.mean", "s")], {"s": np.float32([np.nan])}),
    "no value": (
        [odd("ConstantOfShape", "bn.mean", "s", value=tensor(np.zeros(0, np.float32)))],
        {"s": np.int64([6])},
    ),
    "a value no tensor": ([odd("ConstantOfShape", "bn.mean", "s", value=3)], {"s": np.int64([6])}),
    "a constant no tensor": ([odd("Constant", "bn.mean", value=3)], {}),
    "floats no floats": ([odd("Constant", "bn.mean", value_floats="abc")], {}),
    "integer no integer": ([odd("Constant", "bn.mean", value_int="abc")], {}),
    "integers no integers": ([odd("Constant", "bn.mean", value_ints=[0.5] * 6)], {}),
    "texts": ([odd("Constant", "bn.mean", value_strings=["a"] * 6)], {}),
    "sizes no list": ([odd("Reshape", "w", "v", shape="abc")], {"v": ROWS}),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_chain_keeps_the_batchnorm(case: str) -> None:
    built = behind(*MALFORMED[case])
    (kept,) = fold(built).report.kept
    assert kept.reason in (Reason.WEIGHT_NOT_CONSTANT, Reason.PARAMETERS_NOT_CONSTANT)


# --- by themselves ----------------------------------------------------------------------------------------


def follow(operator: str, *arrays: np.ndarray | None, **attributes: Any) -> Constant | None:
    inputs = [
        None if array is None else Value(str(i), array.shape, constant=Constant.of(array))
        for i, array in enumerate(arrays)
    ]
    return CHAIN[operator](OnnxCall(operator, 21, attributes, inputs, [Value("out")]))


@pytest.mark.parametrize(
    "operator",
    ["Cast", "CastLike", "Expand", "Identity", "Reshape", "Shape", "Squeeze", "Transpose", "Unsqueeze"],
)
@pytest.mark.parametrize("given", [(), (None,), (None, np.int64([1]))], ids=["none", "empty", "second"])
def test_an_operator_without_its_data(operator: str, given: tuple[Any, ...]) -> None:
    assert follow(operator, *given, to=1) is None


def test_an_operator_without_its_second_input() -> None:
    for operator in ("Reshape", "Expand", "Unsqueeze", "CastLike"):
        assert follow(operator, ROWS) is None
        assert follow(operator, ROWS, None) is None


def test_too_many_elements_are_not_expanded() -> None:
    assert follow("Expand", np.zeros((1, 1), np.float32), np.int64([1 << 13, 1 << 14])) is None
    assert follow("Expand", np.zeros((1, 1), np.float32), np.int64([1 << 13, 1 << 13])) is not None


def test_an_integer_and_a_scalar() -> None:
    found = follow("Constant", value_int=3)
    assert found is not None
    assert (found.array().dtype, found.shape, int(found.array())) == (np.int64, (), 3)


def test_weights_of_a_graphsurgeon_graph_may_be_arrays() -> None:
    """As a script writes them: no TensorProto lies behind."""
    x, c = gs.Variable("x", np.float32, (2, 4, 5, 5)), gs.Variable("c", np.float32, (2, 6, 5, 5))
    y = gs.Variable("y", np.float32, (2, 6, 5, 5))
    parameters = [gs.Constant(name, array) for name, array in batchnorm_parameters(6).items()]
    graph = gs.Graph(
        [
            gs.Node("Conv", "conv", inputs=[x, gs.Constant("w", WEIGHT)], outputs=[c]),
            gs.Node("BatchNormalization", "bn", inputs=[c, *parameters], outputs=[y]),
        ],
        [x],
        [y],
        opset=20,
    )
    before = gs.export_onnx(graph)
    result = fold(graph)
    after = gs.export_onnx(result.model)
    assert operators(after) == ["Conv"]
    for built in (before, after):
        built.ir_version = 10
    assert relative_error(run(before, FEEDS), run(after, FEEDS)) < 1e-6
    assert len(graph.nodes) == 2
