"""What is said of a fold, put together of its regions and its outputs."""

from __future__ import annotations

import pytest

from convbn.bench.equivalence.difference import OutputDifference, Verdict
from convbn.bench.proof.claims import Claim
from convbn.bench.proof.local import Outcome
from convbn.bench.proof.prove import IN_OUTPUTS, LocalProof, Shown
from convbn.bench.proof.verdict import Finding, joined

OUTPUT = OutputDifference("y", "float32", (1,), 0.0, 0.0, None, 0.1, True)
EQUAL = Verdict("equal", "as close as can be", (OUTPUT,))
BLIND = Verdict("inconclusive", "output 'y' is 0 everywhere", (OUTPUT,))
APART = Verdict("different", "output 'y' is off", (OUTPUT,))


def outcome(value: str, error: float, bound: float, *, binding: bool = True) -> Outcome:
    return Outcome(Claim(value, f"{value}'", binding), error <= bound, error, bound, "float64", 2.0)


def proven(*outcomes: Outcome, shown: tuple[Shown, ...] = (Shown("a", "float64"),)) -> LocalProof:
    return LocalProof(outcomes, shown, len(outcomes))


RIGHT = proven(outcome("v", 1e-7, 1e-6), outcome("u", 3e-7, 1e-6))


def test_a_right_fold_whose_outputs_are_equal_is_equal() -> None:
    verdict, proof = joined(EQUAL, RIGHT, 2)
    assert verdict == EQUAL
    assert proof.sentence == (
        "1 of 1 fold shown on the original's own values in float64; outputs compared end to end on 2 inputs"
    )
    assert (proof.regions, proof.folds, proof.wrong, proof.not_shown) == (2, (Shown("a", "float64"),), (), ())
    assert proof.worst == Finding("u", 3e-7, 1e-6, "float64")


def test_what_comes_closest_to_its_bound_is_the_worst() -> None:
    assert joined(EQUAL, proven(outcome("v", 0.1, 1.0), outcome("u", 0.01, 0.02)), 1)[1].worst == Finding(
        "u", 0.01, 0.02, "float64"
    )
    none = joined(EQUAL, proven(outcome("v", 0.0, 0.0), outcome("u", 0.01, 0.02)), 1)[1].worst
    assert none == Finding("u", 0.01, 0.02, "float64")
    assert joined(EQUAL, proven(), 1)[1].worst is None


@pytest.mark.parametrize("verdict", [EQUAL, BLIND, APART])
def test_a_wrong_region_is_wrong_whatever_the_outputs_say(verdict: Verdict) -> None:
    local = proven(outcome("v", 1e-7, 1e-6), outcome("u", 0.01, 1e-6), outcome("t", 0.5, 1e-6))
    found, proof = joined(verdict, local, 2)
    assert found.status == "different"
    assert found.outputs == (OUTPUT,)
    assert found.reason == (
        "value 'u' is computed otherwise: fed with the original's own values, the folded model is off by 0.01 there, "
        "bound 1e-06 (in float64)"
    )
    assert [finding.value for finding in proof.wrong] == ["u", "t"]


def test_outputs_that_differ_are_different_though_the_regions_are_right() -> None:
    verdict, proof = joined(APART, RIGHT, 3)
    assert verdict == APART
    assert proof.sentence.endswith("; the outputs alone show nothing on 3 inputs")


def test_outputs_that_prove_nothing_leave_it_to_the_regions() -> None:
    verdict, proof = joined(BLIND, RIGHT, 1, "the exported original")
    assert verdict.status == "equal"
    assert verdict.reason == (
        "1 of 1 fold shown on the exported original's own values in float64; end to end, output 'y' is 0 everywhere"
    )
    assert verdict.outputs == (OUTPUT,)
    assert proof.sentence.endswith("; the outputs alone show nothing on 1 input")


@pytest.mark.parametrize("verdict", [EQUAL, BLIND])
def test_where_no_fold_was_seen_nothing_is_shown(verdict: Verdict) -> None:
    names = tuple(Shown(name, None) for name in "abcd")
    found, proof = joined(verdict, proven(outcome("v", 0, 1), shown=names), 2)
    assert (found.status, found.reason) == ("inconclusive", "no comparison could see a fold (a, b, c)")
    assert found.outputs == (OUTPUT,)
    assert proof.not_shown == ("a", "b", "c", "d")
    assert proof.sentence.startswith("0 of 4 folds shown;")
    assert joined(APART, proven(shown=names), 2)[0] == APART


def test_folds_are_counted_by_how_they_were_seen() -> None:
    def sentence(*hows: str | None) -> str:
        shown = tuple(Shown(str(i), how) for i, how in enumerate(hows))
        return joined(EQUAL, proven(shown=shown), 2)[1].sentence.partition(";")[0]

    assert sentence("float64", "float32", None) == (
        "2 of 3 folds shown on the original's own values in float32 and float64"
    )
    assert sentence("float64", IN_OUTPUTS) == (
        "2 of 2 folds shown on the original's own values in float64, 1 of them by an error of 1 % in each, which the "
        "outputs tell"
    )
    assert (
        sentence(IN_OUTPUTS, None) == "1 of 2 folds shown by an error of 1 % in each, which the outputs tell"
    )


def test_where_nothing_was_folded_nothing_had_to_be_seen() -> None:
    nothing = LocalProof((), (), 0)
    verdict, proof = joined(BLIND, nothing, 2)
    assert (verdict.status, verdict.reason, verdict.outputs) == ("equal", "nothing was changed", (OUTPUT,))
    assert proof.sentence.startswith("0 changed regions run on the original's own values;")
    assert joined(EQUAL, nothing, 2)[0] == EQUAL
    assert joined(APART, nothing, 2)[0] == APART
    # A region that was run is no fold that was seen; outputs that are none prove nothing.
    assert joined(BLIND, LocalProof((), (), 1), 2)[0] == BLIND
    empty = Verdict("inconclusive", "the reference has no outputs")
    assert joined(empty, nothing, 2)[0] == empty
