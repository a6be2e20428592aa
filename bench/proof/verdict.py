"""What was proven and how: the comparison of the outputs and the local proof, put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convbn.bench.equivalence.difference import Verdict
from convbn.bench.proof.local import Outcome
from convbn.bench.proof.prove import IN_OUTPUTS, FoldPlan, LocalProof, Shown
from convbn.common.encoding import JsonReady
from convbn.common.text import plural

__all__ = ["Finding", "Proof", "joined", "unseen"]


@dataclass(frozen=True)
class Finding(JsonReady):
    """One value of the folded model beside the original's.

    Attributes:
        value: its name in the original.
        error: the largest difference, in units of its channel's largest value.
        bound: what that may be.
        how: the type that both were computed in.
    """

    value: str
    error: float
    bound: float
    how: str


@dataclass(frozen=True)
class Proof(JsonReady):
    """What the local proof adds to the comparison of the outputs.

    Attributes:
        sentence: what was proven and how, in one line.
        regions: parts of the folded model that were run on the original's own values.
        folds: every fold, and the type in which an error of 1 % in it would have been noticed; None where none was.
        worst: the value that comes closest to its bound.
        wrong: values that the fold does not claim to have changed, and that are not the original's.
    """

    sentence: str
    regions: int = 0
    folds: tuple[Shown, ...] = ()
    worst: Finding | None = None
    wrong: tuple[Finding, ...] = ()

    @property
    def not_shown(self) -> tuple[str, ...]:
        """The folds that no comparison could see."""
        return tuple(fold.name for fold in self.folds if fold.how is None)


def unseen(plan: FoldPlan, sentence: str) -> Proof:
    """What stands in a report where no fold could be judged by itself: none of them is shown.

    Args:
        plan: the folds.
        sentence: what was done in place of that.
    """
    return Proof(sentence, folds=tuple(Shown(name, None) for name, _ in plan.folds))


def joined(
    verdict: Verdict, local: LocalProof, samples: int, original: str = "the original"
) -> tuple[Verdict, Proof]:
    """The verdict on a fold, and its proof.

    Args:
        verdict: on the outputs, end to end.
        local: on the regions.
        samples: inputs that the outputs were compared on.
        original: what sentences call the model whose values the regions were fed with.
    """
    ends = "outputs compared end to end" if verdict.status == "equal" else "the outputs alone show nothing"
    shown = [fold for fold in local.shown if fold.how is not None]
    sentence = _how_seen(local, original)
    proof = Proof(
        f"{sentence}; {ends} on {plural(samples, 'input')}",
        local.regions,
        local.shown,
        max(
            map(_finding, local.outcomes),
            key=lambda f: f.error / f.bound if f.bound else f.error,
            default=None,
        ),
        tuple(map(_finding, local.wrong)),
    )
    if local.wrong:
        return Verdict("different", _why(local.wrong), verdict.outputs), proof
    if verdict.status == "different" or not local.shown:
        same = verdict.status == "inconclusive" and not local.regions and verdict.outputs
        return (Verdict("equal", "nothing was changed", verdict.outputs) if same else verdict), proof
    if not shown:
        names = ", ".join(fold.name for fold in local.shown[:3])
        return Verdict("inconclusive", f"no comparison could see a fold ({names})", verdict.outputs), proof
    if verdict.status == "inconclusive":
        return Verdict("equal", f"{sentence}; end to end, {verdict.reason}", verdict.outputs), proof
    return verdict, proof


def _how_seen(local: LocalProof, original: str) -> str:
    """What was seen of the folds, and where."""
    if not local.shown:
        return f"{plural(local.regions, 'changed region')} run on {original}'s own values"
    ways = [fold.how for fold in local.shown if fold.how is not None]
    kinds = " and ".join(sorted({way for way in ways if way != IN_OUTPUTS}))
    apart = ways.count(IN_OUTPUTS)
    places = [f"on {original}'s own values in {kinds}"] if kinds else []
    if apart:
        many = f"{apart} of them " if kinds else ""
        places.append(f"{many}by an error of 1 % in each, which the outputs tell")
    return " ".join([f"{len(ways)} of {plural(len(local.shown), 'fold')} shown", ", ".join(places)]).rstrip()


def _finding(outcome: Outcome) -> Finding:
    return Finding(outcome.claim.original, outcome.error, outcome.bound, outcome.how)


def _why(wrong: Sequence[Outcome]) -> str:
    first = wrong[0]
    return (
        f"value {first.claim.original!r} is computed otherwise: fed with the original's own values, the folded model "
        f"is off by {first.error:.2g} there, bound {first.bound:.2g} (in {first.how})"
    )
