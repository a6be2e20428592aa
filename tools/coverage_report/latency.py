"""Speed in onnxruntime with everything it has on, one thread: the untouched file against convbn's output."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from coverage_report.architectures import REPARAMETERISABLE, by_name
from coverage_report.export import model_path, sidecar
from coverage_report.peers import PEERS
from coverage_report.runs import Results, fold_state

__all__ = ["geometric_mean", "latencies", "latency_totals"]

RUNTIMES = {"onnxruntime": "onnxruntime-cpu", "openvino": "openvino-cpu"}
"""What measures, by the distribution whose version a row depends on."""


def latencies(
    cache: Path,
    names: Sequence[str],
    results: Results,
    tell: Callable[[str], None],
    *,
    budget_s: float,
    library: str = "onnxruntime",
) -> dict[str, dict[str, Any]]:
    """The row of every exported model, from the file where it is still good.

    Args:
        cache: the folder.
        names: the models.
        results: the rows so far.
        tell: is told one line a model.
        budget_s: seconds a model, warm-up included.
        library: of :data:`RUNTIMES`, which runs both sides.
    """
    state = fold_state()
    rows = {}
    for name in names:
        facts = sidecar(cache, name)
        if facts is None or facts["failed"]:
            continue
        content = facts["variants"][""]["sha256"][:16]
        runtime = f"{library} {version(library)}"
        key = f"{name}|{content}|latency|{runtime}|{budget_s:g}|{PEERS['convbn'].version}+{state}"
        row = results.get(key)
        if row is None:
            row = _measured(model_path(cache, name), budget_s, RUNTIMES[library])
            results.add(key, row)
            tell(f"latency {name}, {library}: {row['failure'] or row['ratio']}")
            gc.collect()
        rows[name] = row
    return rows


def _measured(path: Path, budget_s: float, runtime: str) -> dict[str, Any]:
    import convbn
    from convbn.bench.cases.case import Case
    from convbn.bench.measure.options import ProtocolOptions
    from convbn.bench.measure.protocol import measure
    from convbn.bench.runtimes.base import Variant

    nothing = {"failure": None, "ratio": None, "milliseconds": None, "verdict": None, "noise_floor": None}
    try:
        folded, _ = convbn.fuse(path, options=convbn.FuseOptions(verify=False))
        variants = (Variant("untouched", onnx=path), Variant("convbn", onnx=folded))
        options = ProtocolOptions(threads=1, budget_seconds=budget_s, memory=False)
        result = measure([Case("untouched", variants, (runtime,), threads=1)], options)
    except Exception as error:  # a fold in development may raise anything
        return nothing | {"failure": f"{type(error).__name__}: {error}"[:300]}
    case = result.cases[0]
    baseline, row = case.rows
    if row.ratio is None or baseline.latency is None or row.latency is None:
        return nothing | {"failure": row.reason or baseline.reason}
    return nothing | {
        "ratio": {"median": row.ratio.median, "low": row.ratio.low, "high": row.ratio.high},
        "milliseconds": {"untouched": 1e3 * baseline.latency.median, "convbn": 1e3 * row.latency.median},
        "verdict": row.verdict,
        "noise_floor": case.runtimes[0].noise_floor,
    }


def latency_totals(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Geometric means over all models and over those that a fold can re-parameterise."""
    measured = {name: row["ratio"] for name, row in rows.items() if row["ratio"]}
    chosen = {n: ratio for n, ratio in measured.items() if by_name(n).family in REPARAMETERISABLE}
    return {
        "all": geometric_mean(list(measured.values())),
        "reparameterisable": geometric_mean(list(chosen.values())),
    }


def geometric_mean(ratios: Sequence[Mapping[str, float]]) -> dict[str, Any] | None:
    """``exp(mean(ln r))``, with the intervals of the single ratios added in quadrature.

    The interval says how well the mean over *these* models is known, not how other models would do.
    """
    if not ratios:
        return None
    n = len(ratios)
    centre = sum(math.log(ratio["median"]) for ratio in ratios) / n
    half = math.sqrt(sum((math.log(ratio["high"] / ratio["low"]) / 2) ** 2 for ratio in ratios)) / n
    return {
        "n": n,
        "median": math.exp(centre),
        "low": math.exp(centre - half),
        "high": math.exp(centre + half),
    }
