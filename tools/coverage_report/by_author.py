"""How far re-parameterisation goes when a network's own authors do it: speed beside convbn's, one runtime.

timm carries, for networks that train with parallel branches, the code of their authors that merges these
(``timm.utils.reparameterize_model``). It is called on the same module that the unfused file was exported from, and
exported the same way. What it cannot reach in a runtime that fuses BatchNorms by itself, no fold of branches can.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from coverage_report.architectures import ARCHITECTURES, by_name
from coverage_report.export import SEED
from coverage_report.exports import export, form_path
from coverage_report.isolated import isolated
from coverage_report.latency import RUNTIMES, measured
from coverage_report.runs import Results, content_of
from coverage_report.trained import first_line, trained_network

__all__ = ["AUTHORED", "by_authors"]

AUTHORED = frozenset({"fastvit", "mobileone", "repghostnet", "repvgg", "repvit"})
"""Families whose code in timm merges its branches."""

FORM = "legacy"
TIMEOUT_S = 300.0


def by_authors(
    cache: Path, results: Results, tell: Callable[[str], None], *, budget_s: float
) -> dict[str, dict[str, Any]]:
    """Ratio of each such network, merged by its authors' code, to the unfused file, in onnxruntime.

    Args:
        cache: the folder of the exports.
        results: the rows so far.
        tell: is told one line a network.
        budget_s: seconds a network.
    """
    rows = {}
    for name in [one.name for one in ARCHITECTURES if one.family in AUTHORED]:
        unfused, merged = form_path(cache, name, FORM), cache / "legacy" / f"{name}.authors.onnx"
        if not unfused.exists():
            continue
        if not merged.exists():
            facts, ended = isolated(_export, (str(merged), name), timeout_s=TIMEOUT_S)
            if not merged.exists():
                rows[name] = {"failure": ended or facts.get("failed", "not exported"), "ratio": None}
                continue
        content = content_of(unfused, merged)
        key = f"{name}|{content}|by-authors|{budget_s:g}"
        row = results.get(key)
        if row is None:
            row = measured(unfused, merged, budget_s, RUNTIMES["onnxruntime"])
            results.add(key, row)
            tell(f"by its authors {name}: {row['failure'] or row['ratio']}")
        rows[name] = row
    return rows


def _export(target: str, name: str, sender: Connection) -> None:
    import torch
    from timm.utils import reparameterize_model

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    module, (x,) = trained_network(by_name(name), SEED, 1)
    facts: dict[str, Any] = {}
    try:
        merged = reparameterize_model(module)
        with torch.no_grad():
            expected, found = module(x), merged(x)
        error = float((expected - found).abs().max() / expected.abs().max())
        if error > 1e-3:  # a network of other parameters would say nothing
            facts["failed"] = f"its authors' code changes the outputs by {error:.1e}"
        else:
            export(merged, x, Path(target))
    except Exception as error:  # whatever a foreign model raises is the row's reason
        facts["failed"] = first_line(error)
    sender.send(facts)
    sender.close()
