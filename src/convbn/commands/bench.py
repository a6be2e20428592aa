"""``convbn bench``: the original against its folded self, or against files the user names."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from convbn.commands.steps.measuring import measured
from convbn.commands.steps.reporting import deliver, finish, judged, plan, require_measurements
from convbn.commands.steps.shared import console_of, write_json

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Measure, report and judge; exit code 1 if outputs differ, a gate fails twice or a side ran nowhere."""
    asked = plan(options)
    console = console_of(options)
    result = measured(options, console).to_dict()
    # Written before anything can fail: what was measured is not lost to a report or a gate.
    write_json(options.json, result, overwrite=options.force)

    def again(runtimes: Sequence[str]) -> Mapping[str, Any]:
        console.say(f"a gate failed; measuring again in {', '.join(runtimes)}")
        narrowed = argparse.Namespace(**{**vars(options), "runtime": ",".join(runtimes)})
        return measured(narrowed, console).to_dict()

    outcomes = judged(result, asked, again)
    deliver(result, outcomes, options, console)
    code = finish(result, outcomes)
    if not options.allow_not_measured:
        require_measurements(result, options.input, (options.runtime or "").split(","))
    return code
