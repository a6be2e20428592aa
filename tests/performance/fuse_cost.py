"""What ``convbn fuse`` costs, against the least that reading and writing the same file costs.

Run ``python tests/performance/fuse_cost.py [MEGABYTES [ROUNDS]]``. Both sides run as processes of their own,
imports included, interleaved in random order: ``convbn fuse IN -o OUT --no-verify`` and
``python -c 'onnx.save(onnx.load(IN), OUT)'``. CPU seconds are user plus system time of the process, memory
its largest resident set.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 256
MEGABYTE_PER_LAYER = CHANNELS * CHANNELS * 9 * 4 / 1e6


def chain(megabytes: float) -> onnx.ModelProto:
    """Conv → BatchNorm → ReLU, as often as it takes to fill the file."""
    rng = np.random.default_rng(0)
    nodes, tensors, source = [], [], "x"
    for i in range(max(1, round(megabytes / MEGABYTE_PER_LAYER))):
        weight = rng.standard_normal((CHANNELS, CHANNELS, 3, 3), np.float32) * np.float32(0.02)
        tensors.append(numpy_helper.from_array(weight, f"w{i}"))
        for name, values in (
            ("gamma", rng.uniform(0.5, 2, CHANNELS)),
            ("beta", rng.standard_normal(CHANNELS)),
            ("mean", rng.standard_normal(CHANNELS)),
            ("var", rng.uniform(0.5, 2, CHANNELS)),
        ):
            tensors.append(numpy_helper.from_array(values.astype(np.float32), f"{name}{i}"))
        statistics_of = [f"{name}{i}" for name in ("gamma", "beta", "mean", "var")]
        nodes += [
            helper.make_node("Conv", [source, f"w{i}"], [f"c{i}"], f"conv{i}", pads=[1] * 4),
            helper.make_node("BatchNormalization", [f"c{i}", *statistics_of], [f"n{i}"], f"bn{i}"),
            helper.make_node("Relu", [f"n{i}"], [f"r{i}"], f"relu{i}"),
        ]
        source = f"r{i}"
    shape = [1, CHANNELS, 8, 8]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, shape)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def cost(command: list[str]) -> tuple[float, float]:
    """CPU seconds and peak megabytes of one process."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[:3]} failed with {os.waitstatus_to_exitcode(status)}")
    process.returncode = 0
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def measure(megabytes: float, rounds: int) -> dict[str, object]:
    """Both sides, interleaved; the ratio is the median of the rounds' ratios."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = str(Path(folder, "in.onnx")), str(Path(folder, "out.onnx"))
        # Written by a process of its own: a child's peak memory starts at its parent's size.
        subprocess.run([sys.executable, __file__, "--write", str(megabytes), source], check=True)
        commands = {
            "convbn fuse": [
                *(sys.executable, "-m", "convbn", "fuse", source, "-o", target),
                *("--no-verify", "--force", "--quiet"),
            ],
            "load and save": [
                *(sys.executable, "-c"),
                f"import onnx; onnx.save(onnx.load({source!r}), {target!r})",
            ],
        }
        order = random.Random(0)
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name in order.sample(sorted(commands), len(commands)):
                samples[name].append(cost(commands[name]))
        size = Path(source).stat().st_size / 1e6
    pairs = list(zip(samples["convbn fuse"], samples["load and save"], strict=True))
    ratios = sorted(a[0] / b[0] for a, b in pairs)
    return {
        "megabytes": round(size, 1),
        "rounds": rounds,
        "cpu_seconds": {name: round(statistics.median(s[0] for s in samples[name]), 3) for name in commands},
        "peak_megabytes": {name: round(statistics.median(s[1] for s in samples[name])) for name in commands},
        "cpu_ratio": {
            "median": round(statistics.median(ratios), 2),
            "lowest": round(ratios[0], 2),
            "highest": round(ratios[-1], 2),
        },
        "memory_ratio": round(statistics.median(a[1] / b[1] for a, b in pairs), 2),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {name: version(name) for name in ("convbn", "onnx", "numpy", "onnx-graphsurgeon")},
    }


def main() -> int:
    """Print the result as JSON; exit code 1 if the promise of 2 × is broken."""
    if sys.argv[1:2] == ["--write"]:
        onnx.save(chain(float(sys.argv[2])), sys.argv[3])
        return 0
    megabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 100.0
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 7
    result = measure(megabytes, rounds)
    print(json.dumps(result, indent=2))
    ratio = result["cpu_ratio"]
    return 0 if isinstance(ratio, dict) and ratio["median"] <= 2 else 1


if __name__ == "__main__":
    sys.exit(main())
