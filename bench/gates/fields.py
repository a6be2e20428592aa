"""What a condition can speak of: each field's unit, and how it is read from a comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from convbn.bench.results.compare import Change
from convbn.bench.results.comparisons import Comparison

__all__ = ["FIELDS", "UNITS", "Field", "Judged", "Value"]

Value = float | str | None
Unit = Literal["", "time", "size", "word"]

#: Factor to the base unit (seconds, bytes) by unit.
UNITS: Mapping[Unit, Mapping[str, float]] = {
    "": {},
    "time": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9},
    "size": {
        "B": 1.0,
        "kB": 1e3,
        "MB": 1e6,
        "GB": 1e9,
        "KiB": 1024.0,
        "MiB": 1024.0**2,
        "GiB": 1024.0**3,
    },
    "word": {},
}


@dataclass(frozen=True)
class Judged:
    """What a condition is judged on: a comparison, and how it changed since the baseline result."""

    comparison: Comparison
    change: Change | None = None


@dataclass(frozen=True)
class Field:
    """A name in a condition.

    Attributes:
        read: its value; None where it was not measured.
        what: in words, for the help.
        unit: of its values.
        timed: whether another run may give another value, so that a failure has to be confirmed.
        whole: whether it is the same for every row of a case, so that it is judged once.
    """

    read: Callable[[Judged], Value]
    what: str
    unit: Unit = ""
    timed: bool = True
    whole: bool = False


def _row(*keys: str) -> Callable[[Judged], Value]:
    """A number of the row, or one of a group of it."""
    return lambda subject: _number(subject.comparison.row, *keys)


def _fold(*keys: str) -> Callable[[Judged], Value]:
    return lambda subject: _number(subject.comparison.case["fold"], *keys)


def _number(values: Any, *keys: str) -> float | None:
    for key in keys:
        values = None if values is None else values[key]
    return None if values is None else float(values)


def _folded(subject: Judged) -> Value:
    counts = [_number(subject.comparison.case["fold"], "batchnorm", when) for when in ("before", "after")]
    return None if counts[0] is None or counts[1] is None else counts[0] - counts[1]


def _ratio(subject: Judged) -> Value:
    detected = subject.comparison.row["verdict"] != "no difference detected"
    return _row("ratio", "median")(subject) if detected else 1.0


def _change(subject: Judged) -> Value:
    undetected = subject.change is not None and subject.change.verdict == "no difference detected"
    return 1.0 if undetected else _change_part("median")(subject)


def _change_part(key: str) -> Callable[[Judged], Value]:
    def read(subject: Judged) -> Value:
        ratio = subject.change and subject.change.ratio
        return float(getattr(ratio, key)) if ratio else None

    return read


def _size(subject: Judged, row: str = "row") -> float | None:
    found = subject.comparison
    name = getattr(found, row)["side"]
    return next((_number(one, "bytes") for one in found.case["sides"] if one["name"] == name), None)


def _size_ratio(subject: Judged) -> Value:
    return _quotient(_size(subject), _size(subject, "baseline"))


def _memory_ratio(subject: Judged) -> Value:
    found = subject.comparison
    return _quotient(*(_number(row, "peak_memory_bytes") for row in (found.row, found.baseline)))


def _quotient(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def _error(subject: Judged) -> Value:
    equality = subject.comparison.row["equality"]
    errors = [output["rel_error"] for output in equality["outputs"]] if equality else []
    return None if not errors or None in errors else float(max(errors))


def _verdict(subject: Judged) -> Value:
    verdict = subject.comparison.row["verdict"]
    return "same" if verdict == "no difference detected" else verdict


FIELDS: Mapping[str, Field] = {
    "ratio": Field(_ratio, "time / baseline time; 1 where no difference was detected"),
    "ratio.median": Field(_row("ratio", "median"), "the same as measured, difference or not"),
    "ratio.low": Field(_row("ratio", "low"), "lower end of its interval"),
    "ratio.high": Field(_row("ratio", "high"), "upper end of its interval"),
    "change": Field(_change, "ratio to --baseline's result; 1 where no difference was detected"),
    "change.low": Field(_change_part("low"), "lower end of its interval"),
    "change.high": Field(_change_part("high"), "upper end of its interval"),
    "latency.median": Field(_row("latency_seconds", "median"), "time of an inference", "time"),
    "latency.mean": Field(_row("latency_seconds", "mean"), "its mean", "time"),
    "latency.p90": Field(_row("latency_seconds", "p90"), "its 90th percentile", "time"),
    "latency.p95": Field(_row("latency_seconds", "p95"), "its 95th percentile", "time"),
    "latency.p99": Field(_row("latency_seconds", "p99"), "its 99th percentile", "time"),
    "throughput": Field(_row("throughput_per_second"), "samples a second"),
    "memory": Field(_row("peak_memory_bytes"), "peak memory", "size"),
    "memory.ratio": Field(_memory_ratio, "peak memory / the baseline's"),
    "load": Field(_row("load_seconds"), "time from the model to a session that is ready", "time"),
    "verdict": Field(_verdict, "faster, slower or same", "word"),
    "error": Field(_error, "largest relative error of the outputs", timed=False),
    "size": Field(_size, "size of the model", "size", timed=False),
    "size.ratio": Field(_size_ratio, "size / the baseline's", timed=False),
    "batchnorm.left": Field(_fold("batchnorm", "after"), "BatchNorms that stay", timed=False, whole=True),
    "batchnorm.folded": Field(_folded, "BatchNorms that went", timed=False, whole=True),
    "nodes": Field(_fold("nodes", "after"), "operators after the fold", timed=False, whole=True),
}
