"""The networks in three exports, in Markdown: totals of each export, then speed network by network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coverage_report.latency import SLOWER
from coverage_report.tables import number, ratio, table

__all__ = ["machine_of", "render_exports"]

_TITLES = {
    "dynamo": "dynamo, batch 1",
    "legacy": "TorchScript, batch 1",
    "legacy-open": "TorchScript, open batch",
}
_TIMED = ("onnxruntime", "openvino")
_INTRODUCTION = """\
The networks exported by `torch.onnx.export` in three ways, unfused, and folded by convbn: BatchNorms left, the
largest error against the unfused file, and time relative to the unfused file (geometric means). One thread, all of
the runtime's optimisations on both sides; onnxruntime folds what follows a convolution by itself, so that 1 is
expected where there is nothing else. *Slower*: networks slower than the A/A noise of their own measurement, also
when it is repeated for four times as long; of several hundred, some are by chance the first time."""
_AUTHORS = """\
timm carries the code of some authors that merges the branches of their network. Called on the same modules, which
are then exported the same way (TorchScript, batch 1), in onnxruntime, relative to the unfused file:"""


def render_exports(summary: Mapping[str, Any]) -> str:
    """The part of the report on all exports."""
    made = summary.get("exports")
    if not made:
        return "Not measured."
    rows = [_row(_TITLES[form], part["totals"], part["latency"]) for form, part in made["forms"].items()]
    head = ["export", "networks", "BN left", "without BN", "wrong", "invalid", "failed", "largest error"]
    head += ["onnxruntime", "re-parameterisable", "slower", "OpenVINO", "slower"]
    blocks = [_INTRODUCTION, machine_of(made["environment"]), table(head, rows, left=1)]
    blocks += [block for form, part in made["forms"].items() if (block := _speeds(form, part))]
    return "\n\n".join([*blocks, *_authors(made)])


def machine_of(facts: Mapping[str, Any]) -> str:
    """What figures were made on, and with."""
    libraries = ", ".join(f"{name} {version}" for name, version in facts["libraries"].items())
    return f"Machine: {facts['cpu']}, {facts['cores']} cores, Python {facts['python']}; {libraries}."


def _authors(made: Mapping[str, Any]) -> list[str]:
    """What the authors' own merging of branches reaches, beside convbn; nothing where none was measured."""
    if not made["by_authors"]:
        return []
    timed = made["forms"]["legacy"]["latency"].get("onnxruntime", {"rows": {}})["rows"]
    rows = [[name, _cell(row), _cell(timed.get(name))] for name, row in made["by_authors"].items()]
    found = table(["network", "merged by its authors' code", "convbn"], rows, left=1)
    return ["### Merged by their authors", _AUTHORS, found]


def _row(title: str, total: Mapping[str, Any] | None, latency: Mapping[str, Any]) -> Sequence[str]:
    if total is None:
        return [title, "0", *[""] * 11]
    cells = [title, str(total["models"]), f"{total['left']} of {total['before']}", str(total["clean"])]
    cells += [str(total[name]) for name in ("wrong", "invalid", "failed")]
    cells.append(number(total["largest_error"]))
    for library in _TIMED:
        measured = latency.get(library) or {"totals": None, "rows": {}}
        keys = ("all", "reparameterisable") if library == "onnxruntime" else ("all",)
        cells += [_mean(measured["totals"], key) for key in keys]
        slower = [name for name, row in measured["rows"].items() if row["verdict"] == SLOWER]
        cells.append(str(len(slower)) if measured["totals"] else "not measured")
    return cells


def _mean(totals: Mapping[str, Any] | None, key: str) -> str:
    return ratio(totals[key]) if totals and totals[key] else "not measured"


def _speeds(form: str, part: Mapping[str, Any]) -> str:
    """The ratios of one export, network by network; nothing where none was measured."""
    measured = {library: part["latency"][library]["rows"] for library in _TIMED if library in part["latency"]}
    if not measured:
        return ""
    names = dict.fromkeys(name for rows in measured.values() for name in rows)
    rows = [[name, *(_cell(measured.get(library, {}).get(name)) for library in _TIMED)] for name in names]
    return f"### {_TITLES[form]}\n\n" + table(["network", "onnxruntime", "OpenVINO"], rows, left=1)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not measured"
    return str(row["failure"] or f"{ratio(row['ratio'])} {row['verdict']}")
