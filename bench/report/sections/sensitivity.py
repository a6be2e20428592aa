"""What each layer of an int8 model loses by being quantised alone: a bar a layer, the worst first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from html import escape
from typing import Any

from convbn.bench.report.sections import marks
from convbn.bench.results.comparisons import case_label
from convbn.common.document.model import (
    MARKDOWN,
    PAGE,
    Block,
    Column,
    Details,
    Items,
    Picture,
    Row,
    Section,
    Table,
)
from convbn.common.text import clean, number

__all__ = ["sensitivity"]

_MOST_BARS = 40
_MOST_NAMED = 8
_MOST_MODELS = 12
_LEAD = (
    "The relative RMS error of the outputs with one layer in int8 and all others in float32, on calibration data, as "
    "convbn export --sensitivity found it. Layers at the top are the first to keep in float32."
)


def sensitivity(result: Mapping[str, Any]) -> Section:
    """Of each side whose file says it; empty where none does."""
    found = list(_losses(result))[:_MOST_MODELS]
    blocks: list[Block] = []
    for label, losses in found:
        title = label if len(found) > 1 else ""
        start = f"{title}: " if title else ""
        worst = [f"{start}{_layer(loss)} {_error(loss)}" for loss in losses[:_MOST_NAMED]]
        table = Details(f"All {len(losses):,} layers", [_table(losses)], depth=PAGE)
        blocks += [Picture(cache(partial(_bars, losses[:_MOST_BARS])), title, "card bars")]
        blocks += [table, Items(worst, last=MARKDOWN)]
    return Section("What int8 costs, layer by layer", blocks, _LEAD)


def _losses(result: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[Mapping[str, Any]]]]:
    """Each list once: a side that was folded bears the record of what it was folded from."""
    seen: list[Any] = []
    for case in result["cases"]:
        for side in case["sides"]:
            losses = side.get("sensitivity")
            if losses and losses not in seen:
                seen.append(losses)
                yield f"{case_label(result, case)}, {clean(side['name'], 60)}", losses


def _bars(losses: Sequence[Mapping[str, Any]]) -> str:
    worst = max((loss["error"] for loss in losses if loss["error"] is not None), default=0.0) or 1.0
    rows = []
    for loss in losses:
        share = 1.0 if loss["error"] is None else loss["error"] / worst
        name, error = _layer(loss), _error(loss)
        rows.append(
            f'<div class="bar-row"><span class="what">{escape(name)}</span>{marks.bar(share, f"{name}: {error}")}'
            f'<span class="num">{error}</span></div>'
        )
    return "".join(rows)


def _layer(loss: Mapping[str, Any]) -> str:
    return f"{clean(loss['node'], 60)} ({clean(loss['operator'], 20)})"


def _error(loss: Mapping[str, Any]) -> str:
    return "infinite" if loss["error"] is None else number(loss["error"])


def _table(losses: Sequence[Mapping[str, Any]]) -> Table:
    columns = [Column("Layer"), Column("Operator"), Column("Error with it alone in int8", "num")]
    rows = [Row([clean(loss["node"], 90), clean(loss["operator"], 20), _error(loss)]) for loss in losses]
    return Table("What each layer loses", columns, rows)
