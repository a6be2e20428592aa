"""Pairs each side of a result with its baseline; geometric means over several models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from convbn.bench.results.statistics import Ratio
from convbn.common.text import clean, plural

__all__ = [
    "SELF_FUSED",
    "Comparison",
    "Summary",
    "case_label",
    "comparisons",
    "geometric_mean",
    "measured",
    "summaries",
]


SELF_FUSED = "fused by runtime"
"""The side that is the original, optimised by the runtime itself: a reference, and not convbn's doing."""


@dataclass(frozen=True)
class Comparison:
    """One side against the baseline in one runtime of one case.

    Attributes:
        case: by the published schema.
        row: of the side. Where nothing at all was measured in a runtime, or there is nothing to compare
            with, it is the baseline's row and stands for all of them.
        baseline: row of the side it is compared with.
        control: the runtime's A/A control.
    """

    case: Mapping[str, Any]
    row: Mapping[str, Any]
    baseline: Mapping[str, Any]
    control: Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """One side in one runtime over all cases that have it.

    Attributes:
        runtime: its name.
        side: name of the side.
        base: name of what it is compared with.
        faster: number of cases with this verdict.
        slower: likewise.
        same: likewise, "no difference detected".
        missing: number of cases in which it was not measured.
        overall: geometric mean of the time ratios with its interval; None if nothing was measured.
        verdict: of ``overall``, by the rule for single rows and the middle one of the noise floors.
        note: what to expect of the runtime.
        reason: why it was not measured where it was not, the first one found.
        noise_floor: the middle one.
        ratios: each model with its time ratio.
    """

    runtime: str
    side: str
    base: str
    faster: int
    slower: int
    same: int
    missing: int
    overall: Mapping[str, Any] | None
    verdict: str | None
    note: str | None
    reason: str | None
    noise_floor: float | None = None
    ratios: tuple[tuple[str, float], ...] = ()

    @property
    def middle(self) -> float:
        """The median of the models' time ratios."""
        return median(ratio for _, ratio in self.ratios)

    @property
    def rests_on(self) -> tuple[str, float] | None:
        """The model without which the mean has less than half of its effect, and that mean; None without one."""
        logs = {name: math.log(ratio) for name, ratio in self.ratios}
        if len(logs) < 3:
            return None
        total = math.fsum(logs.values())
        name = max(logs, key=lambda one: logs[one] * total)
        mean, without = total / len(logs), (total - logs[name]) / (len(logs) - 1)
        return (name, math.exp(without)) if without * mean < mean * mean / 2 else None

    @property
    def measured(self) -> int:
        """Number of cases with times."""
        return self.faster + self.slower + self.same

    @property
    def counts(self) -> str:
        """The verdicts counted, in words."""
        told = [
            f"{word} in {count}"
            for count, word in (
                (self.faster, "faster"),
                (self.same, "no difference"),
                (self.slower, "slower"),
                (self.missing, "not measured"),
            )
            if count
        ]
        return f"{plural(self.measured + self.missing, 'model')}: {', '.join(told)}"


def measured(row: Mapping[str, Any]) -> bool:
    """Whether a row holds times."""
    return bool(row["status"] == "measured")


def case_label(result: Mapping[str, Any], case: Mapping[str, Any]) -> str:
    """The model's name with the conditions that differ within the result: ``resnet18 · batch 8``."""
    cases = result["cases"]
    parts = [clean(case["name"], 60)]
    for key, words in (("batch", "batch {}"), ("precision", "{}"), ("threads", "{} threads")):
        if len({str(other[key]) for other in cases}) > 1:
            value = "default" if case[key] is None else clean(case[key], 20)
            parts.append(words.format(value))
    return " · ".join(parts)


def comparisons(result: Mapping[str, Any]) -> Iterator[Comparison]:
    """Every comparison, case by case, in the order of the rows."""
    for case in result["cases"]:
        for control in case["runtimes"]:
            rows = [row for row in case["rows"] if row["runtime"] == control["runtime"]]
            if not rows:
                continue
            alone = len(rows) == 1 or not measured(rows[0])
            for row in rows[:1] if alone else rows[1:]:
                yield Comparison(case, row, rows[0], control)


def summaries(result: Mapping[str, Any]) -> list[Summary]:
    """What the comparisons come to, one for each runtime and side."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for found in comparisons(result):
        groups.setdefault((found.row["runtime"], found.row["side"]), []).append(found)
    return [_summary(result, key, group) for key, group in groups.items()]


def _summary(result: Mapping[str, Any], key: tuple[str, str], group: Sequence[Comparison]) -> Summary:
    compared = [one for one in group if one.row["ratio"] is not None]
    verdicts = [one.row["verdict"] for one in compared]
    missing = [one for one in group if not measured(one.row)]
    overall = geometric_mean([one.row["ratio"] for one in compared])
    floors = sorted(one.control["noise_floor"] for one in compared)
    return Summary(
        *key,
        base=group[0].baseline["side"],
        faster=verdicts.count("faster"),
        slower=verdicts.count("slower"),
        same=verdicts.count("no difference detected"),
        missing=len(missing),
        overall=overall,
        verdict=None if overall is None else Ratio(**overall).verdict(floors[len(floors) // 2]),
        note=group[0].control["note"],
        reason=missing[0].row["reason"] if missing else None,
        noise_floor=floors[len(floors) // 2] if floors else None,
        ratios=tuple((case_label(result, one.case), one.row["ratio"]["median"]) for one in compared),
    )


def geometric_mean(ratios: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The geometric mean of time ratios.

    The interval is propagated from the single ones, which are independent: with half-widths wᵢ of the
    logarithms, that of the mean is √Σwᵢ² / n.

    Args:
        ratios: by the published schema.

    Returns:
        A ratio by the published schema; ``pairs`` is the sum. None without ratios.
    """
    if not ratios:
        return None
    count = len(ratios)
    middle = [math.log(ratio["median"]) for ratio in ratios]
    down = [log - math.log(ratio["low"]) for log, ratio in zip(middle, ratios, strict=True)]
    up = [math.log(ratio["high"]) - log for log, ratio in zip(middle, ratios, strict=True)]
    centre = math.fsum(middle) / count
    return {
        "median": math.exp(centre),
        "low": math.exp(centre - math.hypot(*down) / count),
        "high": math.exp(centre + math.hypot(*up) / count),
        "confidence": ratios[0]["confidence"],
        "pairs": sum(ratio["pairs"] for ratio in ratios),
    }
