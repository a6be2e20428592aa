"""``convbn.gates``: conditions judged on a measurement, in Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convbn.bench.gates.judge import GateOutcome, gates_from, judge
from convbn.bench.results.comparisons import SELF_FUSED
from convbn.bench.results.result import BenchResult

__all__ = ["gates"]


def gates(
    result: BenchResult | Mapping[str, Any],
    *conditions: str,
    baseline: BenchResult | Mapping[str, Any] | None = None,
    allow_missing: bool = False,
) -> tuple[GateOutcome, ...]:
    """Judge conditions on a measurement, as ``convbn bench --fail-if`` does.

    Args:
        result: of :func:`convbn.bench`, or what its JSON holds.
        conditions: each makes the result fail where it is true, as ``ratio > 1.02`` (docs/ci.md).
        baseline: an earlier result; without a condition on ``change`` a side that got slower since fails.
        allow_missing: skip what was not measured; else it fails.

    Returns:
        One outcome for each condition and side in each runtime; ``outcome.fails`` says whether it fails.

    Raises:
        UsageError: a condition cannot be read.
    """
    value, before = (None if one is None else _plain(one) for one in (result, baseline))
    read = gates_from(conditions, baseline=before is not None, allow_missing=allow_missing)
    return judge(value or {}, read, baseline=before, references=(SELF_FUSED,))


def _plain(result: BenchResult | Mapping[str, Any]) -> Mapping[str, Any]:
    return result if isinstance(result, Mapping) else result.to_dict()
