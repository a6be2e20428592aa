"""``convbn verify``: do two files compute the same?"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from convbn.commands.steps.console import Console
from convbn.commands.steps.shared import console_of, load_options, write_json
from convbn.common.text import printable
from convbn.errors import UsageError
from convbn.export.loading.open import open_model_or_engine
from convbn.export.loading.source_model import LoadOptions, SourceModel

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Compare; exit code 1 unless equality was shown."""
    from convbn.bench.models.inputs import is_onnx
    from convbn.bench.runtimes.registry import check_runtime
    from convbn.proof import verify

    console = console_of(options)
    how = _load_options(options)
    if options.runtime is not None:
        check_runtime(options.runtime)
    with console.phase("reading"):
        reference, candidate = (
            open_model_or_engine(path, how, options.trust_engine, light=True, hashed=False)
            for path in (options.reference, options.candidate)
        )
    if options.layers and not all(is_onnx(source.runnable) for source in (reference, candidate)):
        raise UsageError("--layers compares the values of ONNX models", hint="export both with --no-fuse")
    with console.phase("comparing") as progress:
        answer = verify(
            reference.runnable,
            candidate.runnable,
            example_inputs=reference.example_inputs or candidate.example_inputs,
            input_shapes=reference.input_shapes or candidate.input_shapes,
            inputs=reference.inputs,
            seed=options.seed,
            precision=options.precision,
            tolerance=options.tolerance,
            runtime=options.runtime,
            progress=progress,
        )
    console.table(
        ("output", "relative error", "worst channel", "RMS error", "cosine", "same class", "bound"),
        [
            (
                o.name,
                _number(o.rel_error),
                _number(o.worst_channel_error),
                _number(o.rms_error),
                "-" if o.cosine is None else f"{o.cosine:.6f}",
                "-" if o.top1_agreement is None else f"{o.top1_agreement:.1%}",
                _number(o.bound),
            )
            for o in answer.outputs
        ],
    )
    console.say(f"{answer.status}: {printable(answer.reason)}")
    found = {} if not options.layers else {"layers": _layers(reference, candidate, options, console)}
    write_json(options.json, answer.to_dict() | found)
    return 0 if answer.equal else 1


def _layers(
    reference: SourceModel, candidate: SourceModel, options: argparse.Namespace, console: Console
) -> dict[str, Any]:
    """Say where the two part; the whole table goes into the JSON."""
    from convbn.proof import compare_layers

    with console.phase("comparing value by value"):
        found = compare_layers(
            reference.runnable,
            candidate.runnable,
            input_shapes=reference.input_shapes or candidate.input_shapes,
            inputs=reference.inputs,
            seed=options.seed,
        )
    apart = [row for row in found.rows if not row.same]
    if apart:
        console.table(
            ("value", "of", "error", "bound"),
            [(row.value, row.op, _number(row.error), _number(row.bound)) for row in apart[:_ROWS]],
        )
    same = len(found.rows) - len(apart)
    console.say(f"{same} of {len(found.rows)} common values are the same")
    if found.first is not None:
        console.say(
            f"the first that differs up to an output: {printable(found.first.value)} ({found.first.op}), "
            f"by {found.first.error:.2g}, bound {found.first.bound:.2g}"
        )
    return found.to_dict()


#: Values that are listed.
_ROWS = 20


def _load_options(options: argparse.Namespace) -> LoadOptions:
    """How to open both models, with the inputs that they are run on."""
    from convbn.export.precision.int8.images import parse_preprocess

    how = load_options(options)
    if options.calibration is None:
        if options.preprocess is not None:
            raise UsageError("--preprocess is of images, and needs --calibration PATH")
        if options.precision == "int8" and how.inputs is None:
            raise UsageError(
                "an int8 model is as exact as its ranges fit the data, which random inputs are not like",
                source="--precision int8",
                hint="give --calibration PATH with the inputs it was calibrated on, or --inputs PATH",
            )
        return how
    if how.inputs is not None:
        raise UsageError("--calibration and --inputs are two names of the same", hint="leave one of them out")
    spec = options.preprocess
    preprocess = None if spec is None else parse_preprocess(spec)
    return replace(how, inputs=options.calibration, preprocess=preprocess)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"
