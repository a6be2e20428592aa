"""The PyTorch section of the report as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coverage_report.summary import WRONG_ABOVE
from coverage_report.tables import counts, number, table
from coverage_report.torch_summary import left_in, wrong_torch

__all__ = ["render_torch"]

_TITLES = {
    "module": "convbn, module form",
    "graph": "convbn, graph form",
    "fx": "torch.fx, `experimental.optimization.fuse`",
}
_INTRODUCTION = """\
The same networks with γ > 0 as PyTorch modules, each built and folded in a process of its own. *Module form* is
`convbn.fuse(module, x)` with `materialize`: an object of the same class comes back. *Graph form* is
`convbn.fuse(torch.export.export(module, (x,), strict=False))`. BatchNorms are counted where they run: calls of a
batch_norm operator in a forward pass, in graph form its nodes in the graph. *Errors* are against the unfused
module in float32 over {inputs} inputs, relative to the largest value of an output; *wrong* is a difference above
{bound:.1e}, a result that does not run, or an original that was changed. Where a tool fails, or its result does not
run, it leaves every BatchNorm. *Miscounted* are reports that name another number of BatchNorms than are left.
"""


def render_torch(summary: Mapping[str, Any] | None) -> str:
    """The section; without a summary it says that there is none."""
    if summary is None:
        return "Not run."
    facts = summary["environment"]
    libraries = ", ".join(f"{name} {version}" for name, version in facts["libraries"].items())
    parts = [
        _INTRODUCTION.format(inputs=summary["inputs"], bound=WRONG_ABOVE).strip(),
        f"Machine: {facts['cpu']}, {facts['cores']} cores, one thread, Python {facts['python']}; {libraries}.",
        _verdict(summary),
        _totals(summary),
        _reasons(summary),
        _models(summary),
        _notes(summary),
    ]
    return "\n\n".join(part for part in parts if part)


def _verdict(summary: Mapping[str, Any]) -> str:
    if summary["clean"]:
        return f"convbn on {summary['totals']['models']} networks: no failure, no wrong result, no class changed."
    totals = summary["totals"]
    said = [
        f"{_TITLES[form]}: {totals[form]['failed']} failed, {totals[form]['wrong']} wrong, "
        f"{totals[form]['class_changed']} of another class, {totals[form]['miscounted']} miscounted"
        for form in ("module", "graph")
    ]
    return f"**Not clean.** {'; '.join(said)}; {len(summary['not_run'])} networks were not run."


def _totals(summary: Mapping[str, Any]) -> str:
    totals, outside = summary["totals"], summary.get("outside") or {}
    rows = [
        [
            title,
            f"{total['left']} of {total['before']}",
            f"{outside[trial]['left']} of {outside[trial]['before']}" if trial in outside else "–",
            f"{total['without']} of {total['models']}",
            *(str(total[name]) for name in ("failed", "wrong", "class_changed")),
            "–" if trial == "fx" else str(total["miscounted"]),
            number(total["largest_error"]),
            f"{total['seconds']:.1f}",
        ]
        for trial, title in _TITLES.items()
        for total in (totals[trial],)
    ]
    head = [
        "tool",
        "BN left",
        "outside",
        "models without BN",
        "failed",
        "wrong",
        "class changed",
        "miscounted",
    ]
    note = (
        "*Outside* are BatchNorms left in networks of other libraries than timm and torchvision's classifiers "
        "([field-torch.md](field-torch.md)). Seconds are of a tool's capture and fold, wall time; graph form begins "
        "with the exported program."
    )
    return table([*head, "largest error", "s"], rows, left=1) + f"\n\n{note}"


def _reasons(summary: Mapping[str, Any]) -> str:
    module, graph = (summary["totals"][form]["kept"] for form in ("module", "graph"))
    names = dict.fromkeys([*module, *graph])
    rows = [[f"`{name}`", str(module.get(name, 0)), str(graph.get(name, 0))] for name in names]
    return table(["reason to stay", "module form", "graph form"], rows, left=1) if rows else ""


def _models(summary: Mapping[str, Any]) -> str:
    rows = []
    for model in summary["models"]:
        network, module, graph = model["network"], model["module"], model["graph"]
        called = network["called"]
        modules = "" if called == network["batchnorms"] else f" ({called} modules)"
        errors = [trial.get("error") for trial in (module, graph)]
        rows.append(
            [
                model["name"],
                f"{network['batchnorms']}{modules}",
                *(_left(network, model[trial]) for trial in _TITLES),
                number(max((e for e in errors if e is not None), default=None)),
                _seconds(module, "capture_seconds"),
                *(_seconds(trial, "fold_seconds") for trial in (module, graph)),
                _why(module, graph),
            ]
        )
    head = ["model", "BN", "module form", "graph form", "torch.fx", "error", "capture, s", "fold, s"]
    note = "Capture is that of the module form, torch.export in it included."
    return table([*head, "fold as graph, s", "why the rest stays"], rows, left=1) + f"\n\n{note}"


def _left(network: Mapping[str, Any], trial: Mapping[str, Any]) -> str:
    if trial["failure"]:
        return "failed"
    if trial.get("not_exported"):
        return "not exported"
    flags = [
        "**wrong**" if wrong_torch(network, trial) else "",
        "**miscounted**" if trial.get("disagrees") else "",
        "**other class**" if "capture_seconds" in trial and not trial["class_kept"] else "",
    ]
    return " ".join([str(left_in(network, trial)), *(flag for flag in flags if flag)])


def _seconds(trial: Mapping[str, Any], name: str) -> str:
    return f"{trial[name]:.2f}" if name in trial else "–"


def _why(module: Mapping[str, Any], graph: Mapping[str, Any]) -> str:
    first, second = module.get("kept", {}), graph.get("kept", {})
    if first == second:
        return counts(first) if first else ""
    return f"module: {counts(first)}; graph: {counts(second)}"


def _notes(summary: Mapping[str, Any]) -> str:
    """Texts of failures, which no table has room for."""
    lines = [f"* {entry['name']} was not run: {entry['reason']}" for entry in summary["not_run"]]
    for model in summary["models"]:
        if model["network"]["unrunnable"]:
            lines.append(f"* {model['name']} is not compared: {model['network']['unrunnable']}")
        for trial, title in _TITLES.items():
            facts = model[trial]
            said = facts["failure"] or facts.get("not_exported") or facts.get("unrunnable")
            if said:
                lines.append(f"* {model['name']}, {title}: {said}")
    return "\n".join(lines)
