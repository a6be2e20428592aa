"""ONNX operators that are not quite what their name says: read only where the formula holds for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run

from convbn.errors import BadInputError
from convbn.fuse.fold import fold
from convbn.fuse.frontends.onnx.reading.operators import written
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.pad import Pad
from convbn.fuse.refusal import Reason

node = helper.make_node
FEEDS = {"x": random(2, 4, 6, 6, seed=3)}


def between(
    chain: Sequence[onnx.NodeProto],
    stored: dict[str, np.ndarray] | None = None,
    *,
    channels: int = 6,
    opset: int = 20,
    shape: Sequence[int | str] = (2, 4, 6, 6),
    bn: dict[str, Any] | None = None,
) -> onnx.ModelProto:
    """``chain`` leads from the convolution's ``c`` to the BatchNorm's ``b``."""
    arrays = {"w": random(6, 4, 1, 1), **batchnorm_parameters(channels), **(stored or {})}
    graph = helper.make_graph(
        [node("Conv", ["x", "w"], ["c"], name="conv"), *chain, batchnorm("b", "y", **(bn or {}))],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


ZERO, TWO, ONE = np.int64([0]), np.int64([2]), np.int64([1])
LEFT = {
    "a slice along a computed axis": (
        [
            node("Size", ["c"], ["n"]),
            node("Sub", ["n", "n"], ["zero"]),
            node("Add", ["zero", "one"], ["axis"]),
            node("Slice", ["c", "from", "to", "axis"], ["b"]),
        ],
        {"from": ZERO, "to": np.int64([3]), "one": ONE},
        3,
    ),
    "a pad along computed axes": (
        [
            node("Size", ["c"], ["n"]),
            node("Sub", ["n", "n"], ["zero"]),
            node("Add", ["zero", "three"], ["axes"]),
            node("Pad", ["c", "pads", "", "axes"], ["b"]),
        ],
        {"pads": np.int64([-1, -1]), "three": np.int64([3])},
        6,
    ),
    "a mean along computed axes": (
        [
            node("Size", ["c"], ["n"]),
            node("Sub", ["n", "n"], ["zero"]),
            node("Add", ["zero", "three"], ["axes"]),
            node("ReduceMean", ["c", "axes"], ["b"]),
        ],
        {"three": np.int64([3])},
        6,
    ),
}


PASSED = {
    "a slice in steps": (
        [node("Slice", ["c", "from", "to", "axis", "step"], ["b"])],
        {"from": ZERO, "to": np.int64([6]), "axis": ONE, "step": TWO},
        3,
    ),
    "a slice of two axes": (
        [node("Slice", ["c", "from", "to", "axes"], ["b"])],
        {"from": np.int64([0, 0]), "to": np.int64([3, 3]), "axes": np.int64([1, 2])},
        3,
    ),
    "a slice to a computed end": (
        [
            node("Size", ["c"], ["n"]),
            node("Reshape", ["n", "one"], ["end"]),
            node("Slice", ["c", "two", "end", "axis"], ["b"]),
        ],
        {"one": ONE, "two": TWO, "axis": np.int64([3])},
        6,
    ),
    "a slice of channels, backwards": (
        [node("Slice", ["c", "from", "to", "axis", "step"], ["b"])],
        {"from": np.int64([-1]), "to": np.int64([-99]), "axis": ONE, "step": np.int64([-1])},
        6,
    ),
    "a row": ([node("Gather", ["c", "at"], ["b"], axis=2)], {"at": np.int64(-1)}, 6),
    "rows of rows": ([node("Gather", ["c", "at"], ["b"], axis=3)], {"at": np.int64([[0, 2], [5, 5]])}, 6),
    "rows that are computed": (
        [
            node("Size", ["c"], ["n"]),
            node("Sub", ["n", "n"], ["zero"]),
            node("Gather", ["c", "zero"], ["b"], axis=2),
        ],
        {},
        6,
    ),
    "channels in another order": (
        [node("Gather", ["c", "at"], ["b"], axis=1)],
        {"at": np.int64([4, 0, -3, 1])},
        4,
    ),
}


@pytest.mark.parametrize("opset", [13, 20])
@pytest.mark.parametrize("case", PASSED)
def test_what_can_be_passed(case: str, opset: int) -> None:
    chain, stored, channels = PASSED[case]
    built = between(chain, stored, channels=channels, opset=opset)
    result = fold(built)
    assert result.report.batchnorm.after == 0
    assert relative_error(run(built, FEEDS), run(result.model, FEEDS)) < 1e-5


@pytest.mark.parametrize("case", LEFT)
def test_what_cannot_be_passed(case: str) -> None:
    chain, stored, channels = LEFT[case]
    built = between(chain, stored, channels=channels)
    result = fold(built)
    assert result.report.batchnorm.after == 1
    assert relative_error(run(built, FEEDS), run(result.model, FEEDS)) < 1e-6


def test_a_slice_and_a_pad_along_given_axes() -> None:
    chain = [
        node("Slice", ["c", "from", "to", "axis", "one"], ["s"]),
        node("Pad", ["s", "pads", "", "axes"], ["b"]),
    ]
    stored = {
        "from": np.int64([-4]),
        "to": np.int64([5]),
        "axis": np.int64([-3]),
        "one": ONE,
        "pads": np.int64([-1, 0]),
        "axes": np.int64([-1]),
    }
    built = between(chain, stored, channels=3)
    result = fold(built)
    assert "BatchNormalization" not in operators(result.model)
    assert relative_error(run(built, FEEDS), run(result.model, FEEDS)) < 1e-6


MALFORMED = {
    "ends of another number": (
        [node("Slice", ["c", "from", "none"], ["b"])],
        {"from": ZERO, "none": np.int64([])},
    ),
    "pads of another number": ([node("Pad", ["c", "pads"], ["b"])], {"pads": np.int64([0, 0, 1])}),
    "starts no list": ([helper.make_node("Slice", ["c"], ["b"], starts="a", ends=[1])], {}),
    "a number that is text": ([helper.make_node("Pad", ["c"], ["b"], pads=[0] * 8, value="a")], {}),
    "a ratio that is text": ([node("Dropout", ["c"], ["b"], ratio="a")], {}),
    "an attribute of another operator": ([node("Identity", ["c"], ["b"], perm=[0, 1, 2, 3])], {}),
    "an order of another rank": ([node("Transpose", ["c"], ["b"], perm=[1, 0])], {}),
}


@pytest.mark.parametrize("opset", [9, 20])
@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_operator_keeps_the_batchnorm(case: str, opset: int) -> None:
    built = between(*MALFORMED[case], opset=opset)
    assert fold(built).report.batchnorm.after == 1


@pytest.mark.parametrize("pads", [{"pads": [0, 0, 1, 1]}, {}])
def test_a_convolution_with_a_malformed_window_is_not_merged(pads: dict[str, Any]) -> None:
    """Beside one whose window is known: a sum of both is one convolution only where both are known."""
    chain = [
        node("Conv", ["x", "v"], ["d"], name="other", strides=[1], **pads),
        node("Add", ["c", "d"], ["b"]),
    ]
    result = fold(between(chain, {"v": random(6, 4, 1, 1, seed=2)}))
    assert not result.report.merged
    assert operators(result.model).count("Conv") == 2


def test_statistics_of_every_position() -> None:
    """Until opset 9 an attribute asked for them."""
    built = between([node("Relu", ["c"], ["b"])], opset=7, bn={"spatial": 0})
    (kept,) = fold(built).report.kept
    assert kept.reason is Reason.NOT_PER_CHANNEL


def test_a_batchnorm_with_an_attribute_of_another_type() -> None:
    built = between([node("Identity", ["c"], ["b"])], bn={"epsilon": "small"})
    (kept,) = fold(built).report.kept
    assert kept.reason is Reason.PARAMETERS_MALFORMED
    assert "'epsilon'" in kept.detail


def test_a_batchnorm_with_too_few_inputs() -> None:
    built = between([node("Identity", ["c"], ["b"])])
    del built.graph.node[-1].input[3:]
    (kept,) = fold(built).report.kept
    assert kept.reason is Reason.PARAMETERS_MALFORMED


def test_a_gemm_that_does_not_broadcast_as_numpy() -> None:
    """Before opset 7 an attribute said how the bias is laid out."""
    nodes = [node("Gemm", ["x", "w", "c"], ["b"], name="gemm", broadcast=1), batchnorm("b", "y", is_test=1)]
    arrays = {"w": random(4, 6), "c": random(6), **batchnorm_parameters(6)}
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 6])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 6)])
    (kept,) = fold(built).report.kept
    assert kept.reason is Reason.PRODUCER_NOT_LINEAR


def test_lists_of_another_type_are_told_from_those_of_their_own() -> None:
    built = between([node("Transpose", ["c"], ["b"], perm=[0.0, 1.0, 3.0, 2.0])])
    assert fold(built).report.batchnorm.after == 1
    built = between([node("Transpose", ["c"], ["b"], perm=[0, 1, 3, 2])])
    assert fold(built).report.batchnorm.after == 0


def test_what_no_edit_writes() -> None:
    for op in (Pad("Pad", (2,), zeros=True), Conv(groups=1, window=None)):
        with pytest.raises(TypeError, match="not written"):
            written(op)


def test_a_graph_that_cannot_be_read() -> None:
    """graphsurgeon raises whatever its helpers do."""
    built = between([node("Identity", ["c"], ["b"])])
    built.graph.input[0].type.tensor_type.elem_type = 99
    with pytest.raises(BadInputError, match="cannot be read"):
        fold(built)


def test_the_default_epsilon_is_a_float_of_32_bits() -> None:
    """A model of doubles shows the difference."""
    parameters = {name: array.astype(np.float64) for name, array in batchnorm_parameters(4).items()}
    parameters["bn.var"][:] = 1e-6
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), batchnorm("c", "y")]
    arrays = {"w": random(4, 4, 1, 1).astype(np.float64), **parameters}
    built = model(nodes, {"x": [1, 4, 3, 3]}, ["y"], arrays, elem_type=TensorProto.DOUBLE)
    folded = fold(built).model
    assert operators(folded) == ["Conv"]
    feeds = {"x": random(1, 4, 3, 3, seed=3).astype(np.float64)}
    before, after = (ReferenceEvaluator(m).run(None, feeds) for m in (built, folded))
    assert relative_error(before, after) < 1e-12
