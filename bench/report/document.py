"""A measurement's report as one document, which the terminal, Markdown and the page lay out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from convbn.bench.report.facts import environment_lines, option_lines, title_of
from convbn.bench.report.sections.banner import banner
from convbn.bench.report.sections.folds import batchnorms
from convbn.bench.report.sections.models import equality, latencies, models
from convbn.bench.report.sections.sensitivity import sensitivity
from convbn.bench.report.sections.verdicts import cards, gates, results
from convbn.common.document.model import (
    MARKDOWN,
    PAGE,
    TERMINAL,
    Block,
    Code,
    Details,
    Document,
    Facts,
    Section,
    Text,
)
from convbn.common.text import clean, plural

__all__ = ["document"]

_MOST_RAW_BYTES = 150_000


def document(result: Mapping[str, Any], outcomes: Sequence[Mapping[str, Any]] = ()) -> Document:
    """Everything there is to say of a result.

    Args:
        result: by the published schema (``BenchResult.to_dict()``).
        outcomes: of gates (``convbn.bench.gates``) to show with it.
    """
    environment = result["environment"]
    cpu = clean(environment["cpu"] or "unknown CPU")
    gpus = [clean(gpu.get("name", "GPU"), 60) for gpu in environment["gpus"]]
    created = clean(result["created"]).replace("T", " ").replace("+00:00", " UTC")
    extra = [(clean(fact["label"]), clean(fact["value"])) for fact in result.get("extra") or ()]
    blocks: list[Block] = [
        banner(result, outcomes),
        *(gates(outcomes) if _failing(outcomes) else ()),
        cards(result),
        *(() if _failing(outcomes) else gates(outcomes)),
        *([Facts(extra)] if extra else ()),
        results(result),
        latencies(result),
        batchnorms(result),
        equality(result),
        sensitivity(result),
        *models(result),
        *_ground(result),
    ]
    return Document(
        title_of(result),
        "benchmark",
        " · ".join((created, cpu, *gpus[:2], f"measured in {_duration(result['seconds'])}")),
        blocks,
        "Made by convbn. Times are per inference; outputs were compared before anything was timed; no samples "
        "were left out.",
        _raw(result),
    )


def _failing(outcomes: Sequence[Mapping[str, Any]]) -> bool:
    return any(one["status"] in ("failed", "not judged") for one in outcomes)


def _ground(result: Mapping[str, Any]) -> list[Block]:
    """The machine and its software; the command and everything else that has to be the same."""
    environment = result["environment"]
    machine, settings = list(environment_lines(environment)), list(option_lines(result))
    command = [Code(clean(result["command"], 4000))] if result.get("command") else []
    listed: Block = Facts(settings)
    if len(settings) > 16:
        listed = Details("Files, inputs and settings", [listed])
    return [
        Text(f"{clean(environment['cpu'] or 'unknown CPU')}, {clean(environment['os'])}", last=TERMINAL),
        Details("Environment and settings", [*command, Facts([*machine, *settings])], last=MARKDOWN),
        Section("Environment", [Facts(machine)], depth=PAGE),
        Section("How to reproduce", [*command, listed], depth=PAGE),
    ]


def _raw(result: Mapping[str, Any]) -> str:
    """The JSON, unless it is long."""
    text = json.dumps(result, ensure_ascii=True, separators=(",", ":"))
    if len(text) > _MOST_RAW_BYTES:
        return ""
    return (
        '<details class="raw"><summary>Raw result (JSON)</summary>'
        f'<pre tabindex="0">{escape(text)}</pre></details>'
    )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return plural(minutes, "minute") if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
