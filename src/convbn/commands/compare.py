"""``convbn compare``: what changed between two stored results."""

from __future__ import annotations

import argparse

from convbn.bench.report import changes
from convbn.bench.results.compare import check_machines, compare
from convbn.bench.results.read import read_result
from convbn.commands.steps.shared import console_of, write_json, write_text

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Compare; the exit code is 0 whatever changed, as gates are for ``bench`` and ``report``."""
    before, after = read_result(options.before), read_result(options.after)
    if not options.any_machine:
        check_machines(
            before["environment"], after["environment"], source=options.before, way="--any-machine"
        )
    found = compare(before, after)
    console_of(options).document(changes.document(found))
    write_json(options.json, found.to_dict(), overwrite=options.force)
    if options.markdown is not None:
        write_text(options.markdown, changes.markdown(found), overwrite=options.force)
    return 0
