"""Models that are larger than what the process may hold, or than what protobuf can."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.graphs import batchnorm, batchnorm_parameters

CHANNELS = 1024
WEIGHT = CHANNELS * CHANNELS * 9 * 4


def write(path: Path, layers: int) -> None:
    """Conv → BatchNorm, as often; the weights are zeros that take no room on the disk."""
    nodes, tensors, source = [], [], "x"
    for index in range(layers):
        weight = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[CHANNELS, CHANNELS, 3, 3])
        weight.data_location = TensorProto.EXTERNAL
        place = {"location": "weights.bin", "offset": index * WEIGHT, "length": WEIGHT}
        for key, value in place.items():
            weight.external_data.add(key=key, value=str(value))
        tensors.append(weight)
        for name, array in batchnorm_parameters(CHANNELS, prefix=f"bn{index}").items():
            tensors.append(onnx.numpy_helper.from_array(array, name))
        nodes.append(
            helper.make_node("Conv", [source, weight.name], [f"c{index}"], f"conv{index}", pads=[1] * 4)
        )
        nodes.append(batchnorm(f"c{index}", f"n{index}", prefix=f"bn{index}"))
        source = f"n{index}"
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, CHANNELS, 4, 4]) for name in ("x", source)
    ]
    graph = helper.make_graph(nodes, "large", values[:1], values[1:], tensors)
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()
    )
    with path.with_name("weights.bin").open("wb") as file:
        file.truncate(layers * WEIGHT)


def fused(source: Path, target: Path) -> float:
    """Fuse without verification; the largest resident set, in megabytes."""
    code = (
        "import os, sys\n"
        "process = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, '-m', 'convbn', *sys.argv[1:]])\n"
        "_, status, usage = os.wait4(process, 0)\n"
        "print(usage.ru_maxrss / 1024)\n"
        "sys.exit(os.waitstatus_to_exitcode(status))\n"
    )
    # Between the two a small process: a child's peak starts at its parent's.
    command = [sys.executable, "-c", code, "fuse", str(source), "-o", str(target), "--no-verify", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for path in tmp_path.iterdir():  # pytest keeps the folders of its last runs
        path.unlink()


def test_memory_follows_from_the_largest_weight(folder: Path) -> None:
    write(folder / "few.onnx", 2)
    few = fused(folder / "few.onnx", folder / "few.out.onnx")
    write(folder / "many.onnx", 8)
    many = fused(folder / "many.onnx", folder / "many.out.onnx")
    assert many - few < WEIGHT / 1e6


@pytest.mark.slow
def test_beyond_two_gibibytes(folder: Path) -> None:
    write(folder / "large.onnx", 58)
    assert (folder / "weights.bin").stat().st_size > 1 << 31
    assert fused(folder / "large.onnx", folder / "out.onnx") < 1000
    light = onnx.load(folder / "out.onnx", load_external_data=False)
    onnx.checker.check_model(str(folder / "out.onnx"))
    assert {node.op_type for node in light.graph.node} == {"Conv"}
    (data,) = folder.glob("out.*.data")
    assert data.stat().st_size > 1 << 31
    # The convolutions are zero, so what comes out is the last BatchNorm's value at 0, now a bias.
    bias = next(t for t in light.graph.initializer if t.name == light.graph.node[-1].input[2])
    place = {entry.key: entry.value for entry in bias.external_data}
    with data.open("rb") as file:
        file.seek(int(place["offset"]))
        values = np.frombuffer(file.read(int(place["length"])), np.float32)
    last = batchnorm_parameters(CHANNELS, prefix="bn57")
    expected = last["bn57.beta"] - last["bn57.mean"] * last["bn57.gamma"] / np.sqrt(last["bn57.var"] + 1e-5)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
