"""What a measurement gives: one value, written as JSON (``bench-result.schema.json``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from convbn.bench.equality import Equality
from convbn.bench.statistics import Latency, Ratio

__all__ = ["SCHEMA_VERSION", "BenchResult", "ModelFile", "Row", "RuntimeControl", "Verdict"]

SCHEMA_VERSION = "1"

Verdict: TypeAlias = Literal["baseline", "faster", "slower", "no difference detected"]


@dataclass(frozen=True)
class ModelFile:
    """One side: its name, and path, SHA-256 and size in bytes if it came from a file."""

    name: str
    path: str | None = None
    sha256: str | None = None
    bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"name": self.name, "path": self.path, "sha256": self.sha256, "bytes": self.bytes}


@dataclass(frozen=True)
class Row:
    """One side in one runtime.

    Attributes:
        runtime: its name.
        side: name of the model.
        status: "measured" or "not measured".
        reason: why it was not measured; None if it was.
        equality: of its outputs to the baseline's in this runtime; None for the baseline.
        latency: of single inferences.
        block_seconds: raw samples, seconds per inference, one a block.
        calls_per_block: inferences in each block.
        warm: whether the warm-up ended with stable times.
        ratio: time / baseline time with its interval; None for the baseline.
        verdict: what the ratio shows.
    """

    runtime: str
    side: str
    status: Literal["measured", "not measured"]
    reason: str | None = None
    equality: Equality | None = None
    latency: Latency | None = None
    block_seconds: tuple[float, ...] = ()
    calls_per_block: int | None = None
    warm: bool | None = None
    ratio: Ratio | None = None
    verdict: Verdict | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "runtime": self.runtime,
            "side": self.side,
            "status": self.status,
            "reason": self.reason,
            "equality": None if self.equality is None else self.equality.to_dict(),
            "latency_seconds": None if self.latency is None else self.latency.to_dict(),
            "block_seconds": list(self.block_seconds),
            "calls_per_block": self.calls_per_block,
            "warm": self.warm,
            "ratio": None if self.ratio is None else self.ratio.to_dict(),
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class RuntimeControl:
    """What one runtime calls a difference on this machine.

    Attributes:
        runtime: its name.
        control: a second session of the baseline against the first (A/A); None if nothing was measured.
        noise_floor: how far from 1 that interval reaches; smaller effects are not called differences.
        note: what to expect of this runtime, if there is something to expect.
    """

    runtime: str
    control: Ratio | None = None
    noise_floor: float | None = None
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "runtime": self.runtime,
            "control": None if self.control is None else self.control.to_dict(),
            "noise_floor": self.noise_floor,
            "note": self.note,
        }


@dataclass(frozen=True)
class BenchResult:
    """Everything a report is made from.

    Attributes:
        rows: one a runtime and side, the baseline first in each runtime.
        runtimes: the A/A control of each runtime.
        models: the sides, the baseline first.
        inputs: name, dtype and shape of each input that was timed.
        options: of the protocol.
        environment: what it ran on.
        created: start in UTC, ISO 8601.
        seconds: the whole measurement took.
        title: heading of the reports.
        command: what to type to measure again.
        fold: the report of the fold, if one side is the folded other.
        extra: further facts for the reports, each ``{"label": …, "value": …}``.
    """

    rows: tuple[Row, ...]
    runtimes: tuple[RuntimeControl, ...]
    models: tuple[ModelFile, ...]
    inputs: tuple[Mapping[str, Any], ...]
    options: Mapping[str, Any]
    environment: Mapping[str, Any]
    created: str
    seconds: float
    title: str | None = None
    command: str | None = None
    fold: Mapping[str, Any] | None = None
    extra: Sequence[Mapping[str, str]] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """JSON by the published schema."""
        return {
            "schema_version": SCHEMA_VERSION,
            "title": self.title,
            "created": self.created,
            "seconds": self.seconds,
            "command": self.command,
            "models": [model.to_dict() for model in self.models],
            "inputs": [dict(spec) for spec in self.inputs],
            "rows": [row.to_dict() for row in self.rows],
            "runtimes": [control.to_dict() for control in self.runtimes],
            "options": dict(self.options),
            "environment": dict(self.environment),
            "fold": None if self.fold is None else dict(self.fold),
            "extra": [dict(fact) for fact in self.extra],
        }
