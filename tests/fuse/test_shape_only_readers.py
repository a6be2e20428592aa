"""Who asks for a shape or a type sees no number of a map, and a name keeps an open dimension known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.graphs import batchnorm, batchnorm_parameters, operators, random, relative_error, run

from convbn.fuse.fold import fold
from convbn.fuse.operators.calls import OnnxCall
from convbn.fuse.operators.cast import Cast
from convbn.fuse.operators.registry import onnx_readers
from convbn.fuse.operators.zeros import Zeros, is_zero
from convbn.fuse.refusal import Reason
from convbn.fuse.view.dataflow import Constant, Value

node = helper.make_node
FEEDS = {"x": random(2, 4, 6, 6, seed=3)}


def built(nodes: Sequence[onnx.NodeProto], **stored: np.ndarray) -> onnx.ModelProto:
    """Nodes over an image with an open batch; γ has both signs."""
    arrays = {"w": random(6, 4, 1, 1), **batchnorm_parameters(6), **stored}
    assert len(np.unique(np.sign(arrays["bn.gamma"]))) == 2
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_which_slots_are_read_for_their_numbers() -> None:
    """CastLike reads the type of its second input; what is filled like another tensor asks for its shape."""
    casts = [Cast().sees_numbers(slot) for slot in (0, 1)]
    types, shapes = (onnx_readers(name)[-1] for name in ("CastLike", "Shape"))
    given = [Value("x", (2, 3), dtype=np.dtype("i4")), Value("like", (2, 3))]
    op, of = types(OnnxCall("CastLike", 20, {}, given, [])), shapes(OnnxCall("Shape", 20, {}, given, []))
    assert casts == [True, False]
    assert op is not None
    assert of is not None
    assert [op.sees_numbers(slot) for slot in (0, 1)] == [True, False]
    assert [of.sees_numbers(slot) for slot in (0, 1)] == [False, True]
    assert not Zeros("zeros_like").sees_numbers(0)


def test_a_constant_of_a_million_zeros_is_seen_to_be_0_and_a_larger_one_is_not_looked_at() -> None:
    def zeros(count: int) -> Value:
        return Value("z", (count,), constant=Constant.of(np.broadcast_to(np.float32(0), (count,))))

    assert is_zero(zeros(1 << 20))
    assert not is_zero(zeros((1 << 20) + 1))


CONV = [node("Conv", ["x", "w"], ["c"]), batchnorm("c", "b"), node("Tanh", ["b"], ["t"])]
READERS = {
    "Shape": [node("Shape", ["c"], ["n"]), node("Reshape", ["t", "n"], ["y"])],
    "Size": [node("Size", ["c"], ["n"]), node("CastLike", ["n", "t"], ["f"]), node("Div", ["t", "f"], ["y"])],
    "CastLike": [node("CastLike", ["two", "c"], ["f"]), node("Pow", ["t", "f"], ["y"])],
    "of the BatchNorm": [node("Shape", ["b"], ["n"]), node("Reshape", ["t", "n"], ["y"])],
}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_of_the_shape_alone_keeps_no_batchnorm(name: str) -> None:
    model = built([*CONV, *READERS[name]], two=np.int64([2]))
    result = fold(model)
    assert "BatchNormalization" not in operators(result.model)
    assert relative_error(run(model, FEEDS), run(result.model, FEEDS)) < 1e-5


def test_a_reader_of_the_numbers_beside_it_does() -> None:
    """CastLike's first input is read as numbers."""
    model = built(
        [
            *CONV,
            node("CastLike", ["c", "two"], ["f"]),
            node("Cast", ["t"], ["y"], to=7),
            node("Abs", ["f"], ["z"]),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.int64([2]), "two"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.INT64, None))
    result = fold(model)
    assert [kept.reason for kept in result.report.kept] == [Reason.SEVERAL_READERS]


def test_the_batch_that_a_view_carries_stays_known() -> None:
    """``y.view(y.size(0), -1)`` in front of a Linear, with an open batch."""
    nodes = [
        node("Sigmoid", ["x"], ["s"]),
        batchnorm("s", "b"),
        node("Shape", ["b"], ["n"]),
        node("Gather", ["n", "zero"], ["batch"], axis=0),
        node("Concat", ["batch", "rest"], ["to"], axis=0),
        node("Reshape", ["b", "to"], ["flat"]),
        node("Gemm", ["flat", "dense"], ["y"]),
    ]
    stored = {
        **batchnorm_parameters(4),
        "zero": np.int64([0]),
        "rest": np.int64([-1]),
        "dense": random(144, 5),
    }
    model = built(nodes, **stored)
    result = fold(model)
    assert "BatchNormalization" not in operators(result.model)
    assert relative_error(run(model, FEEDS), run(result.model, FEEDS)) < 1e-5


def test_a_batch_from_elsewhere_proves_nothing() -> None:
    """The target's first dimension is another input's: how many of the 144 are behind it is not known."""
    nodes = [
        node("Sigmoid", ["x"], ["s"]),
        batchnorm("s", "b"),
        node("Shape", ["other"], ["n"]),
        node("Concat", ["n", "rest"], ["to"], axis=0),
        node("Reshape", ["b", "to"], ["y"]),
    ]
    model = built(nodes, **batchnorm_parameters(4), rest=np.int64([-1]))
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["M"]))
    (kept,) = fold(model).report.kept
    assert kept.reason is Reason.PRODUCER_NOT_LINEAR
    assert "one axis on both sides" in kept.detail
