"""Two hundred small files: ``convbn run`` against a shell loop over ``convbn fuse``: ``many.py [FILES]``.

Both are run in turn, ``ROUNDS`` times, so that a drift of the machine meets both. Said are wall times, their ratio, the
memory of the parent, and the time of a second run, which has nothing to do (``make many-cost``).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx

sys.path.extend(str(Path(__file__).resolve().parents[2] / folder) for folder in ("tools", "tests"))

from support.graphs import batchnorm, batchnorm_parameters, model, random

from performance.compiled import compiled_once

ROUNDS = 3
PLAN = 'output = "out"\n[[models]]\npath = "models/*.onnx"\n[[targets]]\nkind = "onnx"\n'
RUN = """
import resource, sys
from convbn.cli import main
code = main(["run", "plan.toml", "--quiet"])
sys.stderr.write(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10}\\n")
sys.exit(code)
"""
LOOP = f'for f in models/*.onnx; do {sys.executable} -m convbn fuse "$f" -o "loop/$(basename "$f")" --quiet; done'


def write(folder: Path, count: int) -> None:
    """Files of three convolutions, each of other weights."""
    folder.mkdir()
    for number in range(count):
        weights, nodes, last = {}, [], "x"
        for layer in range(3):
            name = f"bn{layer}"
            weights |= {f"w{layer}": random(16, 3 if layer == 0 else 16, 3, 3, seed=number + layer)}
            weights |= batchnorm_parameters(16, prefix=name, seed=number + layer)
            nodes.append(
                onnx.helper.make_node("Conv", [last, f"w{layer}"], [f"c{layer}"], name=f"conv{layer}")
            )
            nodes.append(batchnorm(f"c{layer}", f"n{layer}", prefix=name))
            last = f"n{layer}"
        onnx.save(model(nodes, {"x": [1, 3, 16, 16]}, [last], weights), folder / f"{number:03}.onnx")


def timed(command: list[str], folder: Path) -> tuple[float, int]:
    """Seconds, and the largest resident set of the process itself in bytes, where it says that."""
    begun = time.monotonic()
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    seconds = time.monotonic() - begun
    peak = [line for line in done.stderr.splitlines() if line.startswith("peak ")]
    return seconds, int(peak[-1].split()[1]) if peak else 0


def turn(count: int) -> tuple[float, float, float, int]:
    """Seconds of a loop, of a run and of the same run again, and the memory of its parent in bytes."""
    run = [sys.executable, "-c", RUN]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "models", count)
        (folder / "plan.toml").write_text(PLAN, encoding="utf-8")
        (folder / "loop").mkdir()
        planned, peak = timed(run, folder)
        looped, _ = timed(["bash", "-c", LOOP], folder)
        again, _ = timed(run, folder)
    return looped, planned, again, peak


def main(count: int) -> None:
    """Measure and say."""
    ratios = []
    with compiled_once():
        turn(2)  # the first processes compile modules
        for _ in range(ROUNDS):
            looped, planned, again, peak = turn(count)
            ratios.append(looped / planned)
            print(
                f"loop {looped:.1f} s, run {planned:.1f} s, again {again:.2f} s, parent {peak >> 20} MiB",
                flush=True,
            )
    low, high = min(ratios), max(ratios)
    print(f"{count} files: {statistics.median(ratios):.2f} × the loop's throughput ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
