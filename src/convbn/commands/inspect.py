"""``convbn inspect``: what a fold would do."""

from __future__ import annotations

import argparse
from dataclasses import replace

from convbn.commands.shared import console_of, from_source, fuse_options, source_options, write_json
from convbn.fuse.fold import fold
from convbn.sources import open_source

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Plan and report; nothing is written."""
    console = console_of(options)
    with console.phase("reading"):
        source = open_source(options.input, source_options(options))
    with console.phase("planning"):
        folding = fold(
            source.model, source.example_inputs, options=fuse_options(options, verify=False), owned=True
        )
    nothing = {"status": "not run", "reason": "inspect writes nothing, so there is nothing to compare"}
    report = replace(from_source(folding.report, source), verify=nothing)
    console.report(report, would=True)
    write_json(options.json, report.to_dict())
    return 0
