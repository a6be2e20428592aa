"""Gates judged on a result, and failures confirmed by a second one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from convbn.bench.gates.conditions import Condition, parse, shown
from convbn.bench.gates.fields import Judged
from convbn.bench.results.compare import Change, compare
from convbn.bench.results.comparisons import Comparison, comparisons, measured
from convbn.common.encoding import JsonReady
from convbn.common.text import clean
from convbn.errors import UsageError

__all__ = ["Gate", "GateOutcome", "confirmed", "gates_from", "judge", "unconfirmed"]

Status = Literal["passed", "failed", "not judged", "skipped"]


@dataclass(frozen=True)
class Gate:
    """A condition under which a result fails.

    Attributes:
        text: as the user wrote it.
        condition: the same, read.
        allow_missing: whether what was not measured is skipped; else it fails.
    """

    text: str
    condition: Condition
    allow_missing: bool = False

    @property
    def timed(self) -> bool:
        """Whether a second run may come out differently."""
        return any(atom.field.timed for atom in self.condition.atoms())


@dataclass(frozen=True)
class GateOutcome(JsonReady):
    """What a gate said of one side in one runtime of one case; empty names where it speaks of all.

    Attributes:
        status: "not judged" is a failure too: what was not measured cannot be shown to be good.
        sentence: why.
        must: the condition that has to hold.
        timed: whether a failure needs a second run to count.
    """

    gate: str
    status: Status
    case: str
    runtime: str
    side: str
    sentence: str
    timed: bool
    must: str = ""

    @property
    def fails(self) -> bool:
        """Whether it makes the command fail."""
        return self.status in ("failed", "not judged")

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What it is about."""
        return self.gate, self.case, self.runtime, self.side


def gates_from(texts: Sequence[str], *, baseline: bool, allow_missing: bool) -> tuple[Gate, ...]:
    """Read the gates of a command line.

    Args:
        texts: of ``--fail-if``.
        baseline: whether there is a result to compare with. If no condition speaks of ``change``, a
            side that got slower fails.
        allow_missing: whether what was not measured is skipped.

    Returns:
        The gates.

    Raises:
        UsageError: a condition cannot be read, or speaks of ``change`` without a baseline.
    """
    gates = [Gate(text, parse(text), allow_missing) for text in texts]
    about_change = [
        gate for gate in gates if any(a.name.startswith("change") for a in gate.condition.atoms())
    ]
    if about_change and not baseline:
        raise UsageError(
            "speaks of a change, and there is nothing to compare with",
            source=f"--fail-if {about_change[0].text!r}",
            hint="name an earlier result with --baseline",
        )
    if baseline and not about_change:
        gates.append(Gate("change > 1", parse("change > 1"), allow_missing))
    return tuple(gates)


def judge(
    result: Mapping[str, Any],
    gates: Sequence[Gate],
    *,
    baseline: Mapping[str, Any] | None = None,
    references: Collection[str] = (),
) -> tuple[GateOutcome, ...]:
    """Judge gates on a result.

    Args:
        result: by the published schema.
        gates: the conditions.
        baseline: an earlier result, for conditions on ``change``.
        references: sides that are there to compare with, and on which no gate is judged.

    Returns:
        One outcome for each gate and side in each runtime, or for each case where the condition speaks of
        the whole case.
    """
    changes = compare(baseline, result).changes if baseline is not None else ()
    by_key = {(change.case, change.runtime, change.side): change for change in changes}
    found = [one for one in comparisons(result) if one.row["side"] not in references]
    return tuple(outcome for gate in gates for outcome in _judged(gate, found, by_key, changes))


def _judged(
    gate: Gate,
    found: Sequence[Comparison],
    changes: Mapping[tuple[str, str, str], Change],
    all_changes: Sequence[Change],
) -> Iterator[GateOutcome]:
    atoms = list(gate.condition.atoms())
    seen: set[str] = set()
    if not found:
        yield _outcome(gate, ("", "", ""), None, "nothing was compared")
    for one in found:
        key = (one.case["id"], one.row["runtime"], one.row["side"])
        if all(atom.field.whole for atom in atoms):
            key = (one.case["id"], "", "")
            if key[0] in seen:
                continue
            seen.add(key[0])
        subject = Judged(one, changes.get((one.case["id"], one.row["runtime"], one.row["side"])))
        values = {atom.name: atom.field.read(subject) for atom in atoms}
        told = ", ".join(f"{name} is {shown(name, value)}" for name, value in values.items())
        if _is_new(subject, values):
            new = replace(gate, allow_missing=True)
            yield _outcome(new, key, None, f"{told}; it is not in the baseline")
            continue
        if one.row["reason"] and None in values.values():
            told += f" ({clean(one.row['reason'], 200)})"
        yield _outcome(gate, key, gate.condition.judge(subject), told)
    if any(atom.name.startswith("change") for atom in atoms):
        for change in all_changes:
            gone = (change.case, change.runtime, change.side)
            if change.verdict == "only before" and gone not in {
                (one.case["id"], one.row["runtime"], one.row["side"]) for one in found
            }:
                yield _outcome(gate, gone, None, "it was measured in the baseline and is not here")


def _is_new(subject: Judged, values: Mapping[str, object]) -> bool:
    """Whether nothing is missing but an earlier measurement."""
    missing = [name for name, value in values.items() if value is None]
    unknown = subject.change is None or subject.change.verdict == "only after"
    return (
        bool(missing)
        and unknown
        and all(n.startswith("change") for n in missing)
        and measured(subject.comparison.row)
    )


def _outcome(gate: Gate, key: tuple[str, str, str], holds: bool | None, told: str) -> GateOutcome:
    status: Status = "failed" if holds else "passed"
    verb = "does not hold" if holds else "holds"
    if holds is None:
        status, verb = ("skipped", "skipped") if gate.allow_missing else ("not judged", "cannot be judged")
    where = " ".join(
        part
        for part in (clean(key[0], 80), f"in {clean(key[1], 60)}" if key[1] else "", clean(key[2], 60))
        if part
    )
    start = f"{where}: " if where else ""
    sentence = f"{start}must hold: {clean(gate.condition.opposite, 200)} → {verb}: {told}"
    return GateOutcome(gate.text, status, *key, sentence, gate.timed, gate.condition.opposite)


def unconfirmed(outcomes: Sequence[GateOutcome]) -> tuple[GateOutcome, ...]:
    """Failures that a second run has to repeat before they count."""
    return tuple(outcome for outcome in outcomes if outcome.status == "failed" and outcome.timed)


def confirmed(first: Sequence[GateOutcome], second: Sequence[GateOutcome]) -> tuple[GateOutcome, ...]:
    """What two runs say together.

    Args:
        first: of the first run.
        second: of a second one, which need not cover more than what failed in the first.

    Returns:
        The first outcomes. A timed failure that the second run did not repeat has passed; both numbers are
        in its sentence.
    """
    again = {outcome.key: outcome for outcome in second}
    together = []
    for outcome in first:
        if outcome.status != "failed" or not outcome.timed:
            together.append(outcome)
            continue
        other = again.get(outcome.key)
        told = "it was not measured again" if other is None else other.sentence.rpartition(": ")[2]
        if other is not None and other.status == "passed":
            text = f"{outcome.sentence}; a second run did not confirm it ({told})"
            together.append(replace(outcome, status="passed", sentence=text))
        elif other is not None and other.status == "failed":
            together.append(
                replace(outcome, sentence=f"{outcome.sentence}; a second run confirms it ({told})")
            )
        else:
            text = f"{outcome.sentence}; a second run could not confirm it ({told})"
            together.append(replace(outcome, status="not judged", sentence=text))
    return tuple(together)
