"""One warm process that folds a file and loads and saves it, in turns; prints the CPU seconds of each turn."""

from __future__ import annotations

import json
import random
import sys
import time

import onnx

from convbn.cli import main


def fold(source: str, target: str) -> None:
    """What ``convbn fuse`` does."""
    if main(["fuse", source, "-o", target, "--no-verify", "--force", "--quiet"]):
        raise SystemExit(f"convbn fuse {source} failed")


def load_and_save(source: str, target: str) -> None:
    """The least that reading and writing costs through onnx."""
    onnx.save(onnx.load(source), target)


if __name__ == "__main__":
    target, rounds, *sources = sys.argv[1:]
    order = random.Random(0)
    sides = {"fuse": fold, "load_save": load_and_save}
    fold(sources[0], target)  # imports
    for source in sources:
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(int(rounds)):
            for name in order.sample(sorted(sides), len(sides)):
                start = time.process_time()
                sides[name](source, target)
                seconds[name].append(time.process_time() - start)
        print(json.dumps({"source": source, **seconds}), flush=True)
