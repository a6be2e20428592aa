"""The rounding bound that a report gives for each folded BatchNorm holds, and is no wider than it must be."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper
from support.graphs import batchnorm, batchnorm_parameters, model, random

from convbn.fuse.fold import fold


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_bound_holds_in_each_channel(dtype: type) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y")]
    p = {name: array.astype(dtype) for name, array in batchnorm_parameters(64).items()}
    w = random(64, 16, 3, 3).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    result = fold(model(nodes, {"x": [1, 16, 6, 6]}, ["y"], {"w": w, **p}, elem_type=kind))
    (entry,) = result.report.to_dict()["folded"]
    assert entry["bound"] == np.finfo(dtype).eps / 2
    wide = np.longdouble
    scale = p["bn.gamma"].astype(wide) / np.sqrt(p["bn.var"].astype(wide) + wide(np.float32(1e-5)))
    exact = w.astype(wide) * scale[:, None, None, None]
    node = next(n for n in result.model.graph.node if n.op_type == "Conv")
    stored = next(t for t in result.model.graph.initializer if t.name == node.input[1])
    given = numpy_helper.to_array(stored).astype(wide)
    error = np.abs(given - exact).reshape(64, -1).max(1) / np.abs(exact).reshape(64, -1).max(1)
    # float64 is what the fold is computed in: there its own few roundings come on top.
    assert error.max() <= entry["bound"] * (5 if dtype is np.float64 else 1.0001)
    assert error.max() > entry["bound"] / 20


def test_what_stores_nothing_has_no_bound() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["r"], name="relu"), batchnorm("r", "y")]
    report = fold(model(nodes, {"x": [1, 6, 4, 4]}, ["y"], batchnorm_parameters(6))).report
    assert report.rounding == {}
