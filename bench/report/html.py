"""The result as one page: no script, no request to anywhere, everything escaped, under 500 kB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from convbn.bench.report.facts import title_of
from convbn.bench.report.page import charts, folds, ground, models, outputs, results
from convbn.bench.report.page.elements import document
from convbn.common.text import clean, plural

__all__ = ["MOST_BYTES", "render"]

MOST_BYTES = 500_000
#: Longest tables of the overview and of each model that are tried, until the page fits.
_LIMITS = ((300, 300), (300, 150), (300, 100), (300, 70), (300, 50), (300, 24), (100, 12), (24, 8), (8, 4))
#: Where the raw result goes; no text of a result can be this, as they are escaped.
_RAW = "<!--raw-->"


def render(result: Mapping[str, Any], gates: Sequence[Mapping[str, Any]] = ()) -> str:
    """Lay the result out as one self-contained HTML page.

    Args:
        result: by the published schema (``BenchResult.to_dict()``).
        gates: outcomes (``convbn.bench.gates``) to show with it.

    Returns:
        HTML under 500 kB that opens from a file, prints, and reads on a phone, in light and dark.
    """
    raw = ground.raw(result)
    for limit, fine in _LIMITS:
        page = _page(result, gates, limit, fine)
        room = MOST_BYTES - len(page.encode())
        if room > 0:
            return page.replace(_RAW, raw if len(raw) < room else "")
    return page.replace(_RAW, "")


def _page(result: Mapping[str, Any], gates: Sequence[Mapping[str, Any]], limit: int, fine: int) -> str:
    cpu = clean(result["environment"]["cpu"] or "unknown CPU")
    gpus = [clean(gpu.get("name", "GPU"), 60) for gpu in result["environment"]["gpus"]]
    created = clean(result["created"]).replace("T", " ").replace("+00:00", " UTC")
    under = " · ".join((created, cpu, *gpus[:2], f"measured in {_duration(result['seconds'])}"))
    body = "".join(
        (
            results.verdicts(result, limit),
            results.gates(gates, limit),
            results.facts(result, limit),
            results.results(result, limit),
            charts.latencies(result, limit),
            folds.batchnorms(result, limit),
            outputs.equality(result, limit),
            models.models(result, limit, fine),
            ground.environment(result, limit),
            ground.reproduce(result, limit),
            _RAW,
        )
    )
    foot = (
        "<footer>Made by convbn. Times are per inference; outputs were compared before anything was timed; no "
        "samples were left out.</footer>"
    )
    return document(escape(title_of(result)), "benchmark", escape(under), body + foot)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return plural(minutes, "minute") if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
