"""The networks in three exports: BatchNorms that convbn leaves, errors and speed, one part an export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from coverage_report.exports import FORMS, form_path
from coverage_report.graphs import count_batchnorms, operators
from coverage_report.latency import latencies, latency_totals
from coverage_report.peers import PEERS
from coverage_report.runs import Results, content_of, fold_state, run_tool
from coverage_report.summary import total

__all__ = ["exports"]

TOOL = "convbn"


def exports(
    cache: Path,
    names: Sequence[str],
    results: Results,
    tell: Callable[[str], None],
    *,
    libraries: Sequence[str],
    timed: Sequence[str],
    budget_s: float,
) -> dict[str, Any]:
    """``{export: {"models", "totals", "latency": {library: {"rows", "totals"}}}}``.

    Args:
        cache: the folder.
        names: the models; those that an exporter refused are left out of its part.
        results: the rows so far.
        tell: is told one line a trial.
        libraries: of :data:`coverage_report.latency.RUNTIMES`, which measure.
        timed: the exports that they measure.
        budget_s: seconds a model for each.
    """
    found = {}
    for form in FORMS:
        models = [
            model(cache, name, form, results, tell) for name in names if form_path(cache, name, form).exists()
        ]
        measured = {
            library: latencies(cache, names, results, tell, budget_s=budget_s, library=library, form=form)
            for library in libraries
            if form in timed
        }
        found[form] = {
            "models": models,
            "totals": total(models, TOOL),
            "latency": {
                library: {"rows": rows, "totals": latency_totals(rows)} for library, rows in measured.items()
            },
        }
    return found


def model(cache: Path, name: str, form: str, results: Results, tell: Callable[[str], None]) -> dict[str, Any]:
    """One network in one export: what it holds, and the row of convbn."""
    path = form_path(cache, name, form)
    content = content_of(path)
    key = f"{name}.{form}|{content}|{TOOL}|{PEERS[TOOL].version}+{fold_state()}"
    row = results.get(key)
    if row is None:
        row = _held(path) | run_tool(TOOL, path, folder=cache, arrays=cache / "models" / f"{name}.npz")
        results.add(key, row)
        tell(f"{TOOL} {name} {form}: {row['failure'] or row['batchnorms']}")
    return {"name": name, "batchnorms": row["before"], "nodes": row["nodes_before"], "tools": {TOOL: row}}


def _held(path: Path) -> dict[str, int]:
    import onnx

    stored = onnx.load(path)
    return {"before": count_batchnorms(stored), "nodes_before": sum(1 for _ in operators(stored))}
