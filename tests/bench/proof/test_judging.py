"""How regions are judged: what their numbers are moved by, what is put off, in which type, and what that shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, random

import convbn
from convbn.bench.proof import local, prove
from convbn.bench.proof.claims import Alignment, Claim, align, changed_values
from convbn.bench.proof.gaps import gap_of, layer_bound
from convbn.bench.proof.graph.dataflow import Dataflow
from convbn.bench.proof.graph.whole import Whole
from convbn.bench.proof.local import Outcome, _Judge, _sizes, judge_known
from convbn.bench.proof.prove import FoldPlan, LocalProver
from convbn.bench.proof.regions import LinearLayer, Region, regions_of

Array = np.ndarray
EPS = 2.0**-23


def node(op: str, reads: str, gives: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, reads.split(), gives.split(), name=f"{op}.{gives}", **attributes)


def two(first: int = 6, second: int = 4) -> onnx.ModelProto:
    """A BatchNorm whose fold is a region of one layer, and one behind a pool, whose fold is a region of two nodes."""
    nodes = [
        node("Conv", "x w", "c"),
        batchnorm("c", "b", prefix="plain"),
        node("Relu", "b", "r"),
        node("Conv", "r v", "d"),
        node("AveragePool", "d", "p", kernel_shape=[2, 2]),
        batchnorm("p", "y", prefix="pooled"),
    ]
    held = {"w": random(first, 3, 3, 3), "v": random(second, first, 1, 1, seed=2)}
    held |= batchnorm_parameters(first, prefix="plain") | batchnorm_parameters(
        second, prefix="pooled", seed=3
    )
    return model(nodes, {"x": [2, 3, 8, 8]}, ["y"], held)


X = {"x": random(2, 3, 8, 8, seed=7)}


def region(*loose: str, fresh: tuple[str, ...] = (), claims: tuple[Claim, ...] = ()) -> Region:
    return Region((), claims, loose, fresh, 0, None)


def judge(folds: Mapping[Region, Any] | None = None, values: Any = None, same: Any = None) -> _Judge:
    whole = Whole(two(), "folded")
    return _Judge(
        Dataflow(two()), whole, Alignment(lambda name: False, dict(same or {})), folds or {}, values
    )


FEEDS = {"i": np.arange(3), "x": random(50), "w": random(4, 5, seed=1), "v": np.float32([1, -1])}


def test_numbers_are_moved_up_and_twice_at_random() -> None:
    runs = judge()._moved([region("w", "v", fresh=("w",))], FEEDS, wide=False)
    assert len(runs) == 3
    for run in runs:
        assert run["i"] is FEEDS["i"]
        for name in "xwv":
            steps = (run[name].astype(np.float64) / FEEDS[name] - 1) / EPS
            assert run[name].dtype == np.float32
            np.testing.assert_allclose(np.abs(steps), 2, atol=0.51)  # two units of its own type
    assert all((runs[0][name] > FEEDS[name]).all() for name in "xwv")
    for run in runs[1:]:
        assert 10 < (run["x"] > FEEDS["x"]).sum() < 40
    assert not np.array_equal(runs[1]["x"], runs[2]["x"])
    again = judge()._moved([region("w", "v", fresh=("w",))], FEEDS, wide=False)
    assert all(
        np.array_equal(run[name], other[name])
        for run, other in zip(runs, again, strict=True)
        for name in "xwv"
    )


def test_in_float64_only_what_the_fold_stored_is_moved_by_its_rounding() -> None:
    runs = judge()._moved([region("w", "v", fresh=("w",)), region("v")], FEEDS, wide=True)
    for run in runs:
        assert run["x"] is FEEDS["x"]
        for name in "wv":  # where a region stored nothing, all that it reads counts
            exact = FEEDS[name].astype(np.float64)
            assert run[name].dtype == np.float64
            np.testing.assert_array_equal(run[name], exact * (1 + EPS * np.sign(run[name] / exact - 1)))
    assert all((runs[0][name] > FEEDS[name]).all() for name in "wv")


def test_folds_are_put_off_one_by_one_in_every_region_at_once() -> None:
    one, other, none = region("w"), region("v"), region()
    made = judge({one: [(0, ("w",)), (1, ("x", "w"))], other: [(2, ("v",))]})
    runs = made._spoilt([one, other, none], FEEDS)
    assert [{name for name in "xwv" if run[name] is not FEEDS[name]} for run in runs] == [
        {"w", "v"},
        {"x", "w"},
    ]
    for name in "wv":
        np.testing.assert_array_equal(
            runs[0][name], (FEEDS[name].astype(np.float64) * 1.01).astype(np.float32)
        )
    assert made._spoilt([none], FEEDS) == made._spoilt([], FEEDS) == []


def test_the_sizes_of_what_a_layer_reads_leave_its_bias_out() -> None:
    flow = Dataflow(
        model([node("Conv", "x w b", "y")], {"x": [1, 3, 8, 8]}, ["y"], {"w": random(2, 3, 1, 1)})
    )
    feeds = {"x": random(1, 3, 2, 2), "w": random(2, 3, 1, 1), "b": random(2)}
    found = _sizes(flow, Region((0,), (), (), (), 0, None), feeds)
    np.testing.assert_array_equal(found["x"], np.abs(feeds["x"]))
    np.testing.assert_array_equal(found["w"], np.abs(feeds["w"]))
    np.testing.assert_array_equal(found["b"], [0, 0])


def asked(held: Mapping[str, Array]) -> Any:
    def values(names: Iterable[str]) -> Mapping[str, Array]:
        return {name: held[name] for name in names}

    return values


def test_the_original_is_computed_in_float64_from_the_shared_values() -> None:
    shared = np.abs(random(2, 6, 6, 6, seed=8))
    own = {"x": X["x"], "b": shared, "r": shared}
    found = judge(values=asked(own), same={"b": "b"})._in_original(
        [Claim("r", "r", True), Claim("x", "q", True)]
    )
    assert found is not None
    assert found["x"] is X["x"]  # an input is itself
    assert found["r"].dtype == np.float64
    np.testing.assert_array_equal(found["r"], shared)


@pytest.mark.parametrize(("own", "trusted"), [(20.0, True), (20.1, False)])
def test_a_value_that_is_far_from_the_originals_own_is_the_evaluators_fault(
    own: float, trusted: bool
) -> None:
    added = model([node("Add", "x k", "y")], {"x": [1]}, ["y"], {"k": np.float32([1])})
    given = asked({"x": np.float32([18]), "y": np.float32([own])})
    made = _Judge(Dataflow(added), Whole(added, "folded"), Alignment(bool), {}, given)
    found = made._in_original([Claim("y", "y", True)])
    assert found is not None
    assert ("y" in found) == trusted


def test_a_value_that_is_the_same_as_another_one_is_held_against_it() -> None:
    a = np.float32([[1.0, -2.0]])
    held = asked({"a": a, "near": a * np.float32(1 + 8 * EPS), "far": a * np.float32(1 + 64 * EPS)})
    claims = [Claim(name, "a", True, computed=False) for name in ("near", "far")]
    made = judge_known([Claim("y", "y", True), *claims], Alignment(bool, {"a": "a"}), held)
    assert [(one.claim, one.ok) for one in made] == [(claims[0], True), (claims[1], False)]
    assert {one.how for one in made} == {"float32"}
    assert made[0].bound == pytest.approx(16 * EPS)


def prover(plan_of: convbn.Report, folded: onnx.ModelProto) -> LocalProver:
    folds = tuple((fold.name, fold.into) for fold in plan_of.folded)
    return LocalProver(Whole(two(), "a"), Whole(folded, "b"), FoldPlan(folds, plan_of.moved, plan_of.merges))


def test_layers_are_judged_in_their_own_type_with_the_sums_in_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local, "_CHEAP", 0)
    folded, report = convbn.fuse(two(), options=convbn.FuseOptions(verify=False))
    told: list[tuple[str, int, int | None]] = []
    found = prover(report, folded).prove(X, lambda *step: told.append(step))
    assert {shown.name: shown.how for shown in found.shown} == {"plain": "float32", "pooled": "float32"}
    assert told == [("regions", 0, 2), ("regions", 1, 2)]
    (outcome,) = (one for one in found.outcomes if one.claim.original == "b")
    before = Whole(two(), "a")
    a, flow, name = before.values(X, ["b"])["b"], Dataflow(folded), outcome.claim.folded
    changed = changed_values(before.flow, report.moved, report.merges)
    layers = {one.claims[0].folded: one.layer for one in regions_of(flow, align(before.flow, flow, changed))}
    layer = layers[name]
    assert layer is not None
    b = Whole(folded, "b").values(X, [name])[name]
    expected = gap_of(a, b, layer_bound(layer, X["x"], EPS, sums=True), layer)
    assert (outcome.bound, outcome.sight) == pytest.approx((expected.bound, expected.sight))


def test_small_models_are_judged_in_float64_and_large_regions_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folded, report = convbn.fuse(two(), options=convbn.FuseOptions(verify=False))
    products = 6 * 3 * 9 * 72 + 4 * 6 * 2 * 25  # the second region's claim is behind the pool

    def hows(cheap: int, costly: int) -> list[str | None]:
        monkeypatch.setattr(local, "_CHEAP", cheap)
        monkeypatch.setattr(local, "_COSTLY", costly)
        told: list[str] = []
        found = prover(report, folded).prove(X, lambda phase, *_: told.append(phase))
        assert ("regions in float64" in told) == ("float64" in [shown.how for shown in found.shown])
        return [shown.how for shown in found.shown]

    assert hows(products, 10**9) == ["float64", "float64"]
    assert hows(products - 1, 10**9) == ["float32", "float32"]
    assert hows(products, 6 * 3 * 9 * 72) == ["float64", "float64"]
    assert hows(products, 6 * 3 * 9 * 72 - 1) == ["float32", "float64"]


def test_what_float32_settles_is_that_every_claim_holds_and_every_fold_was_seen() -> None:
    claims = Claim("a", "a", True), Claim("b", "b", True)
    layer = LinearLayer("x", np.ones(1), np.zeros(1), 1, 1, np.dtype(np.float32))
    alone, compound = Region((), claims, (), (), 0, layer), Region((), claims, (), (), 0, None)
    made = judge({compound: [(3, ()), (4, ())]})

    def settled(where: Region, ok: bool, sight: float, *noticed: int) -> bool:
        first = Outcome(claims[0], True, 0.0, 1.0, "float32", 0.0, frozenset({3}))
        second = Outcome(claims[1], ok, 0.0, 1.0, "float32", sight, frozenset(noticed))
        return made.settled(where, {claims[0]: first, claims[1]: second})

    assert settled(alone, True, 1.5)
    assert not settled(alone, True, 1.0)
    assert not settled(alone, False, 9.0)
    assert settled(compound, True, 0.0, 4)
    assert not settled(compound, True, 9.0)
    assert not settled(compound, False, 9.0, 4)


@pytest.mark.parametrize("cheap", [0, 10**9])
@pytest.mark.parametrize("outside", [False, True])
def test_parts_of_files_find_their_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap: int, outside: bool
) -> None:
    monkeypatch.setattr(local, "_CHEAP", cheap)
    path = tmp_path / "m.onnx"
    # Weights of a kilobyte and more stay where they lie.
    onnx.save(two(32, 16), path, save_as_external_data=outside, location="m.data", size_threshold=0)
    folded, report = convbn.fuse(path, options=convbn.FuseOptions(verify=False))
    target = tmp_path / "folded.onnx"
    onnx.save(folded, target, save_as_external_data=outside, location="folded.data", size_threshold=0)
    plan = FoldPlan(tuple((fold.name, fold.into) for fold in report.folded), report.moved, report.merges)
    answer = convbn.verify(path, target, plan=plan)
    assert answer.equal
    assert answer.proof is not None
    assert {fold.how for fold in answer.proof.folds} == {"float64" if cheap else "float32"}


@pytest.mark.parametrize(("turns", "regions"), [(1, 1), (12, 4)])
def test_what_may_have_changed_is_given_up_at_last(
    monkeypatch: pytest.MonkeyPatch, turns: int, regions: int
) -> None:
    """Of a plan that is not understood any value may have changed; where the first turn is the last, all are."""
    monkeypatch.setattr(prove, "_TURNS", turns)
    nodes = [
        node("Conv", "x w", "a"),
        node("Conv", "a w", "b"),
        node("Conv", "b w", "c"),
        node("Conv", "c w", "y"),
    ]
    before, after = (
        model(nodes, {"x": [1, 3, 4, 4]}, ["y"], {"w": np.float32(1 + off) * random(3, 3, 1, 1)})
        for off in (0, 1e-7)
    )
    made = LocalProver(Whole(before, "a"), Whole(after, "b"), FoldPlan(merges=(("nobody",),)))
    found = made.prove({"x": random(1, 3, 4, 4)})
    assert (found.regions, found.wrong) == (regions, [])
