"""``convbn verify``: do two files compute the same?"""

from __future__ import annotations

import argparse

from convbn.commands.shared import console_of, source_options, write_json
from convbn.console import printable
from convbn.sources import open_source

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Compare; exit code 1 unless equality was shown."""
    from convbn.api import verify

    console = console_of(options)
    with console.phase("reading"):
        reference = open_source(options.reference, source_options(options))
        candidate = open_source(options.candidate, source_options(options))
    with console.phase("comparing"):
        answer = verify(
            reference.model,
            candidate.model,
            example_inputs=reference.example_inputs or candidate.example_inputs,
            input_shapes=reference.shapes or candidate.shapes,
            seed=options.seed,
        )
    console.table(
        ("output", "relative error", "worst channel", "bound"),
        [
            (o.name, _number(o.rel_error), _number(o.worst_channel_error), _number(o.bound))
            for o in answer.outputs
        ],
    )
    console.say(f"{answer.status}: {printable(answer.reason)}")
    write_json(options.json, answer.to_dict())
    return 0 if answer.equal else 1


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"
