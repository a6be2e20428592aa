"""The steps of a plan, each a function that a worker calls: fold, prove, convert, build, measure.

Each reads files of its source and of the entries that it is ``given``, and writes into ``folder``, which becomes its
own entry. Arguments are those of the command line, so that a plan can say whatever a verb can.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convbn.fuse.summary import worst_output
from convbn.pipeline.store import Entry
from convbn.pipeline.works import Result, verb

__all__ = ["build", "convert", "fold", "measure", "program", "prove"]

_FOLD = ".fold.json"
_PROOF = ".proof.json"
_MODEL = ".onnx"


def fold(
    folder: Path, given: Mapping[str, Entry], *, source: str, arguments: Sequence[str], stem: str
) -> Result:
    """Fold a model and write it as ONNX, not yet proven: nothing delivers it before :func:`prove` has succeeded.

    Args:
        folder: gets ``STEM.onnx``, its weights in a file of their own if it needs one, and what the proof must know.
        given: nothing.
        source: ONNX file, checkpoint or name of a hub.
        arguments: how to read it, which rules to use.
        stem: of the file's name.
    """
    from convbn.commands.steps.shared import fuse_options, load_options, refuse_warnings
    from convbn.export.loading.open import open_source
    from convbn.fuse.fold import fold as fold_model
    from convbn.onnx_pass import Written, fold_opened, staged_fold
    from convbn.proof import plan_of

    out = folder / f"{stem}{_MODEL}"
    options = _parsed("fuse", source, "-o", str(out), *arguments)
    model = open_source(source, load_options(options), light=True)
    how = fuse_options(options, verify=False)
    if model.opened is not None:
        with model.opened.files:
            folding = fold_opened(model.opened, how, input_shapes=model.input_shapes)
            with staged_fold(model.opened, folding, Written(out)):
                pass
    else:
        from convbn.export.onnx_io.read import save_model

        folding = fold_model(model.as_onnx(), options=how, owned=True)
        save_model(folding.model, out, overwrite=False)
    report = model.named_in(folding.report)
    refuse_warnings(options, report)
    plan = plan_of(report)
    _write(
        folder / _FOLD,
        report.to_dict() | {"plan": None if plan is None else [plan.folds, plan.moved, plan.merges]},
    )
    return Result(
        {
            "batchnorm": report.batchnorm.to_dict(),
            "nodes": report.nodes.to_dict(),
            "kept": len(report.kept),
            "bytes": sum(path.stat().st_size for path in folder.glob(f"{stem}.*")),
        }
    )


def prove(
    folder: Path, given: Mapping[str, Entry], *, source: str, arguments: Sequence[str], stem: str
) -> Result:
    """Compare a folded model with its source: every region that the fold changed, and all outputs.

    Args:
        folder: gets the outcome of the comparison.
        given: the entry of ``fold``.
        source, arguments, stem: as for :func:`fold`.

    Raises:
        CheckFailedError: the outputs differ, or the comparison proves nothing.
    """
    from convbn.bench.proof.prove import FoldPlan
    from convbn.commands.steps.shared import load_options, refuse_unseen
    from convbn.export.loading.open import open_source
    from convbn.proof import require_equal, verify

    options = _parsed("fuse", source, "-o", f"{stem}{_MODEL}", *arguments)
    original = open_source(source, load_options(options), light=True, hashed=False)
    plan = _read(given["fold"].path(_FOLD))["plan"]
    if plan is not None:
        folds, moved, merges = _tuples(plan)
        plan = FoldPlan(folds, moved, merges, original.as_onnx() if original.is_torch else None)
    answer = verify(
        original.runnable,
        given["fold"].path(f"{stem}{_MODEL}"),
        example_inputs=original.example_inputs,
        input_shapes=original.input_shapes,
        inputs=original.inputs,
        seed=options.seed,
        plan=plan,
    )
    require_equal(answer, source, "nothing of it was delivered")
    outcome = answer.to_dict()
    if options.strict:
        refuse_unseen(outcome, source)
    _write(folder / _PROOF, outcome)
    return Result(_proof_summary(outcome))


def convert(
    folder: Path, given: Mapping[str, Entry], *, arguments: Sequence[str], stem: str, name: str
) -> Result:
    """Bring a proven model into another precision, and compare it with what it came from.

    Args:
        folder: gets the file.
        given: the entry of ``fold``.
        arguments: the precision, calibration data, and what else ``convbn export`` takes for an ONNX file.
        stem: of the folded file's name.
        name: of the file.
    """
    source = str(given["fold"].path(f"{stem}{_MODEL}"))
    return verb(
        ["export", source, "-o", str(folder / name), "--no-fuse", "--quiet", *arguments], report=False
    )


def program(
    folder: Path, given: Mapping[str, Entry], *, source: str, arguments: Sequence[str], name: str
) -> Result:
    """Fold, prove and write a PyTorch program: what ``convbn export SOURCE -o NAME`` does."""
    result = verb(["export", source, "-o", str(folder / name), "--quiet", *arguments])
    if result.report is None or result.exit_code:
        return Result(None, result.error, result.exit_code)
    _write(folder / _FOLD, result.report)
    return Result({"batchnorm": result.report["batchnorm"], **_proof_summary(result.report["verify"])})


def build(
    folder: Path,
    given: Mapping[str, Entry],
    *,
    arguments: Sequence[str],
    stem: str,
    converted: str | None,
    name: str,
    unfused: str | None,
) -> Result:
    """Build an engine and its sidecar.

    Args:
        folder: gets both.
        given: the entries of ``fold``, ``prove`` and, if it was converted, ``convert``.
        arguments: backend, shapes, and what else ``convbn export`` takes for an engine.
        stem: of the folded file's name.
        converted: name of the file in another precision, if it is built of that.
        name: of the engine.
        unfused: the ONNX file before the fold, if there is one; its Scale layers are counted.
    """
    from convbn.commands.options.engine import engine_options
    from convbn.export.onnx_io.provenance import precision_record
    from convbn.export.onnx_io.read import load_model
    from convbn.export.shapes import parse_profiles
    from convbn.exporting import build_engine

    entry, file = ("fold", f"{stem}{_MODEL}") if converted is None else ("convert", converted)
    source = given[entry].path(file)
    options = _parsed("export", str(source), "-o", str(folder / name), "--no-fuse", *arguments)
    conversion = None
    if converted is not None:
        conversion = precision_record(load_model(source, external_data=False))
    report = _read(given["fold"].path(_FOLD)) | {"verify": _read(given["prove"].path(_PROOF))}
    keys = ("input", "batchnorm", "nodes", "folded", "kept", "merged", "verify")
    artifact = build_engine(
        source,
        folder / name,
        backend=options.backend,
        precision=options.precision,
        tf32=not options.no_tf32,
        shapes=parse_profiles(options.shapes),
        options=engine_options(options),
        unfused_model=unfused,
        fold_summary={key: report[key] for key in keys},
        conversion=conversion,
    )
    sidecar = artifact.sidecar
    shown = {key: sidecar[key] for key in ("scale_layers", "warnings") if key in sidecar}
    made = {"bytes": artifact.size, "backend": artifact.backend, "backend_version": artifact.backend_version}
    return Result(made | shown)


def measure(
    folder: Path, given: Mapping[str, Entry], *, source: str, arguments: Sequence[str], name: str
) -> Result:
    """Measure the original against its folded self: the result and its page. A gate that fails twice fails the step.

    Args:
        folder: gets ``NAME.json`` and ``NAME.html``.
        given: not used; the model was proven before.
        source: as for :func:`fold`.
        arguments: how to read it, and those of ``convbn bench``.
        name: of the files.
    """
    json_file = folder / f"{name}.json"
    words = ["bench", source, "--quiet", *arguments, "--html", str(folder / f"{name}.html")]
    # The runner has the machine for as long as this step runs.
    result = verb(words, report=False, given={"json": str(json_file), "machine_held": True})
    found = _read(json_file) if json_file.exists() else None
    return Result(None if found is None else _bench_summary(found), result.error, result.exit_code)


def _parsed(*arguments: str) -> argparse.Namespace:
    from convbn.cli import parser

    return parser(arguments[0]).parse_args(arguments)


def _proof_summary(verify: Mapping[str, Any]) -> dict[str, Any]:
    """The outcome of a comparison without its outputs, of which there may be hundreds."""
    outputs = verify.get("outputs", ())
    proof = verify.get("proof") or {}
    worst = worst_output(outputs) or {}
    return {
        "status": verify["status"],
        "reason": verify["reason"],
        "error": worst.get("rel_error"),
        "bound": worst.get("bound"),
        "noise": worst.get("noise"),
        "samples": verify.get("samples"),
        "proof": proof.get("sentence"),
        "not_shown": [shown["name"] for shown in proof.get("folds", ()) if shown["how"] is None],
    }


def _bench_summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """Of each comparison, how it came out; times and blocks are in the result itself."""
    from convbn.bench.results.comparisons import case_label, comparisons

    return {
        "rows": [
            {
                "case": case_label(result, one.case),
                **{key: one.row[key] for key in ("runtime", "side", "status", "reason", "ratio", "verdict")},
            }
            for one in comparisons(result)
        ]
    }


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _tuples(value: Any) -> Any:
    """Lists of JSON as the tuples that they were."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
