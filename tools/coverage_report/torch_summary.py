"""The PyTorch part of the report as one JSON-ready value: totals, verdict, then a row for each network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from coverage_report.architectures import by_name
from coverage_report.summary import WRONG_ABOVE
from coverage_report.torch_trial import INPUTS, TRIALS

__all__ = ["FORMS", "is_clean", "left_in", "summarise_torch", "wrong_torch"]

#: The trials of convbn.
FORMS = ("module", "graph")


def wrong_torch(network: Mapping[str, Any], trial: Mapping[str, Any]) -> bool:
    """Whether a result computes something else, does not run, or the original did not stay as it was."""
    if trial["failure"] or trial.get("not_exported"):
        return False
    if trial["original_changed"]:
        return True
    if network["unrunnable"]:
        return False
    return bool(trial["unrunnable"]) or trial["error"] is None or trial["error"] > WRONG_ABOVE


def left_in(network: Mapping[str, Any], trial: Mapping[str, Any]) -> int:
    """BatchNorms that are left; a tool that fails, or whose result does not run, leaves all."""
    left = trial.get("left")
    return int(network["batchnorms"] if trial["failure"] or left is None else left)


def is_clean(totals: Mapping[str, Any]) -> bool:
    """No failure, no wrong result, no class changed, no report that miscounts, and not nothing at all."""
    bad = ("failed", "wrong", "class_changed", "miscounted")
    return all(totals[form]["models"] and not any(totals[form][name] for name in bad) for form in FORMS)


def summarise_torch(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Everything of one run.

    Args:
        rows: of the trials by network, in order.
    """
    from convbn.bench.results.environment import describe_environment

    models = [
        {"family": by_name(name).family, **row} for name, row in rows.items() if not row["network"]["failure"]
    ]
    absent = [
        {"name": name, "reason": row["network"]["failure"]}
        for name, row in rows.items()
        if row["network"]["failure"]
    ]
    totals: dict[str, Any] = {
        "models": len(models),
        "batchnorms": sum(model["network"]["batchnorms"] for model in models),
        **{trial: _total(models, trial) for trial in TRIALS},
    }
    return {
        "environment": describe_environment(),
        "inputs": INPUTS,
        "clean": is_clean(totals) and not absent,
        "totals": totals,
        "models": models,
        "not_run": absent,
    }


def _total(models: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Sums over all networks, those left out that torch.export itself does not take."""
    pairs = [(model["network"], model[name]) for model in models if not model[name].get("not_exported")]
    done = [trial for _, trial in pairs if not trial["failure"]]
    kept: Counter[str] = Counter()
    folded: Counter[str] = Counter()
    for trial in done:
        kept.update(trial.get("kept", {}))
        folded.update(trial.get("folded", {}))
    return {
        "models": len(pairs),
        "not_exported": len(models) - len(pairs),
        "before": sum(network["batchnorms"] for network, _ in pairs),
        "left": sum(left_in(network, trial) for network, trial in pairs),
        "without": sum(left_in(network, trial) == 0 for network, trial in pairs),
        "failed": len(pairs) - len(done),
        "wrong": sum(wrong_torch(network, trial) for network, trial in pairs),
        "class_changed": sum(not trial["class_kept"] for trial in done),
        "miscounted": sum(bool(trial.get("disagrees")) for trial in done),
        "largest_error": max((t["error"] for t in done if t["error"] is not None), default=None),
        "seconds": round(sum(seconds_of(trial) for trial in done), 2),
        "kept": dict(kept.most_common()),
        "folded": dict(folded.most_common()),
    }


def seconds_of(trial: Mapping[str, Any]) -> float:
    """Seconds of a tool, from model to model, without what torch.export took to make a program."""
    return sum(trial.get(name, 0.0) for name in ("capture_seconds", "fold_seconds", "seconds"))
