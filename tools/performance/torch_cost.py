"""What folding a module costs, each line against what PyTorch takes for the like on the same module.

Run ``python tools/performance/torch_cost.py [ROUNDS]``. Lines:

* a ResNet-50 folded without inputs, against ``torch.fx.experimental.optimization.fuse``, with the memory of either;
* the capture of other networks with example inputs, against ``torch.export.export``;
* the fold of a recurrent decoder that neither exporter takes, against one run of it.

Neither side changes the module: copying it and tracing it are part of both. Time is CPU seconds of one process, the
sides interleaved in random order; the ratio is the median of the rounds' ratios with a bootstrap interval. Memory is
how much a fresh process grows at its peak, in megabytes, beside the size of the model.
"""

from __future__ import annotations

import gc
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

ROUNDS = 15
SIDES = ("convbn", "torch.fx")
NETWORKS = ("resnet50", "densenet121", "mobilenet_v3_small", "googlenet", "lraspp_mobilenet_v3_large")
"""Of torchvision: plain, deep with many readers, narrow, branching, and a segmenter."""

STEPS = 64
"""Of the decoder's loop."""


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


def seconds(call: Callable[[], Any]) -> float:
    """CPU seconds of one call; what it gives is let go afterwards."""
    gc.collect()
    begun = time.process_time()
    result = call()
    spent = time.process_time() - begun
    del result
    return spent


def decoder() -> Any:
    """A convolutional encoder, and a GRU that stops where its own output says so, which takes all steps here."""
    import torch
    from support.networks import randomised
    from torch import nn

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(
                *(nn.Sequential(nn.Conv2d(c, 16, 3), nn.BatchNorm2d(16), nn.ReLU()) for c in (3, 16))
            )
            self.cell, self.head = nn.GRUCell(16, 16), nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            features = self.encoder(x).mean((2, 3))
            hidden, said = torch.zeros_like(features), []
            for _ in range(STEPS):
                hidden = self.cell(features, hidden)
                said.append(self.head(hidden))
                if bool((said[-1] > 1e6).all()):
                    break
            return torch.stack(said, 1)

    return randomised(Decoder())


def pairs() -> dict[str, tuple[Any, tuple[str, Callable[[], Any]], tuple[str, Callable[[], Any]]]]:
    """By line: the module, then both sides with their names."""
    import torch
    from support.networks import randomised, torchvision_models

    from convbn.fuse.fold import fold as convbn_fold
    from convbn.fuse.frontends.torch.capture.module import capture_module

    resnet = network()
    made: dict[str, Any] = {
        "fold of resnet50, no inputs": (
            resnet,
            *((side, lambda side=side: fold(side, resnet)) for side in SIDES),
        )
    }
    inputs = (torch.rand(1, 3, 224, 224),)
    for name in NETWORKS:
        models = torchvision_models()
        build = getattr(models, name, None) or getattr(models.segmentation, name)
        extra = {"init_weights": False} if name == "googlenet" else {}
        module = randomised(
            build(weights=None, **({"weights_backbone": None} if "raspp" in name else {}), **extra)
        )
        made[f"capture of {name}"] = (
            module,
            ("convbn", lambda module=module: capture_module(module, inputs)),
            ("torch.export", lambda module=module: torch.export.export(module, inputs, strict=False)),
        )
    loop = decoder()
    small = (torch.rand(1, 3, 16, 16),)
    made[f"fold of a decoder, {STEPS} steps"] = (
        loop,
        ("convbn", lambda: convbn_fold(loop, small)),
        ("a run", lambda: loop(*small)),
    )
    return made


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


def measured(
    first: tuple[str, Callable[[], Any]], second: tuple[str, Callable[[], Any]], rounds: int
) -> Mapping[str, list[float]]:
    """CPU seconds by side, in rounds of both sides in random order, after one of each that does not count."""
    sides = dict((first, second))
    for call in sides.values():
        call()
    times: dict[str, list[float]] = {side: [] for side in sides}
    order = random.Random(0)
    for _ in range(rounds):
        for side in order.sample(list(sides), k=2):
            times[side].append(seconds(sides[side]))
    return times


def main(rounds: int) -> None:
    """Measure and print."""
    for line, (module, first, second) in pairs().items():
        times = measured(first, second, rounds)
        ratio, low, high = interval([a / b for a, b in zip(*times.values(), strict=True)])
        size = sum(t.numel() * t.element_size() for t in module.state_dict().values()) / 1e6
        print(f"{line}, {size:.0f} MB, {rounds} rounds")
        for side, spent in times.items():
            peak_of = f", peak {growth(side):+.0f} MB" if "torch.fx" in times else ""
            print(f"  {side:12} {statistics.median(spent):.3f} s median, {min(spent):.3f} s best{peak_of}")
        print(f"  CPU ratio {' / '.join(times)}: {ratio:.2f} [{low:.2f}, {high:.2f}]", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
