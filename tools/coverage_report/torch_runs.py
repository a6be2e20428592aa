"""The PyTorch trials of every network, remembered so that only what changed runs again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

from coverage_report.export import SEED
from coverage_report.isolated import isolated
from coverage_report.runs import Results, fold_state
from coverage_report.torch_trial import TRIALS, torch_trial

__all__ = ["torch_key", "torch_rows"]

TIMEOUT_S = 300.0


def torch_key(name: str, state: str) -> str:
    """What a row depends on: the libraries that build and run the network, and the code in ``fuse/``."""
    libraries = " ".join(f"{library} {version(library)}" for library in ("torch", "timm", "torchvision"))
    return f"{name}|torch|{libraries}|convbn {version('convbn')}+{state}"


def torch_rows(
    names: Iterable[str], results: Results, tell: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """The row of every network, from the file where it is still good.

    Args:
        names: of the architectures.
        results: the rows so far.
        tell: is told one line a network.
    """
    rows = {}
    for name in names:
        state = fold_state(torch=True)
        key = torch_key(name, state)
        row = results.get(key)
        if row is None:
            row = torch_row(name)
            if fold_state(torch=True) == state:  # else a rule was edited in the meantime
                results.add(key, row)
            tell(f"torch {name}: {_in_short(row)}")
        rows[name] = row
    return rows


def torch_row(name: str) -> dict[str, Any]:
    """Run the trials on a network in a process of its own; a crash or a timeout is a row too."""
    begun = time.perf_counter()
    facts, ended = isolated(torch_trial, (name, SEED), timeout_s=TIMEOUT_S)
    row = {"name": name, "seconds": round(time.perf_counter() - begun, 2)}
    missing = {"failure": ended or "the process ended without a word"}
    return row | {stage: facts.get(stage, missing) for stage in ("network", *TRIALS)}


def _in_short(row: dict[str, Any]) -> str:
    network = row["network"]
    if network["failure"]:
        return f"not run: {network['failure']}"
    left = (f"{trial} {row[trial]['failure'] or row[trial].get('left')}" for trial in TRIALS)
    return f"{network['batchnorms']} BN; {', '.join(left)} ({row['seconds']} s)"
