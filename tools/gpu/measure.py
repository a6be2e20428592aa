"""Unfused against folded on a GPU, in order of worth: every result is on disk before the next trial starts.

    make gpu-bench
    PYTHONPATH=src python tools/gpu/measure.py OUT --seconds 600

The second form needs nothing installed but torch, numpy, onnx and onnxruntime; torchvision and timm bring most of
the networks. What else is missing (onnx-graphsurgeon, TensorRT) becomes rows that say so. Run again with the same
OUT it goes on where it ended. ``--rehearse`` runs every stage with two tiny networks on the CPU.

Writes ``trials/*.json``, ``facts.json``, and at the end of each stage ``gpu.json`` (bench/bench-result.schema.json),
``gpu.md`` and ``gpu.html``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path

sys.path.extend(str(Path(__file__).resolve().parents[2] / folder) for folder in ("tools", "tests"))

import torch

from convbn.bench.cases.case import Case
from convbn.bench.cases.forms import in_precision, with_engines
from convbn.bench.measure.options import ProtocolOptions
from convbn.bench.measure.protocol import measure
from convbn.bench.runtimes.base import Variant
from convbn.bench.runtimes.registry import RUNTIMES, form_of, load_library
from convbn.errors import ConvBNError, NotSupportedError
from gpu import stages
from gpu.networks import NETWORKS, TINY
from gpu.plan import TRIALS, trials
from gpu.result_folder import ResultFolder, Trial
from gpu.variants import Prepared, onnx_variants, torch_variants

STAGES = ("facts", "proof", "kernels", *TRIALS)
#: Up to which share of the time that is left a stage may go on, so that none starves the next.
MARKS = {
    "facts": 0.1,
    "proof": 0.1,
    "kernels": 0.15,
    "eager": 0.35,
    "graphs": 0.5,
    "compile": 0.4,
    "onnxruntime": 0.5,
}
#: What stands for a GPU's runtime in a rehearsal.
ON_THE_CPU = {
    "torch-cuda": "torch-cpu",
    "torch-cudagraph": "torch-cpu",
    "torch-compile-cuda": "torch-compile-cpu",
    "onnxruntime-cuda": "onnxruntime-cpu",
    "onnxruntime-tensorrt": "onnxruntime-cpu",
}
_BROKEN_DEVICE = ("CUDA error", "illegal memory access", "CUDNN_STATUS_EXECUTION_FAILED")


def main(arguments: list[str] | None = None) -> int:
    """Measure what the time allows; exit code 1 if outputs differ, 3 if the device broke."""
    options = _parser().parse_args(arguments)
    chosen = options.stages.split(",")
    networks = options.only.split(",") if options.only else list(TINY if options.rehearse else NETWORKS)
    for word, known in [*((one, STAGES) for one in chosen), *((one, NETWORKS | TINY) for one in networks)]:
        if word not in known:
            _parser().error(f"there is no {word!r}: choose of {', '.join(known)}")
    if not (options.rehearse or torch.cuda.is_available()):
        _parser().error(f"torch {torch.__version__} sees no CUDA GPU; --rehearse runs all of it on the CPU")
    results = ResultFolder(options.out, options.seconds, stages.machine())
    for stage in chosen:
        begun = time.monotonic()
        results.share(MARKS.get(stage, 1.0))
        _run(results, stage, networks, options)
        results.facts.setdefault("seconds", {})[stage] = round(time.monotonic() - begun, 1)
        results.save_facts()
        results.reports()
    for stage in chosen:  # whatever time is left goes to what was cut off, the worthiest first
        results.share(1.0)
        _run(results, stage, networks, options)
    results.reports()
    rows = [row for case in (results.results() or {"cases": []})["cases"] for row in case["rows"]]
    measured = sum(row["status"] == "measured" for row in rows)
    print(f"{measured} of {len(rows)} rows measured, {max(0.0, results.left()):.0f} s left")
    for reason in sorted({str(row["reason"]) for row in rows if row["reason"]}):
        print(f"not measured: {reason}")
    return 1 if any((row["equality"] or {}).get("status") == "different" for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument(
        "--seconds", type=float, default=600.0, help="after which no trial starts (default: 600)"
    )
    parser.add_argument("--stages", default=",".join(STAGES), help=f"of {','.join(STAGES)}")
    parser.add_argument("--only", default="", help="networks, separated by commas")
    parser.add_argument("--rehearse", action="store_true", help="two tiny networks on the CPU")
    parser.add_argument("--most", type=int, help="trials of a stage (default: all; 3 in a rehearsal)")
    parser.add_argument("--memory", action="store_true", help="a process for each row's memory: slow")
    return parser


def _run(results: ResultFolder, stage: str, networks: list[str], options: argparse.Namespace) -> None:
    if stage not in TRIALS:
        try:
            getattr(stages, stage)(results, networks)
        except Exception as error:  # a stage that fails must not take the others with it
            _tell(results, stage, error)
        return
    most = options.most or (3 if options.rehearse else None)
    for trial in trials(stage, networks)[:most]:
        if results.left() <= 0:
            return
        if not results.has(trial.key):
            _trial(results, trial, options)


def _trial(results: ResultFolder, trial: Trial, options: argparse.Namespace) -> None:
    """Run one trial and keep what came of it."""
    begun, failure = time.monotonic(), None
    runtime, batch = trial.runtime, trial.batch
    if options.rehearse:
        runtime, batch = _on_the_cpu(runtime), min(batch, 2)
    variants: tuple[Variant, ...] = (Variant("original"), Variant("folded"))
    prepared: Prepared | None = None
    with tempfile.TemporaryDirectory(prefix="convbn-gpu-") as folder:
        try:
            load_library(runtime)  # nothing is exported or folded for a runtime that is not here
            torch_form = form_of(runtime) == "torch"
            prepared = (
                torch_variants(trial.network, batch, peers=trial.peers)
                if torch_form
                else onnx_variants(trial.network, batch, runtime)
            )
            variants = tuple(
                in_precision(variant, trial.precision, prepared.subject, 0) for variant in prepared.variants
            )
            variants = tuple(
                with_engines(variant, (runtime,), prepared.subject, Path(folder)) for variant in variants
            )
            if prepared.notes:
                results.facts.setdefault("notes", {})[trial.network] = prepared.notes
        except Exception as error:  # a network that cannot be made here is a row that says why
            failure = error if isinstance(error, ConvBNError) else _missing(error)
        case = Case(
            trial.network,
            variants,
            (runtime,),
            batch=batch,
            precision=trial.precision,
            fold=None if prepared is None else prepared.fold,
            failure=failure,
        )
        try:
            result = measure([case], _protocol(options))
        except Exception as error:  # the device may break in the middle of anything
            broken = NotSupportedError(f"{type(error).__name__}: {str(error)[:300]}")
            _tell(results, trial.key, error)
            try:
                result = measure([replace(case, failure=broken)], _protocol(options))
            except Exception:  # not the trial, but what every trial needs: a later run may try it again
                return
    result = replace(
        result,
        title="On the GPU: unfused against folded",
        command="python tools/gpu/measure.py " + " ".join(sys.argv[1:]),
        extra=({"label": "Weights", "value": "random; BatchNorm statistics as training leaves them"},),
    )
    results.put(trial.key, result.to_dict())
    for row in result.cases[0].rows:
        ratio = row.ratio
        told = row.reason or (
            f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] {row.verdict}" if ratio else ""
        )
        median = f"{row.latency.median * 1e6:9.1f} µs" if row.latency else ""
        print(f"{trial.key} | {row.side} | {median} | {told[:160]}", flush=True)
    print(f"  {time.monotonic() - begun:.1f} s, {results.left():.0f} s left", flush=True)
    if any(mark in str(row.reason) for row in result.cases[0].rows for mark in _BROKEN_DEVICE):
        results.reports()
        print("the device is broken for this process; run again to go on behind this trial", file=sys.stderr)
        raise SystemExit(3)


def _missing(error: Exception) -> ConvBNError:
    """What a trial needs and this machine lacks, in a row's words."""
    if isinstance(error, ModuleNotFoundError):
        return NotSupportedError(f"{error.name} is not installed", hint=f"pip install {error.name}")
    return NotSupportedError(f"{type(error).__name__}: {str(error)[:300]}")


def _protocol(options: argparse.Namespace) -> ProtocolOptions:
    quick = options.rehearse
    return ProtocolOptions(
        block_seconds=0.002 if quick else 0.02,
        budget_seconds=0.1 if quick else 2.5,
        warmup_seconds=0.02 if quick else 0.3,
        min_blocks=3 if quick else 20,
        max_blocks=20 if quick else 200,
        samples=1,
        memory=options.memory,
    )


def _on_the_cpu(runtime: str) -> str:
    base, _, levels = runtime.partition("@")
    base = ON_THE_CPU.get(base, base)
    known = {level for group in RUNTIMES[base].levels for level in group}
    kept = "+".join(level for level in levels.split("+") if level in known)
    return f"{base}@{kept}" if kept else base


def _tell(results: ResultFolder, where: str, error: Exception) -> None:
    results.facts.setdefault("failed", {})[where] = f"{type(error).__name__}: {str(error)[:300]}"
    results.save_facts()
    print(f"{where} failed: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
    traceback.print_exc(limit=4)


if __name__ == "__main__":
    sys.exit(main())
