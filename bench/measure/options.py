"""How a measurement is made, and with what."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from convbn.bench.runtimes.base import Session, SessionOptions, Variant
from convbn.bench.runtimes.gpu.nvml import L2
from convbn.bench.runtimes.registry import open_session
from convbn.common.progress import Progress, silent
from convbn.errors import UsageError

__all__ = ["Clock", "Instruments", "Opener", "ProtocolOptions"]

#: Monotonic time in seconds.
Clock: TypeAlias = Callable[[], float]
Opener: TypeAlias = Callable[[str, Variant, SessionOptions], Session]


@dataclass(frozen=True)
class ProtocolOptions:
    """How to measure.

    Attributes:
        seed: of the inputs, the order of blocks and the bootstrap.
        threads: threads inside one operator; None leaves each runtime its default.
        block_seconds: least length of a block.
        budget_seconds: for each runtime, warm-up included; ``min_blocks`` goes before it.
        total_seconds: for everything, loading included: what is left of it is shared out among the runtimes
            and cases to come, each of which gets ``budget_seconds`` at most. None for no limit.
        min_blocks: blocks of each variant.
        max_blocks: blocks of each variant after which there are enough; None for as many as the budget allows.
        warmup_seconds: most that each session is warmed up.
        samples: random inputs the outputs are compared on.
        input_shapes: full shapes by input name, for models with open axes.
        l2: "warm" leaves a GPU's L2 cache as the inference before left it; "flushed" overwrites it before
            each inference, outside the timing.
        memory: also measure the memory each variant takes, in a fresh process each.
    """

    seed: int = 0
    threads: int | None = None
    block_seconds: float = 0.05
    budget_seconds: float = 5.0
    total_seconds: float | None = None
    min_blocks: int = 20
    max_blocks: int | None = None
    warmup_seconds: float = 0.5
    samples: int = 2
    input_shapes: Mapping[str, tuple[int, ...]] | None = None
    l2: L2 = "warm"
    memory: bool = True

    def __post_init__(self) -> None:
        for name in ("block_seconds", "budget_seconds", "warmup_seconds", "min_blocks", "samples"):
            if not getattr(self, name) > 0:
                raise UsageError(f"must be above 0, not {getattr(self, name)}", source=f"option {name}")
        if self.total_seconds is not None and not self.total_seconds > 0:
            raise UsageError(f"must be above 0, not {self.total_seconds}", source="option total_seconds")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"must be at least 1, not {self.threads}", source="option threads")
        if self.max_blocks is not None and self.max_blocks < self.min_blocks:
            raise UsageError(
                f"must be at least min_blocks ({self.min_blocks}), not {self.max_blocks}",
                source="option max_blocks",
            )

    def to_dict(self) -> dict[str, Any]:
        """What holds for every case, JSON-ready."""
        common = ("seed", "block_seconds", "budget_seconds", "min_blocks", "warmup_seconds", "samples", "l2")
        return {name: getattr(self, name) for name in common}


@dataclass(frozen=True)
class Instruments:
    """What a measurement is made with.

    Attributes:
        clock: monotonic time in seconds.
        opener: loads a variant into a runtime, by the runtime's name.
        tell: is told what happens next, the seconds that it took so far, and those in all.
    """

    clock: Clock = time.perf_counter
    opener: Opener = open_session
    tell: Progress = silent

    @property
    def real(self) -> bool:
        """Whether models are run in the runtimes of this machine."""
        return self.opener is open_session
