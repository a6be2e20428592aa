"""The second part of the page: each model's distributions, layers and all its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from convbn.bench.report.facts import batchnorm_sentence
from convbn.bench.report.page import charts, folds
from convbn.bench.report.page.elements import cells, esc, more, notes, scroll, section
from convbn.bench.results.comparisons import case_label, measured
from convbn.common.text import bytes_text, seconds_text

__all__ = ["models", "numbers"]


def models(result: Mapping[str, Any], limit: int, fine: int) -> str:
    """Every model on its own, folded away; of one model, its layers and numbers as sections.

    Args:
        result: by the published schema.
        limit: most models.
        fine: most lines of each list within a model.

    Returns:
        HTML.
    """
    if len(result["cases"]) == 1:
        case = result["cases"][0]
        found = section("All numbers", None, numbers(case, fine))
        if case["fold"] and (case["fold"]["folded"] or case["fold"]["merged"]):
            lead = "The layers that took a BatchNorm in or were merged, and the BatchNorms that stay."
            found = section("Layer by layer", lead, folds.layers(case["fold"], fine)) + found
        return found
    parts = []
    for case in result["cases"][:limit]:
        inside = charts.charts(case, fine)
        if inside:
            inside = f"<h3>Latency distributions</h3>{inside}"
        inside += f"<h3>All numbers</h3>{numbers(case, fine)}"
        under = _sizes(case)
        if case["fold"]:
            under = batchnorm_sentence(case["fold"])
            inside += f"<h3>Layer by layer</h3>{folds.layers(case['fold'], fine)}"
        parts.append(
            f'<details class="model"><summary><strong>{esc(case_label(result, case))}</strong>'
            f"<small>{escape(under)}</small></summary>{inside}</details>"
        )
    return section(
        "Model by model", charts.HOW_TO_READ, f"{''.join(parts)}{more(len(result['cases']), limit)}"
    )


def _sizes(case: Mapping[str, Any]) -> str:
    return ", ".join(f"{side['name'][:40]}: {bytes_text(side['bytes'])}" for side in case["sides"])


def numbers(case: Mapping[str, Any], limit: int) -> str:
    """Everything that was measured, row by row."""
    sizes = {side["name"]: side["bytes"] for side in case["sides"]}
    names = ("Median", "p90", "p95", "p99", "Per second", "Memory", "Load", "Size", "n")
    top = "".join(f'<th scope="col" class="num">{name}</th>' for name in names)
    body = []
    for row in case["rows"][:limit]:
        head = f'<th scope="row" class="name">{esc(row["side"])}<small class="mono">{esc(row["runtime"])}</small></th>'
        if not measured(row):
            why = f"not measured: {esc(row['reason'], 400)}"
            body.append(f'<tr class="off">{head}<td class="why" colspan="{len(names)}">{why}</td></tr>')
            continue
        time, load, rate = row["latency_seconds"], row["load_seconds"], row["throughput_per_second"]
        values = (
            *(seconds_text(time[key]) for key in ("median", "p90", "p95", "p99")),
            "–" if rate is None else f"{rate:,.1f}",
            bytes_text(row["peak_memory_bytes"]),
            "–" if load is None else seconds_text(load),
            bytes_text(sizes.get(row["side"])),
            f"{time['n']:,}",
        )
        body.append(
            f"<tr>{head}{cells(('num', name, value) for name, value in zip(names, values, strict=True))}</tr>"
        )
    table = (
        f'<table class="plain"><thead><tr><th scope="col">Side</th>{top}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )
    return scroll(table, "All numbers") + more(len(case["rows"]), limit) + _gpus(case)


def _gpus(case: Mapping[str, Any]) -> str:
    lines = []
    for row in case["rows"]:
        gpu = row["gpu"]
        if not gpu:
            continue
        told = [
            f"{clock}"
            for clock in (_reading("before", gpu["before"]), _reading("after", gpu["after"]))
            if clock
        ]
        if gpu.get("tf32") is not None:
            told.insert(0, "TF32" if gpu["tf32"] else "no TF32")
        lines.append(
            f"{esc(row['side'], 60)} in <code>{esc(row['runtime'])}</code>: {esc(gpu['device'], 60)}, "
            f"{esc(gpu['mode'], 20)}, L2 {esc(gpu['l2'], 20)}{''.join(f'; {text}' for text in told)}."
        )
    return notes(lines)


def _reading(when: str, reading: Mapping[str, Any] | None) -> str:
    if not reading:
        return ""
    told = [
        f"{reading[key]:g} {unit}"
        for key, unit in (("sm_clock_mhz", "MHz"), ("temperature_celsius", "°C"), ("power_watts", "W"))
        if reading[key] is not None
    ]
    if reading["throttle_reasons"]:
        told.append(f"throttled: {esc(', '.join(reading['throttle_reasons']))}")
    return f"{when} {', '.join(told)}" if told else ""
