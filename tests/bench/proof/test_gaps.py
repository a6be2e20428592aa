"""How far apart two values are, and what that may be, by hand."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from convbn.bench.proof.gaps import (
    Bound,
    Gap,
    beyond,
    epsilon,
    floor_bound,
    gap_of,
    layer_bound,
    noise_bound,
    relative_gap,
    rounding_bound,
    spoil_of,
    unit_of,
)
from convbn.bench.proof.regions import LinearLayer

Array = np.ndarray

#: What compares alike and is in no channel further apart than 0.
NOTHING = Gap(True, 0.0, 0.0, 0.0)
UNLIKE = Gap(False, math.inf, 0.0, 0.0)


def bound(mean: object, rest: object, axis: int = 1) -> Bound:
    return Bound(np.asarray(mean, float), np.asarray(rest, float), axis)


def test_the_mean_and_the_rest_of_a_channel_are_held_apart() -> None:
    """Channel 0 is off by (1, 3): its mean by 2, the rest by 1. Channel 1 is off by (-4, 4): by 0 and 4."""
    b = np.array([[[10.0, -20.0], [8.0, -16.0]]])
    a = b + np.array([[[1.0, 3.0], [-4.0, 4.0]]])
    wide = gap_of(a, b, bound([4, 1], [5, 8]))
    # The closest to its bound is the mean of channel 0 and, as close, the rest of channel 1: the first counts.
    assert wide == Gap(True, 2 / 20, 4 / 20, pytest.approx(0.01 * 20 / 5))
    # What comes closest is named in units of its own channel.
    assert gap_of(a, b, bound([4, 1], [5, 5])) == Gap(True, 4 / 16, 5 / 16, pytest.approx(0.04))
    assert gap_of(a, b, bound([2, 1], [1, 4])).ok  # at the bound is within it
    assert not gap_of(a, b, bound([1.9, 1], [5, 5])).ok
    assert not gap_of(a, b, bound([4, 1], [5, 3.9])).ok
    assert not gap_of(a, b, bound([4, 1], [0.9, 5])).ok
    assert not gap_of(a, b, bound(0, 0)).ok
    assert gap_of(b, b, bound(0, 0)).ok


def test_sight_is_that_of_the_channel_that_shows_most() -> None:
    """1 % of the largest value without the bias over the bound of the rest."""
    b = np.array([[[6.0, -2.0], [100.0, 104.0]]])
    assert gap_of(b, b, bound(1, [0.5, 2])).sight == pytest.approx(1.04 / 2)
    layer = LinearLayer("x", np.ones(2), np.array([0.0, 100.0]), 1, 1, np.dtype(np.float32))
    assert gap_of(b, b, bound(1, [0.5, 2]), layer).sight == pytest.approx(0.06 / 0.5)
    # Of one value a channel the mean is all there is.
    one = np.array([[5.0, 7.0]])
    assert gap_of(one, one, bound([0.1, 0.5], 1e-9)).sight == pytest.approx(0.5)
    half = LinearLayer("x", np.ones(2), np.zeros(2), 1, 1, np.dtype(np.float16))
    assert gap_of(one, one, bound(1, 1), half).sight == pytest.approx(16 * 2.0**-10 * 7)


def test_channels_stand_on_the_axis_of_the_bound() -> None:
    b = np.array([[1.0, 10.0], [1.0, 10.0], [1.0, 10.0]])
    off = b + np.array([0.0, 0.5])
    found = gap_of(off, b, bound([0.0, 0.5], 0, axis=-1))
    assert (found.ok, found.error, found.bound) == (True, 0.05, 0.05)
    assert not gap_of(off, b, bound([0.5, 0.0, 0.0], 0, axis=0)).ok
    line = np.arange(3.0)  # fewer than two axes are one channel
    found = gap_of(line + 1, line, bound(1, 0))
    assert (found.ok, found.error, found.bound) == (True, 0.5, 0.5)
    assert gap_of(np.float64(3.0).reshape(()), np.float64(2.0).reshape(()), bound(1, 0)).ok


def test_what_comes_as_close_by_both_is_named_by_its_mean() -> None:
    b = np.array([[[0.25, -0.5]]])
    a = b + np.array([[[3.0, 1.0]]]) / 64
    assert gap_of(a, b, bound(4 / 64, 2 / 64)) == Gap(True, 2 / 32, 4 / 32, pytest.approx(0.01 * 0.5 * 32))


@pytest.mark.filterwarnings("error")
def test_beside_a_bound_of_nothing_every_difference_is_too_large() -> None:
    b = np.full((1, 1, 2), 1e300)
    assert not gap_of(2 * b, b, bound(0, 0)).ok


def test_a_channel_of_zeros_is_measured_in_ones() -> None:
    zero = np.zeros((1, 1, 2))
    assert gap_of(zero + 0.5, zero, bound(2, 1)) == Gap(True, 0.5, 2.0, 0.0)


def test_what_is_no_number_must_be_none_in_both_in_the_same_places() -> None:
    a = np.array([[1.0, np.nan, 3.0]])
    assert gap_of(a, a, bound(0, 0)).ok
    assert gap_of(a, np.array([[1.0, 2.0, 3.0]]), bound(9, 9)) == UNLIKE
    assert gap_of(a, np.array([[1.0, np.inf, 3.0]]), bound(0, 0)).ok
    for dtype in (ml_dtypes.bfloat16, np.complex64, np.float16):
        other = np.array([[1, 2, 3]]).astype(dtype)
        assert gap_of(other, other, bound(0, 0)).ok
        worse = other.copy()
        worse[0, 1] = np.inf
        assert gap_of(other, worse, bound(9, 9)) == UNLIKE
        assert relative_gap(other, worse) == math.inf


def test_unlike_shapes_and_kinds_are_infinitely_far() -> None:
    a = np.ones((1, 2))
    assert gap_of(a, np.ones((2, 1)), bound(9, 9)) == UNLIKE
    assert gap_of(a, a.astype(np.int64), bound(9, 9)) == UNLIKE
    assert gap_of(a.astype(np.int64), a, bound(9, 9)) == UNLIKE
    assert relative_gap(a, np.ones((2, 1))) == math.inf


def test_of_integers_the_share_that_differs_counts() -> None:
    a = np.array([[1, 2, 3, 4]])
    b = np.array([[1, 2, 3, 9]])
    assert gap_of(a, b, bound(0.25, 0)) == Gap(True, 0.25, 0.25, 0.0)
    assert gap_of(a, b, bound(0.2, 9)) == Gap(False, 0.25, 0.2, 0.0)
    assert gap_of(a, a, bound([], 0)) == NOTHING
    assert gap_of(a[:, :0], a[:, :0], bound(0.5, 0)) == Gap(True, 0.0, 0.5, 0.0)
    assert gap_of(np.zeros((2, 0)), np.zeros((2, 0)), bound(0, 0)) == NOTHING


def test_a_bound_by_noise_is_eight_times_what_was_seen() -> None:
    """In float32 √K times more; a floor of four units; the mean may move by what the rest moves by as well."""
    b = np.zeros((1, 2, 64))
    b[0, :, 0] = [16.0, 4.0]
    moved = [b.copy(), b.copy()]
    moved[0][0, 1] += 2.0  # the mean of channel 1
    moved[1][0, 1, 0] += 64.0  # its mean by 1, the rest by 63
    made = noise_bound(b, moved, 3.0, 2.0**-10)
    floor = 4 * 2.0**-10 * np.array([16, 4])
    np.testing.assert_allclose(made.mean, [floor[0], 8 * 3 * (2 + 63) + floor[1]])
    np.testing.assert_allclose(made.rest, [floor[0], 8 * 3 * 63 + floor[1]])
    assert made.axis == 1


def test_channels_of_few_values_may_move_as_the_middle_one_does() -> None:
    b = np.zeros((1, 3, 63))
    moved = b.copy()
    moved[0, 1] += 2.0
    moved[0, 2] += 3.0
    moved[0, 1:, 0] += 63
    made = noise_bound(b, [moved], 1.0, 0.0)
    np.testing.assert_allclose(made.mean, 8 * (np.array([3, 3, 4]) + 62))
    np.testing.assert_allclose(made.rest, [8 * 62] * 3)


def test_integers_may_differ_by_eight_times_the_share_that_noise_changes() -> None:
    b = np.zeros((2, 50), np.int64)
    moved = b.copy()
    moved[0, 0] = 1
    worse = b.copy()
    worse[0, :2] = 1
    made = noise_bound(b, [moved, worse, b], 5.0, 1.0)
    assert (float(made.mean), float(made.rest), made.axis) == (pytest.approx(8 * 0.02), 0.0, 1)
    assert float(noise_bound(b, [], 1.0, 0.0).mean) == 0.0


def test_a_value_without_numbers_is_bounded_by_nothing() -> None:
    empty = np.zeros((1, 2, 0), np.float32)
    for made in (noise_bound(empty, [empty], 1.0, 1.0), floor_bound(empty, 1.0)):
        np.testing.assert_array_equal(made.mean, [0, 0])
        np.testing.assert_array_equal(made.rest, [0, 0])
    layer = LinearLayer("x", np.ones(2), np.array([1.0, 2.0]), 1, 1, np.dtype(np.float32))
    np.testing.assert_allclose(layer_bound(layer, empty, 1.0, sums=False).rest, 2.0**-43 * layer.bias)


def test_a_group_is_bounded_by_what_it_reads_itself() -> None:
    x = np.zeros((1, 4, 2))
    x[0, :2, 0], x[0, 3, 1] = [-3.0, 2.0], 5e4
    layer = LinearLayer("x", np.array([1.0, 2.0]), np.zeros(2), 1, 1, np.dtype(np.float32), 2)
    made = layer_bound(layer, x, 0.0, sums=False)
    np.testing.assert_allclose(made.mean, 4 * 2.0**-24 * np.array([1 * 3, 2 * 5e4]))
    np.testing.assert_allclose(made.rest, 2 * made.mean)
    whole = LinearLayer("x", np.array([1.0, 2.0]), np.zeros(2), 1, 1, np.dtype(np.float32))
    np.testing.assert_allclose(
        layer_bound(whole, x, 0.0, sums=False).mean, 4 * 2.0**-24 * 5e4 * np.array([1, 2])
    )


def test_rounding_does_at_most_half_a_unit_of_every_product() -> None:
    """Twice that is let through; the bias moves the mean alone."""
    layer = LinearLayer("x", np.ones(2), np.array([1e6, -2.0]), 9, 1, np.dtype(np.float32))
    reach = np.array([[[1.0, 4.0], [0.5, 0.25]]])
    made = rounding_bound(layer, reach)
    np.testing.assert_allclose(made.mean, 2.0**-23 * np.array([4 + 1e6, 0.5 + 2]))
    np.testing.assert_allclose(made.rest, 2.0**-23 * np.array([8, 1]), rtol=0.2)
    assert made.rest[0] > 2.0**-23 * 8  # by what the mean of so many equal numbers is off
    assert made.axis == 1


def test_a_floor_is_so_many_units_of_the_largest_value_of_a_channel() -> None:
    b = np.array([[[1.0, -8.0], [0.25, 0.5]]])
    made = floor_bound(b, 0.5)
    np.testing.assert_array_equal(made.mean, [4.0, 0.25])
    np.testing.assert_array_equal(made.rest, made.mean)
    assert made.axis == 1
    whole = floor_bound(b.astype(np.int64), 0.5)
    assert (float(whole.mean), float(whole.rest), whole.axis) == (0.0, 0.0, 1)


def test_an_error_shows_beyond_the_bound_alone() -> None:
    a = np.ones((1, 1, 4))
    assert beyond(a, a + 2, bound(1, 1))
    assert not beyond(a, a + 2, bound(2, 1))


def test_a_relative_gap_is_of_the_first_of_both() -> None:
    a, b = np.array([4.0, -8.0]), np.array([4.0, -6.0])
    assert relative_gap(a, b) == 0.25
    assert relative_gap(np.zeros(2), b) == 1.0
    assert relative_gap(np.zeros(2), np.zeros(2)) == 0.0
    assert relative_gap(np.zeros(0), np.zeros(0)) == 0.0
    assert relative_gap(np.array([3 + 4j]), np.array([3 + 3j])) == pytest.approx(0.2)
    assert relative_gap(np.uint8([10]), np.uint8([250])) == 24.0  # they do not wrap around
    assert relative_gap(np.array([np.nan, 0.5]), np.array([np.nan, 0.25])) == 0.5


@pytest.mark.parametrize(
    ("dtype", "eps"),
    [
        (np.float64, 2.0**-52),
        (np.float32, 2.0**-23),
        (np.float16, 2.0**-10),
        (ml_dtypes.bfloat16, 2.0**-7),
        (np.complex64, 2.0**-23),
        (np.complex128, 2.0**-52),
        (np.int64, 2.0**-23),  # in which they were computed
        (np.bool_, 2.0**-23),
    ],
)
def test_units_of_types(dtype: type, eps: float) -> None:
    assert epsilon(np.dtype(dtype)) == eps
    assert unit_of(np.zeros(1, dtype)) == eps
    assert spoil_of(np.dtype(dtype)) == max(0.01, 16 * eps)
