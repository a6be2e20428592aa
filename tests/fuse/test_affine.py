"""The affine map of a BatchNorm, and when it is none."""

from __future__ import annotations

import numpy as np
import pytest

from convbn.fuse.algebra.affine import Affine, from_batchnorm
from convbn.fuse.refusal import Reason, Refusal

ONES = np.ones(3, np.float32)


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
    assert "1 of 3" in refusal.detail


@pytest.mark.parametrize(("variance", "epsilon"), [(0.0, 0.0), (-1.0, 1e-5), (1.0, -1.0)])
def test_no_positive_spread(variance: float, epsilon: float) -> None:
    refusal = from_batchnorm(
        ONES, ONES, ONES, np.float32([1, variance, 1]) if variance <= 0 else ONES, epsilon
    )
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.BAD_STATISTICS


@pytest.mark.parametrize("shape", [(2,), (3, 1), ()])
def test_malformed(shape: tuple[int, ...]) -> None:
    refusal = from_batchnorm(np.ones(shape, np.float32), ONES, ONES, ONES, 1e-5)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.PARAMETERS_MALFORMED
