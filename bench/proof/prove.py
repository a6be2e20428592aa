"""The local proof of an ONNX fold: every region where it happened, and which of the folds that has shown."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convbn.bench.models.inputs import Array, Feeds
from convbn.bench.proof.claims import Alignment, align, changed_values, open_pairs
from convbn.bench.proof.gaps import relative_gap
from convbn.bench.proof.graph.dataflow import Dataflow
from convbn.bench.proof.graph.whole import Whole
from convbn.bench.proof.local import Outcome, judge_known, judge_regions
from convbn.bench.proof.regions import Region, regions_of
from convbn.common.encoding import JsonReady
from convbn.common.progress import Progress, silent

if TYPE_CHECKING:
    import onnx

__all__ = ["IN_OUTPUTS", "FoldPlan", "LocalProof", "LocalProver", "Shown"]

#: How close a value of the folded model that may have changed on purpose must be to pass for the original's.
_ALIKE = 1e-3
#: How a fold was seen whose deliberate error the outputs tell.
IN_OUTPUTS = "the outputs"
_TURNS = 12


@dataclass(frozen=True)
class FoldPlan:
    """What a fold says that it did.

    Attributes:
        folds: of each BatchNorm that went, its name and those of the nodes that took it in.
        moved: values that it changed on purpose.
        merges: of each merge, the names of the nodes that it edited; values between them changed as well.
        exported: the ONNX model that was folded, where what it is held against is what it was exported from.
    """

    folds: tuple[tuple[str, tuple[str, ...]], ...] = ()
    moved: tuple[str, ...] = ()
    merges: tuple[tuple[str, ...], ...] = ()
    exported: onnx.ModelProto | None = None


@dataclass(frozen=True)
class Shown(JsonReady):
    """How one fold was seen.

    Attributes:
        name: of the BatchNorm.
        how: the type in which a comparison would have noticed an error of 1 % in it, or :data:`IN_OUTPUTS` where the
            outputs of the whole did; None where none would have.
    """

    name: str
    how: str | None


@dataclass(frozen=True)
class LocalProof:
    """What came of it.

    Attributes:
        outcomes: of every claim.
        shown: of every fold.
        regions: how many were run.
    """

    outcomes: tuple[Outcome, ...]
    shown: tuple[Shown, ...]
    regions: int

    @property
    def wrong(self) -> list[Outcome]:
        """What must hold and does not."""
        return [outcome for outcome in self.outcomes if not outcome.ok]


class LocalProver:
    """Judges every region of a folded model on the original's values for one input.

    Args:
        original: the model before; which values will be asked of it is said at once.
        folded: the model after, likewise.
        plan: what the fold says that it did.
    """

    def __init__(self, original: Whole, folded: Whole, plan: FoldPlan) -> None:
        self._original, self._folded, self._plan = original, folded, plan
        a, b = original.flow, folded.flow
        self._changed = changed_values(a, plan.moved, plan.merges)
        self._pairs = open_pairs(a, b, self._changed)
        folded.offer(name for _, name in self._pairs)
        original.offer(_all_needed(a, b, align(a, b, self._changed)))
        original.offer(name for name, _ in self._pairs)

    def prove(self, feeds: Feeds, progress: Progress = silent) -> LocalProof:
        """Judge.

        Args:
            feeds: the input.
            progress: is told of each region.

        Raises:
            SessionError: a part of a model cannot be run by itself.
        """
        a, b = self._original.flow, self._folded.flow
        given_up = _unlike(self._pairs, self._original, self._folded, feeds)
        self._folded.release()

        def values(names: Iterable[str]) -> Mapping[str, Array]:
            return self._original.values(feeds, names)

        for turn in range(_TURNS):
            if turn == _TURNS - 1:
                given_up = {name for _, name in self._pairs}
            alignment = align(a, b, self._changed, given_up)
            values(_all_needed(a, b, alignment))
            self._original.release()
            regions = regions_of(b, alignment)
            placed = _placed(a, b, alignment, regions, self._plan)
            outcomes = judge_known(alignment.claims, alignment, values)
            outcomes += judge_regions(a, self._folded, alignment, regions, placed, values, progress)
            failed = {o.claim.folded for o in outcomes if not o.ok and not o.claim.binding}
            if not failed:
                break
            given_up |= failed
        shown = tuple(
            Shown(name, _seen(number, name, a, outcomes, regions, placed))
            for number, (name, _) in enumerate(self._plan.folds)
        )
        return LocalProof(tuple(outcomes), shown, len(regions))


def _unlike(pairs: Sequence[tuple[str, str]], original: Whole, folded: Whole, feeds: Feeds) -> set[str]:
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
    a: Dataflow, b: Dataflow, alignment: Alignment, regions: Sequence[Region], plan: FoldPlan
) -> dict[Region, list[tuple[int, tuple[str, ...]]]]:
    """In which regions each fold left its numbers."""
    home = {i: region for region in regions for i in region.nodes}
    by_value = {claim.original: claim.folded for claim in alignment.claims if claim.computed}
    before, after = a.report_names(), b.report_names()
    found: dict[Region, list[tuple[int, tuple[str, ...]]]] = {}
    for number, (batchnorm, into) in enumerate(plan.folds):
        into = _followed(into, after, plan.merges)
        places = {after[name] for name in into if name in after}
        edited = [before[name] for name in (batchnorm, *into) if name in before]
        lost = bool(into) and not any(name in before or name in after for name in into)
        outcomes = _first_of(a, edited, by_value) if lost else _outcomes_of(a, edited, follow=not into)
        for name in outcomes:
            if name in by_value:
                places.add(b.producer[by_value[name]])
        for region in dict.fromkeys(home[i] for i in sorted(places) if i in home):
            mine = [i for i in region.nodes if i in places]
            own = dict.fromkeys(name for i in mine for name in b.stored_by(i, into) if name in region.loose)
            own = {name: None for name in own if name in region.fresh} or own
            # An error of a scale, not of a shift: a bias of 1e6 would show any.
            scales = tuple(name for name in own if len(b.constants[name].dims) > 1)
            found.setdefault(region, []).append((number, scales or tuple(own)))
    return found


def _followed(
    into: tuple[str, ...], after: Mapping[str, int], merges: Iterable[tuple[str, ...]]
) -> tuple[str, ...]:
    """The layers that took a BatchNorm in, and those that took these in."""
    names = list(into)
    for merge in merges:
        if any(name in merge and name not in after for name in names):
            names += merge
    return tuple(dict.fromkeys(names))


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


def _first_of(a: Dataflow, edited: Iterable[int], known: Container[str]) -> set[str]:
    """The first values behind the edited nodes that are known; of nodes that the fold calls by other names."""
    waiting, met, found = list(edited), set[int](), set[str]()
    while waiting:
        for name in filter(None, a.nodes[waiting.pop()].output):
            if name in known:
                found.add(name)
                continue
            readers = {reader for reader, _ in a.readers.get(name, ())} - met
            met |= readers
            waiting += readers
    return found


def _seen(
    number: int,
    batchnorm: str,
    a: Dataflow,
    outcomes: Sequence[Outcome],
    regions: Sequence[Region],
    placed: Placed,
) -> str | None:
    """The type in which a fold was seen."""
    by_claim = {outcome.claim: outcome for outcome in outcomes}
    for region in regions:
        if all(number != other for other, _ in placed.get(region, ())):
            continue
        for outcome in (by_claim[claim] for claim in region.claims if claim in by_claim):
            alone = region.layer is not None and outcome.sight > 1
            if outcome.ok and (alone or number in outcome.noticed):
                return outcome.how
    place = a.report_names().get(batchnorm)
    gives = set(a.nodes[place].output) if place is not None else set()
    for outcome in outcomes:
        known = not outcome.claim.computed and outcome.claim.original in gives
        if known and outcome.ok and outcome.sight > 1:
            return outcome.how
    return None
