"""Speed in onnxruntime with everything it has on, one thread: the untouched file against convbn's output."""

from __future__ import annotations

import gc
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coverage_report.architectures import REPARAMETERISABLE, by_name
from coverage_report.exports import FORMS, form_path
from coverage_report.runs import Results, content_of

if TYPE_CHECKING:
    import onnx

__all__ = ["RUNTIMES", "geometric_mean", "latencies", "latency_totals", "measured"]

RUNTIMES = {"onnxruntime": "onnxruntime-cpu", "openvino": "openvino-cpu"}
"""What measures, by the distribution whose version a row depends on."""

NOTHING = {"failure": None, "ratio": None, "milliseconds": None, "verdict": None, "noise_floor": None}
SLOWER = "slower"
CONFIRMATION = 4.0
"""Times the seconds that a model gets which came out slower: of a hundred some do by chance. Both measurements are
kept, and the longer one counts."""


def latencies(
    cache: Path,
    names: Sequence[str],
    results: Results,
    tell: Callable[[str], None],
    *,
    budget_s: float,
    library: str = "onnxruntime",
    form: str = FORMS[0],
) -> dict[str, dict[str, Any]]:
    """The row of every exported model, from the file where it is still good.

    Args:
        cache: the folder.
        names: the models.
        results: the rows so far.
        tell: is told one line a model.
        budget_s: seconds a model, warm-up included.
        library: of :data:`RUNTIMES`, which runs both sides.
        form: which export of the models, of :data:`coverage_report.exports.FORMS`.
    """
    import convbn

    runtime = f"{library} {version(library)}"

    def row_of(name: str, path: Path, folded: onnx.ModelProto, seconds: float) -> dict[str, Any]:
        # Speed depends on what the fold made, not on the code that made it.
        made = hashlib.sha256(folded.SerializeToString(deterministic=True)).hexdigest()[:16]
        key = f"{name}|{content_of(path)}|{made}|latency|{runtime}|{seconds:g}"
        row = results.get(key)
        if row is None:
            row = measured(path, folded, seconds, RUNTIMES[library])
            results.add(key, row)
            tell(f"latency {name} {form}, {library}: {row['failure'] or row['ratio']}")
            gc.collect()
        return row

    rows = {}
    for name in names:
        path = form_path(cache, name, form)
        if not path.exists():
            continue
        try:
            folded = convbn.fuse(path, options=convbn.FuseOptions(verify=False))[0]
        except Exception as error:  # a fold in development may raise anything
            rows[name] = NOTHING | {"failure": f"{type(error).__name__}: {error}"[:300]}
            continue
        rows[name] = row_of(name, path, folded, budget_s)
        if rows[name]["verdict"] == SLOWER:
            rows[name] = row_of(name, path, folded, CONFIRMATION * budget_s) | {"first": rows[name]}
    return rows


def measured(path: Path, folded: onnx.ModelProto | Path, budget_s: float, runtime: str) -> dict[str, Any]:
    """The row of one file against another that does the same.

    Args:
        path: of the unfused file.
        folded: what convbn makes of it, or who else.
        budget_s: seconds in all.
        runtime: that runs both sides.
    """
    from convbn.bench.cases.case import Case
    from convbn.bench.measure.options import ProtocolOptions
    from convbn.bench.measure.protocol import measure
    from convbn.bench.runtimes.base import Variant

    try:
        variants = (Variant("untouched", onnx=path), Variant("convbn", onnx=folded))
        options = ProtocolOptions(threads=1, budget_seconds=budget_s, memory=False)
        result = measure([Case("untouched", variants, (runtime,), threads=1)], options)
    except Exception as error:  # a runtime may raise anything
        return NOTHING | {"failure": f"{type(error).__name__}: {error}"[:300]}
    case = result.cases[0]
    baseline, row = case.rows
    if row.ratio is None or baseline.latency is None or row.latency is None:
        return NOTHING | {"failure": row.reason or baseline.reason}
    return NOTHING | {
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
