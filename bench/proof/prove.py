"""The proof of an ONNX fold: every region where it happened, and the whole against the original's own noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from convbn.bench.models.errors import SessionError
from convbn.bench.models.inputs import Array, Feeds
from convbn.bench.proof.claims import Alignment, align, changed_values, open_pairs
from convbn.bench.proof.dataflow import Dataflow
from convbn.bench.proof.local import Outcome, judge_known, judge_regions, relative_gap
from convbn.bench.proof.regions import Region, regions_of
from convbn.bench.proof.whole import Whole

__all__ = ["Fold", "LocalProof", "prove_locally"]

#: How close a value of the folded model that may have changed on purpose must be to pass for the original's.
_ALIKE = 1e-3
_TURNS = 12


@dataclass(frozen=True)
class Fold:
    """One fold, as its report tells it.

    Attributes:
        name: of the BatchNorm.
        into: of the nodes that took it in.
    """

    name: str
    into: tuple[str, ...]


@dataclass(frozen=True)
class Shown:
    """How one fold was seen.

    Attributes:
        name: of the BatchNorm.
        how: "float64", "float32", ..., the type in which a comparison would have noticed an error of 1 % in it;
            None where none would have.
    """

    name: str
    how: str | None


@dataclass(frozen=True)
class LocalProof:
    """What came of it.

    Attributes:
        outcomes: of every claim.
        shown: of every fold.
        given_up: values that changed on purpose, so that their regions are larger.
    """

    outcomes: tuple[Outcome, ...]
    shown: tuple[Shown, ...]
    given_up: tuple[str, ...] = ()
    regions: int = 0
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def wrong(self) -> list[Outcome]:
        """What must hold and does not."""
        return [outcome for outcome in self.outcomes if not outcome.ok]

    @property
    def unseen(self) -> list[str]:
        """Folds that no comparison could see."""
        return [shown.name for shown in self.shown if shown.how is None]


def prove_locally(
    original: Whole,
    folded: Whole,
    feeds: Feeds,
    folds: Sequence[Fold],
    steps: Iterable[Sequence[str]],
) -> LocalProof:
    """Judge every region of a folded model on the original's values for one input.

    Args:
        original: the model before.
        folded: the model after.
        feeds: the input.
        folds: what is to be shown.
        steps: of each step of the plan, the names of the nodes that it edited.

    Raises:
        SessionError: a part of a model cannot be run by itself.
    """
    a, b = original.flow, folded.flow
    changed = changed_values(a, steps)
    given_up = _unlike(open_pairs(a, b, changed), original, folded, feeds)
    for turn in range(_TURNS):
        alignment = align(a, b, changed, given_up)
        regions = regions_of(b, alignment)
        placed = _placed(a, b, alignment, regions, folds)

        def values(names: Iterable[str]) -> Mapping[str, Array]:
            return original.values(feeds, names)

        original.values(feeds, _all_needed(a, b, alignment))
        outcomes = judge_known(alignment.claims, alignment, values)
        outcomes += judge_regions(a, folded, alignment, regions, placed, values)
        failed = {o.claim.folded for o in outcomes if not o.ok and not o.claim.binding}
        if not failed or turn == _TURNS - 1:
            break
        # What stands before decides: values behind one that has changed may be right once it is not cut there.
        given_up |= failed
    shown = tuple(_shown(number, fold, a, outcomes, regions, placed) for number, fold in enumerate(folds))
    return LocalProof(tuple(outcomes), shown, tuple(sorted(given_up)), len(regions))


def _unlike(
    pairs: Sequence[tuple[str, str]], original: Whole, folded: Whole, feeds: Feeds
) -> set[str]:
    """Values that may have changed on purpose and did: whole runs tell it before anything is cut."""
    if not pairs:
        return set()
    before = original.values(feeds, [name for name, _ in pairs])
    after = folded.values(feeds, [name for _, name in pairs])
    return {b for a, b in pairs if relative_gap(before[a], after[b]) > _ALIKE}


def _all_needed(a: Dataflow, b: Dataflow, alignment: Alignment) -> list[str]:
    """Every value of the original that will be asked for, so that it runs once."""
    same = alignment.same
    computed = [claim for claim in alignment.claims if claim.computed]
    fed = b.slice([claim.folded for claim in computed], same).feeds
    ends = [claim.original for claim in alignment.claims]
    own = a.slice(
        [name for name in dict.fromkeys(c.original for c in computed) if name in a.producer],
        {*same.values(), *ends},
    ).feeds
    known = [same[c.folded] for c in alignment.claims if not c.computed]
    return [*(same[name] for name in fed), *own, *ends, *known]


Placed = Mapping[Region, Sequence[tuple[int, tuple[str, ...]]]]


def _placed(
    a: Dataflow, b: Dataflow, alignment: Alignment, regions: Sequence[Region], folds: Sequence[Fold]
) -> dict[Region, list[tuple[int, tuple[str, ...]]]]:
    """In which regions each fold left its numbers."""
    home = {i: region for region in regions for i in region.nodes}
    by_value = {claim.original: claim.folded for claim in alignment.claims if claim.computed}
    before, after = a.report_names(), b.report_names()
    found: dict[Region, list[tuple[int, tuple[str, ...]]]] = {}
    for number, fold in enumerate(folds):
        places = {after[name] for name in fold.into if name in after}
        edited = [before[name] for name in (fold.name, *fold.into) if name in before]
        for name in _outcomes_of(a, edited, follow=not fold.into):
            if name in by_value:
                places.add(b.producer[by_value[name]])
        for region in dict.fromkeys(home[i] for i in sorted(places) if i in home):
            mine = [i for i in region.nodes if i in places]
            own = tuple(
                dict.fromkeys(name for i in mine for name in b.nodes[i].input if name in region.loose)
            )
            found.setdefault(region, []).append((number, own))
    return found


def _outcomes_of(a: Dataflow, edited: Iterable[int], *, follow: bool) -> set[str]:
    """What the edited nodes give; where a BatchNorm was computed with the weights, what reads it in turn."""
    waiting = list(edited)
    found = {name for i in waiting for name in a.nodes[i].output if name}
    while follow and waiting:
        for name in a.nodes[waiting.pop()].output:
            for reader, _ in a.readers.get(name, ()):
                fresh = {n for n in a.nodes[reader].output if n} - found
                found |= fresh
                if fresh and not any(n in a.inputs for n in a.reads[reader]):
                    waiting.append(reader)
    return found


def _shown(
    number: int,
    fold: Fold,
    a: Dataflow,
    outcomes: Sequence[Outcome],
    regions: Sequence[Region],
    placed: Placed,
) -> Shown:
    by_claim = {outcome.claim: outcome for outcome in outcomes}
    for region in regions:
        if number not in {fold_number for fold_number, _ in placed.get(region, ())}:
            continue
        for claim in region.claims:
            outcome = by_claim.get(claim)
            if outcome is None or not outcome.ok:
                continue
            if number in outcome.noticed or (region.layer is not None and outcome.sight > 1):
                return Shown(fold.name, outcome.how)
    place = a.report_names().get(fold.name)
    gives = set(a.nodes[place].output) if place is not None else set()
    for outcome in outcomes:
        if not outcome.claim.computed and outcome.claim.original in gives and outcome.ok and outcome.sight > 1:
            return Shown(fold.name, outcome.how)
    return Shown(fold.name, None)
