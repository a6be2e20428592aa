"""``convbn report``: reports and gates from a stored result, without measuring."""

from __future__ import annotations

import argparse
from dataclasses import replace

from convbn.bench.gates.judge import judge, unconfirmed
from convbn.bench.results.comparisons import SELF_FUSED
from convbn.bench.results.read import read_result
from convbn.commands.steps.reporting import deliver, finish, plan
from convbn.commands.steps.shared import console_of, write_json

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Render and judge; exit code 1 if outputs differ or a gate fails."""
    result = read_result(options.result)
    asked = plan(options, result["environment"])
    outcomes = judge(result, asked.gates, baseline=asked.baseline, references=(SELF_FUSED,))
    once = {outcome.key for outcome in unconfirmed(outcomes)}
    told = "; a stored result cannot be measured again, so this counts unconfirmed"
    outcomes = tuple(
        replace(outcome, sentence=outcome.sentence + told) if outcome.key in once else outcome
        for outcome in outcomes
    )
    write_json(options.json, result, overwrite=options.force)
    deliver(result, outcomes, options, console_of(options))
    return finish(result, outcomes)
