"""Models small enough to read, shared by the tests of this room."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ConvModel = Callable[..., onnx.ModelProto]


def _conv_model(
    *,
    dtype: int = TensorProto.FLOAT,
    scale: float = 1.0,
    bias: float = 0.0,
    channel_gain: tuple[float, ...] | None = None,
    extra: str | None = None,
) -> onnx.ModelProto:
    """Conv 3→4 with fixed weights times ``scale``; ``extra`` names one operator put behind it."""
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)) * scale
    if channel_gain is not None:
        weight = weight * np.array(channel_gain)[:, None, None, None]
    tensors = [
        numpy_helper.from_array(weight.astype(kind), "w"),
        numpy_helper.from_array(np.full(4, bias).astype(kind), "b"),
    ]
    last = "y" if extra is None else "c"
    nodes = [helper.make_node("Conv", ["x", "w", "b"], [last], name="conv", pads=[1, 1, 1, 1])]
    if extra is not None:
        nodes.append(helper.make_node(extra, ["c"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, ["n", 3, 8, 8])],
        [helper.make_empty_tensor_value_info("y")],
        tensors,
    )
    graph.output[0].type.tensor_type.elem_type = TensorProto.BOOL if extra == "IsNaN" else dtype
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


@pytest.fixture(scope="session")
def conv_model() -> ConvModel:
    return _conv_model
