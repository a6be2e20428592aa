"""The second part of a report: where the BatchNorms went, whether outputs are equal, and each model's numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from convbn.bench.report.facts import batchnorm_sentence, equality_entries
from convbn.bench.report.sections import charts, folds
from convbn.bench.results.comparisons import case_label, measured
from convbn.common.document.model import (
    MARKDOWN,
    PAGE,
    Block,
    Cell,
    Column,
    Details,
    Inline,
    Items,
    Mark,
    Row,
    Section,
    Table,
    Text,
    verdict_mark,
)
from convbn.common.text import bytes_text, clean, number, seconds_text, shape_text
from convbn.fuse.summary import network, worst_error

__all__ = ["equality", "latencies", "models"]

_ERRORS = {
    "max |a − b|": "max_abs_error",
    "relative": "rel_error",
    "worst channel": "worst_channel_error",
    "bound": "bound",
}
#: Shown where some output has them: with a precision that gives up digits.
_AGREEMENT = {"cosine": "cosine", "same top-1": "top1_agreement"}
_LEAD = (
    "Both models ran on the same random inputs. Relative: max |a − b| / max |a|. Worst channel: the same "
    "against that channel's own level. The bound is √ε of the coarsest number type involved, or what "
    "the chosen precision is allowed."
)
_MOST_OUTPUTS = 20


def latencies(result: Mapping[str, Any]) -> Section:
    """The distributions of one model; of several they stand with each model."""
    drawn = charts.charts(result["cases"][0]) if len(result["cases"]) == 1 else []
    return Section("Latency distributions", drawn, charts.HOW_TO_READ, depth=PAGE)


def equality(result: Mapping[str, Any]) -> Section:
    """How far outputs are apart: one sentence where all are equal, and every comparison behind it."""
    found = equality_entries(result, ": ")
    worst = [worst_error(entry) for _, entry in found]
    outputs = [output for _, entry in found for output in entry["outputs"]]
    keys = _ERRORS | {
        name: key for name, key in _AGREEMENT.items() if any(o.get(key) not in (None, 1.0) for o in outputs)
    }
    columns = [
        Column("Compared"),
        Column("Result", "", label=""),
        Column("Output"),
        *(Column(name, "num") for name in keys),
    ]
    most = 3 if len(result["cases"]) > 1 else _MOST_OUTPUTS
    rows = [row for what, entry in found for row in _rows(what, entry, keys, most)]
    table = Table("Comparisons of outputs", columns, rows, depth=PAGE)
    listed: list[Inline] = [
        (
            verdict_mark(entry["status"]),
            f" {what}: {clean(entry['reason'], 300)} (largest relative error {number(error)})",
        )
        for (what, entry), error in zip(found, worst, strict=True)
    ]
    unequal = [told for told, (_, entry) in zip(listed, found, strict=True) if entry["status"] != "equal"]
    told: Inline = ""
    if found and not unequal:
        told = (
            verdict_mark("equal"),
            " in the only comparison" if len(found) == 1 else f" in all {len(found)} comparisons",
            f"; the largest relative error is {number(max(filter(None, worst), default=0.0))}.",
        )
    blocks: list[Block] = [Text(told, "answer")] if told else [Items(unequal, "reasons")]
    blocks.append(Details("Every comparison", [table, Items(listed, last=MARKDOWN)]))
    return Section("Are the outputs equal?", blocks if found else [], _LEAD)


def _rows(what: str, entry: Mapping[str, Any], keys: Mapping[str, str], most: int) -> Iterator[Row]:
    start: list[Inline | Cell] = [what, verdict_mark(entry["status"])]
    if not entry["outputs"] or entry["status"] != "equal":
        yield Row([*start, Cell(clean(entry["reason"], 400), "why", 1 + len(keys))])
        start = [Cell("", "empty"), Cell("", "empty")]
    for output in entry["outputs"][:most]:
        kind = f" {clean(output['dtype'])} {shape_text(output['shape'], '×')}"
        name = (clean(output["name"]), Mark(kind, "small"))
        yield Row([*start, name, *(_value(output, key) for key in keys.values())])
        start = [Cell("", "empty"), Cell("", "empty")]


def _value(output: Mapping[str, Any], key: str) -> str:
    value = output.get(key)
    if value is None:
        return "–"
    if key == "top1_agreement":
        return f"{value * 100:.1f} %"
    return f"{value:.6f}" if key == "cosine" else number(value)


def models(result: Mapping[str, Any]) -> list[Block]:
    """Every model on its own, folded away; of one model, its layers and numbers as sections."""
    if len(result["cases"]) == 1:
        case = result["cases"][0]
        found: list[Block] = []
        if case["fold"] and (case["fold"]["folded"] or case["fold"]["merged"]):
            lead = "The layers that took a BatchNorm in or were merged, and the BatchNorms that stay."
            table = Details("All layers", [folds.layers(case["fold"])])
            found.append(Section("Layer by layer", [table], lead, depth=PAGE))
        return [*found, Section("All numbers", [_numbers(case), *_gpus(case)], depth=PAGE)]
    parts: list[Block] = []
    for case in result["cases"]:
        drawn = charts.charts(case)
        inside: list[Block] = [Section("Latency distributions", drawn)] if drawn else []
        inside.append(Section("All numbers", [_numbers(case), *_gpus(case)]))
        under = ", ".join(f"{clean(side['name'], 40)}: {bytes_text(side['bytes'])}" for side in case["sides"])
        if case["fold"]:
            under = batchnorm_sentence(case["fold"])
            picture = network(case["fold"])
            inside = [*([picture] if picture is not None else []), *inside]
            inside.append(Section("Layer by layer", [folds.layers(case["fold"])]))
        summary = (Mark(case_label(result, case), "strong"), Mark(under, "small"))
        parts.append(Details(summary, inside, "model"))
    return [Section("Model by model", parts, charts.HOW_TO_READ, depth=PAGE)]


def _numbers(case: Mapping[str, Any]) -> Table:
    """Everything that was measured, row by row."""
    sizes = {side["name"]: side["bytes"] for side in case["sides"]}
    names = ("Median", "p90", "p95", "p99", "Per second", "Memory", "Load", "Size", "n")
    rows = []
    for row in case["rows"]:
        name = (clean(row["side"]), Mark(clean(row["runtime"]), "small"))
        if not measured(row):
            why = Cell(f"not measured: {clean(row['reason'], 400)}", "why", len(names))
            rows.append(Row([name, why], "off"))
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
        rows.append(Row([name, *values]))
    return Table("All numbers", [Column("Side"), *(Column(name, "num") for name in names)], rows)


def _gpus(case: Mapping[str, Any]) -> list[Block]:
    lines: list[Inline] = []
    for row in case["rows"]:
        gpu = row["gpu"]
        if not gpu:
            continue
        told = [
            clock for clock in (_reading("before", gpu["before"]), _reading("after", gpu["after"])) if clock
        ]
        if gpu.get("tf32") is not None:
            told.insert(0, "TF32" if gpu["tf32"] else "no TF32")
        lines.append(
            f"{clean(row['side'], 60)} in {clean(row['runtime'])}: {clean(gpu['device'], 60)}, "
            f"{clean(gpu['mode'], 20)}, L2 {clean(gpu['l2'], 20)}{''.join(f'; {text}' for text in told)}."
        )
    return [Items(lines)] if lines else []


def _reading(when: str, reading: Mapping[str, Any] | None) -> str:
    if not reading:
        return ""
    told = [
        f"{reading[key]:g} {unit}"
        for key, unit in (("sm_clock_mhz", "MHz"), ("temperature_celsius", "°C"), ("power_watts", "W"))
        if reading[key] is not None
    ]
    if reading["throttle_reasons"]:
        told.append(f"throttled: {clean(', '.join(reading['throttle_reasons']))}")
    return f"{when} {', '.join(told)}" if told else ""
