"""BatchNorm and the other normalisations, each against one node: the law they keep, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.layer_laws import backward, done, forward, numbers, operands_of, put
from support.rule_laws import NO, Moves, affine, node, refusal

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.normalization import Normalization
from convbn.fuse.operators.registry import rule_for
from convbn.fuse.view.dataflow import Node, Value

EPSILON = 0.3
GAMMA, BETA, MEAN, VARIANCE = 1, 2, 3, 4


def batchnorm(
    gamma: bool = True, beta: bool = True, *, dtype: Any = "f4", epsilon: float = EPSILON, **settings: Any
) -> Node:
    arrays = [
        numbers(6, dtype=dtype) if gamma else ...,
        numbers(6, dtype=dtype) if beta else ...,
        numbers(6, dtype=dtype),
        np.abs(numbers(6, dtype=dtype)),
    ]
    return node(BatchNorm(epsilon, **settings), (2, 6, 5), *arrays, output=(2, 6, 5))


@pytest.mark.parametrize("gamma", [True, False])
@pytest.mark.parametrize("beta", [True, False])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_batchnorm_takes_a_map_on_either_side(gamma: bool, beta: bool, dtype: str) -> None:
    behind = done(backward(batchnorm(gamma, beta, dtype=dtype), affine(6)))
    assert set(behind) == {GAMMA, BETA}
    before = done(forward(batchnorm(gamma, beta, dtype=dtype), affine(6)))
    assert set(before) == {GAMMA, BETA, MEAN, VARIANCE}
    assert {c.dtype for c in (*behind.values(), *before.values())} == {np.dtype(dtype)}


def test_statistics_follow_the_data() -> None:
    at, found = batchnorm(dtype="f8"), affine(6)
    found.scale[3] = 0
    _, _, _, mean, variance = operands_of(at)
    assert mean is not None
    assert variance is not None
    divisor = np.where(found.scale == 0, 1, found.scale)
    constants = done(forward(at, found))
    np.testing.assert_allclose(constants[MEAN].exact(), (mean - found.shift) / divisor)
    expected = np.maximum((variance + EPSILON) / divisor**2 - EPSILON, 0)
    np.testing.assert_allclose(constants[VARIANCE].exact(), expected)


def test_a_variance_below_epsilon_is_stored_as_0() -> None:
    large = Affine(np.full(6, 50.0), np.zeros(6))
    constants = done(forward(batchnorm(), large))
    assert not constants[VARIANCE].array().any()


def test_statistics_that_are_not_stored_exactly() -> None:
    """γ' and β' are made for μ' and σ'² as float16 rounds them: the law holds to float64's digits."""
    constants = done(forward(batchnorm(dtype="f2"), affine(6)))
    assert constants[MEAN].array().dtype == np.float16
    assert not constants[MEAN].folded


def test_statistics_out_of_range() -> None:
    small = Affine(np.full(6, 1e-6), np.zeros(6))
    assert refusal(forward(batchnorm(dtype="f2"), small)) == (
        "out-of-range",
        "in 6 of 6 channels, the folded mean μ would exceed 6.55e+04, the largest float16",
    )
    centred = put(batchnorm(dtype="f2"), MEAN, np.zeros(6, "f2"))
    assert refusal(forward(centred, small)) == (
        "out-of-range",
        "in 6 of 6 channels, the folded variance σ² would exceed 6.55e+04, the largest float16",
    )


def test_a_variance_that_would_vanish() -> None:
    at = put(batchnorm(epsilon=0.0), VARIANCE, np.full(6, 1e-20, "f4"))
    large = Affine(np.full(6, 1e20), np.zeros(6))
    assert refusal(forward(at, large)) == ("out-of-range", "the variance of BatchNorm 'n' would vanish")


def test_parameters_out_of_range() -> None:
    wide = Affine(np.ones(6), np.full(6, 1e6))
    detail = "in 6 of 6 channels, the folded shift β would exceed 6.55e+04, the largest float16"
    assert refusal(backward(batchnorm(dtype="f2"), wide)) == ("out-of-range", detail)
    # The statistics stay in range where the map only moves what β and γ make of it.
    at = put(batchnorm(dtype="f2", epsilon=1.0), GAMMA, np.full(6, 6e4, "f2"))
    at = put(put(at, MEAN, np.zeros(6, "f2")), VARIANCE, np.zeros(6, "f2"))
    assert refusal(forward(at, Affine(np.full(6, 4.0), np.zeros(6)))) == (
        "out-of-range",
        "in 6 of 6 channels, the folded scale γ would exceed 6.55e+04, the largest float16",
    )
    assert refusal(forward(at, Affine(np.zeros(6), np.full(6, 1e2)))) == (
        "out-of-range",
        "in 6 of 6 channels, the folded shift β would exceed 6.55e+04, the largest float16",
    )


@pytest.mark.parametrize("slot", [GAMMA, BETA, MEAN, VARIANCE])
def test_what_stops_a_constant_stops_a_batchnorm(slot: int) -> None:
    if slot in (GAMMA, BETA):
        assert backward(batchnorm(), affine(6), refused=[slot]) == NO
    assert forward(batchnorm(), affine(6), refused=[slot]) == NO
    computing = batchnorm()
    computing.inputs[slot] = Value("p", (6,))
    for answer in (backward(computing, affine(6)), forward(computing, affine(6))):
        assert refusal(answer)[0] == "weight-not-constant"


@pytest.mark.parametrize("slot", [GAMMA, BETA, MEAN, VARIANCE])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 6), (6, 1), (2, 6)])
def test_parameters_of_another_shape(slot: int, shape: tuple[int, ...]) -> None:
    at = put(batchnorm(), slot, np.ones(shape, "f4"))
    expected = (
        "parameters-malformed",
        f"BatchNorm 'n' has {int(np.prod(shape))} output channels and the BatchNorm 6",
    )
    assert refusal(backward(at, affine(6))) == expected
    assert refusal(forward(at, affine(6))) == expected


@pytest.mark.parametrize("slot", [MEAN, VARIANCE])
def test_no_statistics(slot: int) -> None:
    at = batchnorm()
    at.inputs[slot] = None
    for answer in (backward(at, affine(6)), forward(at, affine(6))):
        assert refusal(answer) == ("parameters-malformed", "BatchNorm 'n' has no mean or no variance")


def test_a_batchnorm_that_trains_or_works_along_another_axis() -> None:
    training = batchnorm(training=True)
    for answer in (backward(training, affine(6)), forward(training, affine(6))):
        assert refusal(answer) == ("training-mode", "BatchNorm 'n' normalises by the batch at hand")
    assert refusal(backward(batchnorm(), affine(6), axis=2)) == (
        "axis-not-proven",
        "the BatchNorm normalises axis 2, and the output channel axis of BatchNorm 'n' is 1",
    )
    for slot, axis in ((0, 2), (1, 1), (4, 1)):
        assert refusal(forward(batchnorm(), affine(6), axis, slot=slot)) == (
            "axis-not-proven",
            "BatchNorm 'n' does not read the map along its channels",
        )


def test_statistics_that_are_no_numbers() -> None:
    at = put(batchnorm(), VARIANCE, np.full(6, -1, "f4"))
    assert refusal(forward(at, affine(6)))[0] == "bad-statistics"


# --- LayerNorm and the like -------------------------------------------------------------------------


def normalization(axis: int | None, *, beta: bool = True, shifts: bool = True) -> Node:
    shape = (2, 5, 6) if axis is None else (2, 6, 5)
    given = [numbers(6)] if beta else []
    return node(Normalization("LayerNorm", axis, shifts), shape, numbers(6), *given, output=shape)


@pytest.mark.parametrize(("channels", "axis"), [(None, 2), (1, 1)])
@pytest.mark.parametrize("beta", [True, False])
@pytest.mark.parametrize("kind", ["both", "scale", "shift"])
def test_a_normalization_takes_what_stands_behind_it(
    channels: int | None, axis: int, beta: bool, kind: str
) -> None:
    constants = done(backward(normalization(channels, beta=beta), affine(6, kind), axis))
    assert set(constants) == ({1} if kind == "scale" and not beta else {1, 2})
    assert {c.dtype for c in constants.values()} == {np.dtype("f4")}


def test_a_normalization_without_a_place_for_a_shift() -> None:
    at = normalization(None, beta=False, shifts=False)
    assert set(done(backward(at, affine(6, "scale"), 2))) == {1}
    assert refusal(backward(at, affine(6), 2)) == (
        "no-place-for-a-bias",
        "LayerNorm 'n' has no β that could take the shift",
    )


def test_what_stops_a_normalization() -> None:
    for slot in (1, 2):
        assert backward(normalization(None), affine(6), 2, refused=[slot]) == NO
        computing = normalization(None)
        computing.inputs[slot] = Value("p", (6,))
        assert refusal(backward(computing, affine(6), 2))[0] == "weight-not-constant"
        for shape in ((), (1,), (5,), (2, 6)):
            reason, detail = refusal(
                backward(put(normalization(None), slot, np.ones(shape, "f4")), affine(6), 2)
            )
            assert reason == "parameters-malformed"
            assert f"has {int(np.prod(shape))} output channels and the BatchNorm 6" in detail
    assert refusal(backward(normalization(None), affine(6), 1))[0] == "axis-not-proven"
    at = normalization(None)
    at.inputs[1] = None
    assert refusal(backward(at, affine(6), 2)) == ("weight-not-constant", "LayerNorm 'n' has no weight")
    large = Affine(np.ones(6), np.full(6, 1e39))
    assert refusal(backward(normalization(None), large, 2)) == (
        "out-of-range",
        "in 6 of 6 channels, the folded shift β would exceed 3.4e+38, the largest float32",
    )


def test_a_statistic_of_a_normalization() -> None:
    at = normalization(None)
    at.outputs.append(Value("mean", (2, 5, 1)))
    rule = rule_for(at.op)
    assert rule is not None
    assert rule.backward is not None
    stopped = rule.backward(Moves(), at, at.outputs[1], affine(6), 2)
    assert stopped is not None
    assert (stopped.reason, stopped.detail) == (
        "producer-not-foldable",
        "'mean' is a statistic of LayerNorm 'n'",
    )
    assert rule.forward is None


def test_a_channel_that_would_lose_its_digits() -> None:
    """Each channel is looked at by itself: one of magnitude 1e-30 is lost among others of magnitude 1."""
    gamma = np.array([1e-30, 1, 1, 1, 1, 1], "f4")
    tiny = Affine(np.array([1e-10, 1, 1, 1, 1, 1]), np.zeros(6))
    for at, axis in ((batchnorm(), 1), (normalization(None), 2)):
        assert refusal(backward(put(at, 1, gamma), tiny, axis))[0] == "out-of-range"
