"""The report as Markdown, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coverage_report.export import INPUTS
from coverage_report.exports_markdown import machine_of, render_exports
from coverage_report.summary import WRONG_ABOVE, is_wrong
from coverage_report.tables import counts, number, table
from coverage_report.torch_markdown import render_torch

__all__ = ["render"]

_INTRODUCTION = """\
How many BatchNorms each tool leaves in the same unfused ONNX files, and what its output is worth. Made by
`make coverage-report` (`tools/coverage_report/`); the numbers behind it are in `coverage.json`.

The networks are built by timm and torchvision, or are small ones of other domains (speech, video, medical
volumes, graphs, text, detection, tables, recurrent: `tools/coverage_report/domains/`), with random weights,
seed {seed}. γ is uniform in 0.5–1.5 and β normal with deviation 0.2; σ² (0.5–1.5) and μ (0.2) are in units of
what arrives at the layer, so that activations keep their size. Parameters that start constant (layer scales,
gates, biases) are moved by normal noise of 0.2. Files are exported unfused, at batch 1. *Errors* are the
largest difference relative to the largest value of an output over {inputs} inputs, in onnxruntime with its
optimisations off, against the unfused file; *against float64*, against the PyTorch module in float64. An output
is *wrong* if it differs by more than {bound:.1e} or cannot be run, *invalid* if `onnx.checker` refuses it.
Where a tool fails, it leaves every BatchNorm. The same networks as PyTorch modules stand under *PyTorch*.
"""


def render(summary: Mapping[str, Any]) -> str:
    """The whole document."""
    parts = [
        "# Coverage against the field",
        _INTRODUCTION.format(seed=summary["seed"], bound=WRONG_ABOVE, inputs=INPUTS).strip(),
        machine_of(summary["environment"]),
        "## Totals",
        _totals(summary),
        "## What convbn folds and what it leaves",
        _rules(summary),
        "## Models",
        _models(summary),
        "## Not exported, or not comparable",
        _absent(summary),
        "## PyTorch",
        render_torch(summary["torch"]),
        "## Three exports",
        render_exports(summary),
    ]
    return "\n\n".join(parts) + "\n"


def _totals(summary: Mapping[str, Any]) -> str:
    totals = summary["totals"]
    rows = []
    for tool, about in summary["tools"].items():
        total = totals["tools"].get(tool)
        if total is None:
            state = "missing" if about["version"] is None else "not run"
            rows.append([tool, about["version"] or "–", state, *[""] * 8])
            continue
        rows.append([tool, about["version"], *_total_cells(total)])
    if totals["signed"]:
        rows.append(["convbn, γ of both signs", "", *_total_cells(totals["signed"])])
    head = [
        "tool",
        "version",
        "BN left",
        "models without BN",
        "nodes",
        "wrong",
        "invalid",
        "failed",
        "largest error",
    ]
    head += ["CPU s", "with imports"]
    count = (
        f"{totals['models']} models of {totals['families']} families hold {totals['batchnorms']} BatchNorms."
    )
    calls = "; ".join(f"{tool}: {about['what']}" for tool, about in summary["tools"].items())
    seconds = (
        "CPU seconds are user plus system time, summed over the models, from file to file: once after the "
        "imports, once of the whole process."
    )
    return f"{count}\n\n{table(head, rows, left=2)}\n\n{seconds} Calls: {calls}."


def _total_cells(total: Mapping[str, Any]) -> list[str]:
    return [
        f"{total['left']} of {total['before']}",
        f"{total['clean']} of {total['models']}",
        str(total["nodes"]),
        *(str(total[name]) for name in ("wrong", "invalid", "failed")),
        number(total["largest_error"]),
        f"{total['cpu_seconds']:.1f}",
        f"{total['process_cpu_seconds']:.1f}",
    ]


def _rules(summary: Mapping[str, Any]) -> str:
    totals = summary["totals"]
    positive, signed = totals["tools"].get("convbn"), totals["signed"]
    if positive is None:
        return "convbn was not run."
    blocks = []
    for what, title in (("folded", "rule"), ("kept", "reason to stay")):
        names = dict.fromkeys([*positive[what], *(signed or {what: {}})[what]])
        rows = [
            [f"`{name}`", *(str((side or {what: {}})[what].get(name, 0)) for side in (positive, signed))]
            for name in names
        ]
        blocks.append(table([title, "γ > 0", "γ of both signs"], rows, left=1) if rows else f"No {title}.")
    return "\n\n".join(blocks)


def _models(summary: Mapping[str, Any]) -> str:
    tools = [tool for tool in summary["totals"]["tools"] if tool != "load-save"]
    head = ["model", "family", "BN", *tools, "convbn, both signs", "error", "against float64", "unfused"]
    rows = []
    for model in summary["models"]:
        runs, signed = model["tools"], model["signed"]
        own, plain = runs.get("convbn", {}), runs.get("load-save", {})
        modules = "" if model["bn_modules"] == model["batchnorms"] else f" ({model['bn_modules']} modules)"
        rows.append(
            [
                model["name"],
                model["family"],
                f"{model['batchnorms']}{modules}",
                *(_left(runs.get(tool)) for tool in tools),
                _left(signed),
                *(number(value) for value in (own.get("error"), own.get("truth_error"))),
                number(plain.get("truth_error")),
                _reasons(own, signed),
            ]
        )
    note = (
        "*unfused* is the unfused file's own error against float64. Where BatchNorm modules and nodes differ in "
        "number, the exporter decomposed some, dropped unused ones, or the network normalises by other means."
    )
    return f"{table([*head, 'why the rest stays'], rows, left=2)}\n\n{note}{_truth(summary)}"


def _truth(summary: Mapping[str, Any]) -> str:
    """How the error against float64 compares with what the unfused file has by itself."""
    ratios = summary["totals"]["truth_ratios"]
    if not ratios:
        return ""
    within, median = sum(ratio <= 2 for ratio in ratios), ratios[len(ratios) // 2]
    return (
        f" Over the inputs (root mean square) the folded file's error against float64 is {median:.2f} "
        f"times the unfused file's own in the median and {ratios[-1]:.2f} times at most; it is at most twice it in "
        f"{within} of {len(ratios)} files. On a single input it scatters by more."
    )


def _left(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    if row["failure"]:
        return "failed"
    flag = " **wrong**" if is_wrong(row) else " invalid" if row.get("invalid") else ""
    return f"{row['batchnorms']}{flag}"


def _reasons(own: Mapping[str, Any], signed: Mapping[str, Any] | None) -> str:
    kept = own.get("kept") or {}
    other = (signed or {}).get("kept") or {}
    if kept == other:
        return counts(kept) if kept else ""
    return f"{counts(kept)}; both signs: {counts(other)}"


def _absent(summary: Mapping[str, Any]) -> str:
    lines = [f"* {entry['name']} ({entry['family']}): {entry['reason']}" for entry in summary["not_exported"]]
    lines += [
        f"* {model['name']} is counted, but not compared: onnxruntime does not run the unfused file "
        f"({model['unrunnable']})"
        for model in summary["models"]
        if model["unrunnable"]
    ]
    return "\n".join(lines) or "Every architecture could be exported and compared."
