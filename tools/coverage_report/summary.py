"""The report as one JSON-ready value: totals, then a row for each model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coverage_report.architectures import by_name
from coverage_report.export import SEED, VARIANTS, sidecar
from coverage_report.peers import PEERS
from coverage_report.runs import Job

__all__ = ["SCHEMA_VERSION", "SIGNED", "WRONG_ABOVE", "is_wrong", "summarise", "total"]

SCHEMA_VERSION = "4"
SIGNED = ".signed"

#: √ε of float32: above it convbn's own verification would not call two outputs equal.
WRONG_ABOVE = 2.0**-11.5


def is_wrong(row: Mapping[str, Any]) -> bool:
    """Whether a tool's output does not compute what the unfused file does, or does not run."""
    if row["failure"] or row.get("incomparable"):
        return False
    return bool(row["unrunnable"]) or row["error"] is None or row["error"] > WRONG_ABOVE


def summarise(
    cache: Path,
    names: Iterable[str],
    tools: Sequence[str],
    rows: Mapping[Job, dict[str, Any]],
    *,
    torch: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything of one run.

    Args:
        cache: where the exports' facts lie.
        names: of the models, in order.
        tools: that were asked for, missing ones too.
        rows: of the trials.
        torch: what :func:`coverage_report.torch_summary.summarise_torch` made, if it was run.
    """
    from convbn.bench.results.environment import describe_environment

    models, absent = [], []
    for name in names:
        facts = sidecar(cache, name) or {"failed": "export not tried"}
        architecture = by_name(name)
        head = {"name": name, "family": architecture.family, "source": architecture.source}
        if facts["failed"]:
            absent.append(head | {"reason": facts["failed"]})
            continue
        known = {key: facts[key] for key in ("shape", "parameters", "bn_modules", "batchnorms", "nodes")}
        unrunnable = facts["variants"][""]["unrunnable"]
        found = {tool: rows[name, "", tool] for tool in tools if (name, "", tool) in rows}
        signed = rows.get((name, SIGNED, "convbn"))
        ratios = {
            variant: _truth_ratio(rows.get((name, variant, "convbn")), rows.get((name, variant, "load-save")))
            for variant in VARIANTS
        }
        for row in (*found.values(), *([signed] if signed else [])):
            row["incomparable"] = bool(unrunnable)
        models.append(
            head
            | known
            | {"unrunnable": unrunnable, "tools": found, "signed": signed}
            | {"truth_ratios": ratios}
        )
    return {
        "schema_version": SCHEMA_VERSION,
        "seed": SEED,
        "environment": describe_environment(),
        "tools": {tool: {"version": PEERS[tool].version, "what": PEERS[tool].what} for tool in tools},
        "totals": {
            "models": len(models),
            "families": len({model["family"] for model in models}),
            "batchnorms": sum(model["batchnorms"] for model in models),
            "tools": {tool: total(models, tool) for tool in tools if PEERS[tool].version is not None},
            "signed": total(models, None),
            "truth_ratios": sorted(
                ratio for model in models for ratio in model["truth_ratios"].values() if ratio is not None
            ),
        },
        "models": models,
        "not_exported": absent,
        "torch": torch,
    }


def _truth_ratio(folded: Mapping[str, Any] | None, plain: Mapping[str, Any] | None) -> float | None:
    """The folded file's error against float64 in units of the unfused file's own, both root mean squares."""
    errors = [row.get("truth_rms") if row is not None else None for row in (folded, plain)]
    return round(errors[0] / errors[1], 3) if errors[0] is not None and errors[1] else None


def total(models: Sequence[Mapping[str, Any]], tool: str | None) -> dict[str, Any] | None:
    """Sums over all models; a tool that fails on a model leaves all that is in it. None: γ of both signs."""
    pairs = [(model, model["signed"] if tool is None else model["tools"].get(tool)) for model in models]
    pairs = [(model, row) for model, row in pairs if row is not None]
    if not pairs:
        return None
    done = [row for _, row in pairs if not row["failure"]]
    kept: Counter[str] = Counter()
    folded: Counter[str] = Counter()
    for row in done:
        kept.update(row["kept"])
        folded.update(row["folded"])
    errors = [row["error"] for row in done if row["error"] is not None]
    return {
        "models": len(pairs),
        "before": sum(model["batchnorms"] for model, _ in pairs),
        "left": sum(m["batchnorms"] if row["failure"] else row["batchnorms"] or 0 for m, row in pairs),
        "nodes": sum(m["nodes"] if row["failure"] else row["nodes"] or 0 for m, row in pairs),
        "clean": sum(row["batchnorms"] == 0 for row in done),
        "wrong": sum(is_wrong(row) for row in done),
        "invalid": sum(bool(row.get("invalid")) for row in done),
        "failed": len(pairs) - len(done),
        "cpu_seconds": round(sum(row["cpu_seconds"] for row in done), 2),
        "process_cpu_seconds": round(sum(row["process_cpu_seconds"] for row in done), 2),
        "largest_error": max(errors, default=None),
        "kept": dict(kept.most_common()),
        "folded": dict(folded.most_common()),
    }
