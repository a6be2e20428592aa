"""``convbn inspect``: what a fold would do, or what is known of an engine."""

from __future__ import annotations

import argparse
from dataclasses import replace

from convbn.commands.steps.inspect_engine import is_engine, run_on_engine
from convbn.commands.steps.shared import (
    console_of,
    fuse_options,
    load_options,
    refuse_warnings,
    write_json,
)
from convbn.errors import UsageError
from convbn.export.loading.open import open_source
from convbn.fuse.fold import fold
from convbn.fuse.summary import folds_listed

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Plan and report; nothing is written."""
    if is_engine(options.input):
        return run_on_engine(options)
    if options.trust_engine:
        raise UsageError("--trust-engine is for engines", source=options.input)
    console = console_of(options)
    with console.phase("reading"):
        source = open_source(
            options.input, load_options(options), light=True, hashed=options.json is not None
        )
    with console.phase("planning"):
        folding = fold(
            source.model,
            source.example_inputs,
            options=fuse_options(options, verify=False),
            owned=True,
            read=None if source.opened is None else source.opened.files.read,
            input_shapes=source.input_shapes,
        )
    nothing = {"status": "not run", "reason": "inspect writes nothing, so there is nothing to compare"}
    report = replace(source.named_in(folding.report), verify=nothing)
    console.report(report, would=True)
    if report.folded:
        console.show(folds_listed(report.to_dict(), everything=options.all))
    write_json(options.json, report)
    refuse_warnings(options, report)
    return 0
