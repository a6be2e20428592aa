"""``convbn verify``: do two files compute the same?"""

from __future__ import annotations

import argparse

from convbn.commands.steps.shared import console_of, load_options, write_json
from convbn.common.text import printable
from convbn.export.loading.open import open_model_or_engine

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Compare; exit code 1 unless equality was shown."""
    from convbn.proof import verify

    console = console_of(options)
    with console.phase("reading"):
        how = load_options(options)
        reference, candidate = (
            open_model_or_engine(path, how, options.trust_engine, light=True, hashed=False)
            for path in (options.reference, options.candidate)
        )
    with console.phase("comparing"):
        answer = verify(
            reference.runnable,
            candidate.runnable,
            example_inputs=reference.example_inputs or candidate.example_inputs,
            input_shapes=reference.input_shapes or candidate.input_shapes,
            seed=options.seed,
            precision=options.precision,
            tolerance=options.tolerance,
            runtime=options.runtime,
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
    write_json(options.json, answer.to_dict())
    return 0 if answer.equal else 1


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"
