"""The affine map of a BatchNorm, and when it is none."""

from __future__ import annotations

import numpy as np
import pytest

from convbn.fuse.algebra.affine import Affine, from_batchnorm
from convbn.fuse.refusal import Reason, Refusal

ONES = np.ones(3, np.float32)
SYMBOLS = ("γ", "β", "μ", "σ²")


def test_formula() -> None:
    gamma, beta = np.float32([2, -1, 0]), np.float32([1, 2, 3])
    mean, variance = np.float32([0.5, 1, 2]), np.float32([4, 0.25, 1])
    affine = from_batchnorm(gamma, beta, mean, variance, 0.0)
    assert isinstance(affine, Affine)
    np.testing.assert_array_equal(affine.scale, [1, -2, 0])
    np.testing.assert_array_equal(affine.shift, [0.5, 4, 3])


def test_epsilon_counts() -> None:
    affine = from_batchnorm(ONES, 0 * ONES, 0 * ONES, 0 * ONES, 0.25)
    assert isinstance(affine, Affine)
    np.testing.assert_array_equal(affine.scale, [2, 2, 2])


def test_absent_gamma_and_beta_are_one_and_zero() -> None:
    affine = from_batchnorm(None, None, ONES, ONES, 0.0)
    assert isinstance(affine, Affine)
    np.testing.assert_array_equal(affine.scale, [1, 1, 1])
    np.testing.assert_array_equal(affine.shift, [-1, -1, -1])


def test_float64_throughout() -> None:
    # In float32, 1e8 − 1 is 1e8: the shift would lose its last digits.
    mean = np.float32([1e8])
    affine = from_batchnorm(np.float32([1]), np.float32([1]), mean, np.float32([1]), 0.0)
    assert isinstance(affine, Affine)
    assert affine.shift[0] == 1 - 1e8


def test_composition() -> None:
    first, second = Affine(np.array([2.0]), np.array([3.0])), Affine(np.array([5.0]), np.array([7.0]))
    both = second.after(first)
    assert both.scale[0] * 11 + both.shift[0] == 5 * (2 * 11 + 3) + 7


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", range(4))
def test_not_finite(bad: float, which: int) -> None:
    arrays = [ONES.copy() for _ in range(4)]
    arrays[which][1] = bad
    refusal = from_batchnorm(*arrays, 1e-5)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.BAD_STATISTICS
    assert refusal.detail == f"1 of 3 values of {SYMBOLS[which]} are not finite"


@pytest.mark.parametrize(
    ("variance", "epsilon", "says"),
    [
        (0.0, 0.0, "1 of 3 channels (smallest: 0)"),
        (-1.0, 0.25, "1 of 3 channels (smallest: -0.75)"),
        (1.0, -1.0, "3 of 3 channels (smallest: 0)"),
        (1.0, np.nan, "3 of 3"),
    ],
)
def test_no_positive_spread(variance: float, epsilon: float, says: str) -> None:
    refusal = from_batchnorm(ONES, ONES, ONES, np.float32([1, variance, 1]), epsilon)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.BAD_STATISTICS
    assert f"σ² + ε is not positive in {says}" in refusal.detail


@pytest.mark.parametrize("shape", [(2,), (3, 1), ()])
@pytest.mark.parametrize("which", [0, 1, 3])
def test_malformed(shape: tuple[int, ...], which: int) -> None:
    arrays = [ONES, ONES, ONES, ONES]
    arrays[which] = np.ones(shape, np.float32)
    refusal = from_batchnorm(*arrays, 1e-5)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.PARAMETERS_MALFORMED
    assert refusal.detail == f"{SYMBOLS[which]} has shape {list(shape)} where μ has [3]"


@pytest.mark.parametrize("absent", [0, 1])
def test_behind_an_absent_parameter_the_others_are_looked_at(absent: int) -> None:
    arrays: list[np.ndarray | None] = [ONES, ONES, ONES, np.ones(2, np.float32)]
    arrays[absent] = None
    refusal = from_batchnorm(*arrays, 1e-5)  # type: ignore[arg-type]  # μ and σ² are there
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.PARAMETERS_MALFORMED


@pytest.mark.parametrize("shape", [(), (3, 1)])
def test_parameters_that_are_all_of_another_rank(shape: tuple[int, ...]) -> None:
    refusal = from_batchnorm(*[np.ones(shape, np.float32)] * 4, 1e-5)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.PARAMETERS_MALFORMED


@pytest.mark.parametrize(
    ("gamma", "beta", "mean"), [(1e308, 0, 1), (1e308, 0, 0), (1, 0, 1e301), (1, 1.7e308, -1e300)]
)
def test_a_map_beyond_float64(gamma: float, beta: float, mean: float) -> None:
    """Finite parameters whose map is not; NumPy may have been told to raise."""
    arrays = [np.array([number, number, 1]) for number in (gamma, beta, mean)]
    with np.errstate(all="raise"):
        refusal = from_batchnorm(*arrays, np.full(3, 1e-16), 0.0)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.OUT_OF_RANGE
    assert refusal.detail == "the map leaves the range of float64 in 2 of 3 channels"


def test_a_map_that_vanishes_is_one() -> None:
    """Small beyond float64 is 0, whatever NumPy was told to do about it."""
    with np.errstate(all="raise"):
        affine = from_batchnorm(np.array([1e-300]), np.zeros(1), np.zeros(1), np.array([1e300]), 0.0)
    assert isinstance(affine, Affine)
    assert affine.scale[0] == 0


def test_a_mean_of_another_rank() -> None:
    square = np.ones((3, 1), np.float32)
    refusal = from_batchnorm(None, None, square, square, 1e-5)
    assert isinstance(refusal, Refusal)
    assert refusal.detail == "μ has shape [3, 1] where μ has [3, 1]"


def test_inverse() -> None:
    affine = Affine(np.array([2.0, -0.5]), np.array([3.0, 1.0]))
    inverse = affine.inverse()
    assert inverse is not None
    np.testing.assert_array_equal(inverse.scale, [0.5, -2])
    np.testing.assert_array_equal(inverse.shift, [-1.5, 2])
    assert inverse.after(affine).is_identity


@pytest.mark.parametrize(
    ("scale", "shift"), [(0.0, 1.0), (0.0, 0.0), (1e-320, 0.0), (1e-200, 1e200), (np.nan, 0.0)]
)
def test_a_map_without_inverse(scale: float, shift: float) -> None:
    with np.errstate(all="raise"):
        assert Affine(np.array([1, scale]), np.array([0, shift])).inverse() is None


def test_maps_of_one_part() -> None:
    numbers = np.array([2.0, 3.0])
    shift, scale = Affine.shift_by(numbers), Affine.scale_by(numbers)
    np.testing.assert_array_equal((shift.scale, shift.shift), [[1, 1], numbers])
    np.testing.assert_array_equal((scale.scale, scale.shift), [numbers, [0, 0]])
    assert (shift.is_shift, shift.is_scale, shift.keeps_size) == (True, False, True)
    assert (scale.is_shift, scale.is_scale, scale.keeps_size) == (False, True, False)
