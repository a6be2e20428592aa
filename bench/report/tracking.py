"""The shapes that benchmark-tracking services read: one list of numbers for each commit.

``github``: https://github.com/benchmark-action/github-action-benchmark, tool ``customSmallerIsBetter``.
``bencher``: https://bencher.dev/docs/reference/bencher-metric-format/.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from convbn.bench.results.comparisons import measured
from convbn.common.text import clean

__all__ = ["bencher", "github"]


def github(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Median times and time ratios, all smaller is better.

    Args:
        result: by the published schema.

    Returns:
        ``[{name, unit, value, range, extra}]``; what was not measured has no entry.
    """
    entries = []
    for name, row in _rows(result):
        time, ratio = row["latency_seconds"], row["ratio"]
        spread = (time["p75"] - time["p25"]) / 2 * 1e3
        entries.append(
            {
                "name": f"{name}: median",
                "unit": "ms",
                "value": time["median"] * 1e3,
                "range": f"± {spread:.3g}",
                "extra": f"p95 {time['p95'] * 1e3:.4g} ms, {time['n']} inferences",
            }
        )
        if ratio is not None:
            half = max(ratio["high"] - ratio["median"], ratio["median"] - ratio["low"])
            entries.append(
                {
                    "name": f"{name}: time ratio",
                    "unit": "× baseline",
                    "value": ratio["median"],
                    "range": f"± {half:.3g}",
                    "extra": f"{row['verdict']}, interval {ratio['low']:.4f} to {ratio['high']:.4f}",
                }
            )
    return entries


def bencher(result: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Bencher Metric Format: latency in nanoseconds, and the time ratio with its interval.

    Args:
        result: by the published schema.

    Returns:
        Benchmark → measure → value and bounds.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, row in _rows(result):
        time, ratio = row["latency_seconds"], row["ratio"]
        keys = {"value": "median", "lower_value": "p25", "upper_value": "p75"}
        found[name] = {"latency": {key: time[which] * 1e9 for key, which in keys.items()}}
        if ratio is not None:
            ends = {"value": "median", "lower_value": "low", "upper_value": "high"}
            found[name]["time-ratio"] = {key: ratio[which] for key, which in ends.items()}
    return found


def _rows(result: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for case in result["cases"]:
        for row in case["rows"]:
            if measured(row):
                yield f"{clean(case['id'], 80)} / {clean(row['runtime'], 40)} / {clean(row['side'], 60)}", row
