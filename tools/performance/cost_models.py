"""Models to measure the cost of a fold on: exported networks, chains of any length, one beyond memory.

Run as a program it writes one of them, in a process of its own: a child's peak memory starts at its parent's,
so the process that measures stays small.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NETWORKS = (
    "resnet18", "resnetv2_50", "densenet121", "mobilenetv1_100", "tv_mobilenet_v2", "efficientnet_b0",
    "mobileone_s0", "repvgg_a0", "ghostnetv3_050", "res2net50_14w_8s", "tv_googlenet", "tv_inception_v3",
    "hrnet_w18_small", "visformer_tiny", "levit_128s", "convmixer_768_32",
)  # fmt: skip
"""Plain and deep, narrow and wide, re-parameterisable, attention; exported by ``tools/coverage_report``."""


def layers(
    count: int, channels: int
) -> Iterator[tuple[list[onnx.NodeProto], dict[str, np.ndarray[Any, Any]]]]:
    """Conv → BatchNorm → ReLU, one after the other, with their weights."""
    rng = np.random.default_rng(0)
    block = rng.standard_normal((channels, channels, 3, 3), np.float32) * np.float32(0.4 / channels)
    source = "x"
    for i in range(count):
        arrays = {
            f"w{i}": np.roll(block, i, 0),
            f"gamma{i}": rng.uniform(0.5, 2, channels).astype(np.float32),
            f"beta{i}": rng.standard_normal(channels).astype(np.float32),
            f"mean{i}": rng.standard_normal(channels).astype(np.float32),
            f"var{i}": rng.uniform(0.5, 2, channels).astype(np.float32),
        }
        weight, *statistics = arrays
        nodes = [
            helper.make_node("Conv", [source, weight], [f"c{i}"], f"conv{i}", pads=[1] * 4),
            helper.make_node("BatchNormalization", [f"c{i}", *statistics], [f"n{i}"], f"bn{i}"),
            helper.make_node("Relu", [f"n{i}"], [f"r{i}"], f"relu{i}"),
        ]
        source = f"r{i}"
        yield nodes, arrays


def assembled(nodes: list[onnx.NodeProto], tensors: list[TensorProto], channels: int) -> onnx.ModelProto:
    """A model of :func:`layers`."""
    shape = [1, channels, 4, 4]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, shape)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def write_chain(path: Path, nodes: int, channels: int) -> None:
    """A chain of that many nodes in one file."""
    steps = list(layers(nodes // 3, channels))
    tensors = [numpy_helper.from_array(a, name) for _, arrays in steps for name, a in arrays.items()]
    onnx.save(assembled([node for made, _ in steps for node in made], tensors, channels), path)


def write_external(path: Path, gigabytes: float) -> None:
    """A chain whose weights fill that much of a data file; none is held for longer than it takes to write it."""
    channels, nodes, tensors = 1024, [], []
    data = path.with_name("data.bin")
    with data.open("wb") as file:
        for made, arrays in layers(round(gigabytes * 1e9 / (channels**2 * 9 * 4)), channels):
            nodes += made
            for name, array in arrays.items():
                tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
                tensor.data_location = TensorProto.EXTERNAL
                place = {"location": data.name, "offset": file.tell(), "length": array.nbytes}
                for key, value in place.items():
                    tensor.external_data.add(key=key, value=str(value))
                tensors.append(tensor)
                file.write(array.data)
    path.write_bytes(assembled(nodes, tensors, channels).SerializeToString())


def export_networks(cache: Path) -> None:
    """Export :data:`NETWORKS` with random statistics, those that are not in the cache yet."""
    sys.path.extend(str(Path(__file__).resolve().parents[2] / folder) for folder in ("tools", "tests"))
    from coverage_report.architectures import by_name
    from coverage_report.export import export_all

    export_all(cache, [by_name(name) for name in NETWORKS], lambda line: print(line, file=sys.stderr))


if __name__ == "__main__":
    kind, target, *numbers = sys.argv[1:]
    if kind == "chain":
        write_chain(Path(target), int(numbers[0]), int(numbers[1]))
    elif kind == "external":
        write_external(Path(target), float(numbers[0]))
    else:
        export_networks(Path(target))
