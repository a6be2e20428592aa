"""docs/mutation.md."""

from __future__ import annotations

from typing import Any

from mutation.outcome import KILLED, SURVIVED, TIMEOUT, TYPES, UNTESTED
from mutation.survivors import KINDS

HEAD = """\
# What the tests would notice

Written by `make mutation`; the numbers and every survivor are in [mutation.json](mutation.json).

[mutmut](https://mutmut.readthedocs.io) {mutmut} changes the arithmetic (`fuse/algebra`), the rules
(`fuse/operators`), the plan (`fuse/plan`) and the proof (`bench/proof`), one expression at a time: an operator, a
number, a comparison, an argument, a branch. What `mypy --strict` refuses could not land. Every other change of the fold
is given to the tests of `fuse/`, every other change of the proof to those in `tests/bench/proof`. Left out are the
texts of refusals, since a wording is not a result; what reads the calls of ONNX and PyTorch, which other tests hold;
and what the other process does that runs a model first (`main`, `_run` and two more of `first_run.py`): mutmut does not
see that a test comes to it.

**{total:,} changes: {types:,} refused by mypy, {killed:,} seen by a test, {timeout:,} ran on until stopped;
{alive:,} survive, {explained}.**

{runs}

| file | tried | changes | mypy | tests | ran on | survive |
|---|---|--:|--:|--:|--:|--:|
"""


def page(found: dict[str, dict[str, Any]]) -> str:
    """The document, from what ``run.py`` found of each part."""
    parts = list(found.values())
    totals = {verdict: sum(part["totals"][verdict] for part in parts) for verdict in parts[0]["totals"]}
    explained = [entry for part in parts for entry in part["explained"]]
    unexplained = [mutant for part in parts for mutant in part["unexplained"]]
    text = HEAD.format(
        mutmut=parts[0]["machine"]["mutmut"],
        total=sum(totals.values()),
        types=totals[TYPES],
        killed=totals[KILLED],
        timeout=totals[TIMEOUT],
        alive=totals[SURVIVED] + totals[UNTESTED],
        explained=f"{len(unexplained)} of them without a reason"
        if unexplained
        else "and each of them is known to change no result",
        runs="\n".join(_run(name, part) for name, part in found.items()),
    )
    for part in parts:
        for name, counts in part["files"].items():
            tried = "sample" if "sample" in part and name not in part.get("whole", {}) else "all"
            alive = counts[SURVIVED] + counts[UNTESTED]
            cells = (tried, sum(counts.values()), counts[TYPES], counts[KILLED], counts[TIMEOUT], alive)
            text += f"| {name} | {' | '.join(map(str, cells))} |\n"
    for kind, meaning in KINDS.items():
        chosen = [entry for entry in explained if entry["kind"] == kind]
        if not chosen:
            continue
        text += f"\n## {kind}: {meaning} ({len(chosen)})\n"
        for why in dict.fromkeys(entry["why"] for entry in chosen):
            text += f"\n{why}\n\n"
            text += "".join(f"* `{entry['mutant']}`\n" for entry in chosen if entry["why"] == why)
    if unexplained:
        text += f"\n## Not accounted for ({len(unexplained)})\n\n"
        text += "".join(f"* `{mutant}`\n" for mutant in unexplained)
    return text


def _run(name: str, part: dict[str, Any]) -> str:
    """When and where a part was measured."""
    host = part["machine"]
    took = "" if part["minutes"] is None else f"; {part['minutes']:.0f} minutes"
    note = f" {part['note']}" if "note" in part else ""
    if "sample" in part:
        digits = " or ".join(part["sample"])
        note += f" A sample: of every function the changes whose number ends in {digits}."
    if "whole" in part:
        dates = " and ".join(dict.fromkeys(part["whole"].values()))
        note += f" Of the files with *all* below, every change instead, on {dates}."
    where = f"{host['processor']}, {host['cores']} cores, Python {host['python']}"
    return f"* The {name}: {host['date']}, {where}{took}.{note}"
