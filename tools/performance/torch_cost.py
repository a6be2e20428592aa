"""What folding a ResNet-50 costs, against ``torch.fx.experimental.optimization.fuse`` on the same module.

Run ``python tools/performance/torch_cost.py [ROUNDS]``. Both leave the module alone: copying it and tracing it are
part of either. Time is CPU seconds of one process, the sides interleaved in random order; the ratio is the median
of the rounds' ratios with a bootstrap interval. Memory is how much a fresh process grows at its peak, in
megabytes, beside the size of the model.
"""

from __future__ import annotations

import gc
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

ROUNDS = 15
SIDES = ("convbn", "torch.fx")


def network() -> Any:
    """A ResNet-50 with statistics as training leaves them."""
    from support.networks import randomised, torchvision_models

    return randomised(torchvision_models().resnet50(weights=None))


def fold(side: str, module: Any) -> Any:
    """One fold, capture and copy included; nothing is verified on either side."""
    if side == "convbn":
        from convbn.fuse.fold import fold as convbn_fold

        return convbn_fold(module).model
    from torch.fx.experimental.optimization import fuse

    return fuse(module)


def seconds(side: str, module: Any) -> float:
    """CPU seconds of one fold."""
    gc.collect()
    begun = time.process_time()
    result = fold(side, module)
    spent = time.process_time() - begun
    del result
    return spent


def growth(side: str) -> float:
    """Megabytes by which a process of its own grows at its peak; imports and the model are there before."""
    code = f"import torch_cost as c; print(json.dumps(c.peak({side!r})))"
    script = f"import json, sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); {code}"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def peak(side: str) -> float:
    """The growth of this process by one fold, after a small one that imports what it needs; Linux only."""
    from torch import nn

    fold(side, nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval())
    module = network()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = high_water_mark()
    result = fold(side, module)
    after = high_water_mark()
    del result
    return (after - before) / 1024


def high_water_mark() -> int:
    """The largest resident set so far, in kilobytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Median, and its 95 % bootstrap interval."""
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(2000))
    return statistics.median(ratios), medians[50], medians[1949]


def main(rounds: int) -> None:
    """Measure and print."""
    module = network()
    for side in SIDES:
        fold(side, module)
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    order = random.Random(0)
    for _ in range(rounds):
        for side in order.sample(SIDES, k=2):
            times[side].append(seconds(side, module))
    ratio, low, high = interval([a / b for a, b in zip(*times.values(), strict=True)])
    size = sum(t.numel() * t.element_size() for t in module.state_dict().values()) / 1e6
    print(f"resnet50, {size:.0f} MB, {rounds} rounds")
    for side in SIDES:
        best, middle = min(times[side]), statistics.median(times[side])
        print(f"  {side:9} {middle:.3f} s median, {best:.3f} s best, peak {growth(side):+.0f} MB")
    print(f"  CPU ratio convbn / torch.fx: {ratio:.2f} [{low:.2f}, {high:.2f}]")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
