from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from convbn.bench.measure.memory import peak_memory
from convbn.bench.runtimes.base import Variant

MEGABYTE = 2**20
WIDTH = 2048  # a square float32 matrix of 16 MiB
FEEDS = {"x": np.ones((1, WIDTH), np.float32)}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")


def dense(layers: int) -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    nodes = [helper.make_node("MatMul", [f"v{i}", f"w{i}"], [f"v{i + 1}"]) for i in range(layers)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("v0", TensorProto.FLOAT, [1, WIDTH])],
        [helper.make_tensor_value_info(f"v{layers}", TensorProto.FLOAT, [1, WIDTH])],
        [numpy_helper.from_array(weight, f"w{i}") for i in range(layers)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_larger_model_takes_more_and_about_its_size(tmp_path: Path) -> None:
    feeds = {"v0": FEEDS["x"]}
    path = tmp_path / "m.onnx"
    onnx.save(dense(1), path)
    small = peak_memory("onnxruntime-cpu@off", Variant("a", onnx=path), feeds, threads=1)
    large = peak_memory("onnxruntime-cpu@off", Variant("a", onnx=dense(4)), feeds, threads=1)
    assert small is not None
    assert large is not None
    assert 16 * MEGABYTE <= small <= 100 * MEGABYTE
    assert large - small >= 40 * MEGABYTE


def test_a_module_is_measured_where_nothing_else_was_loaded() -> None:
    ballast = torch.zeros(64 * MEGABYTE)  # of this process, and none of the model's business
    module = torch.nn.Linear(WIDTH, WIDTH)
    found = peak_memory("torch-cpu", Variant("a", module=module), FEEDS, threads=1)
    assert ballast.numel() > 0
    assert found is not None
    assert 16 * MEGABYTE <= found <= 150 * MEGABYTE


def test_what_cannot_be_measured_is_none() -> None:
    class Local(torch.nn.Module):  # cannot be pickled
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    assert peak_memory("torch-cpu", Variant("a", module=Local()), FEEDS, threads=1) is None
    assert peak_memory("onnxruntime-cpu", Variant("a"), FEEDS, threads=1) is None
    broken = {"v0": np.ones((1, 3), np.float32)}
    assert peak_memory("onnxruntime-cpu", Variant("a", onnx=dense(1)), broken, threads=1) is None
