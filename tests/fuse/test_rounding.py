"""One rounding, and the bound it keeps."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convbn.fuse.algebra.rounding import _multiply, round_scaled, round_sum, round_vector
from convbn.fuse.operators.evaluation import evaluated
from convbn.fuse.operators.negation import Negation
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Value

UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}


def scaled(weight: np.ndarray, scale: list[float]) -> np.ndarray | Refusal:
    column = np.array(scale).reshape(-1, *[1] * (weight.ndim - 1))
    result = round_scaled(Constant.of(weight), column, axes=(0,))
    return result.array() if isinstance(result, Constant) else result


@pytest.mark.parametrize("name", DTYPES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-3, 3))
def test_bound_holds_in_every_channel(name: str, seed: int, exponent: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((3, 5)).astype(DTYPES[name])
    scale = rng.uniform(0.5, 2, 3) * rng.choice([-1, 1], 3) * 2.0**exponent
    result = scaled(weight, list(scale))
    assert isinstance(result, np.ndarray)
    assert result.dtype == weight.dtype
    for channel in range(3):
        exact = [Fraction(float(w)) * Fraction(float(scale[channel])) for w in weight[channel]]
        error = max(abs(Fraction(float(r)) - e) for r, e in zip(result[channel], exact, strict=True))
        # The product of two float64 numbers is itself rounded once, in its 53rd bit.
        slack = 1 + Fraction(2) ** -20
        assert error <= slack * Fraction(UNIT[name]) * max(abs(e) for e in exact)


def test_a_weight_of_a_thousand_folds_is_computed_within_the_stack() -> None:
    weight: Constant | Refusal = Constant.of(np.ones((2, 3), "f4"))
    for step in range(1000):
        assert isinstance(weight, Constant)
        weight = round_scaled(weight, np.array([[2.0], [0.5]]) ** (-1) ** step, axes=(0,))
    assert isinstance(weight, Constant)
    np.testing.assert_array_equal(weight.array(), np.ones((2, 3)))


def test_a_weight_of_folds_and_operators_in_turn_is_computed_within_the_stack() -> None:
    weight: Constant | Refusal | None = Constant.of(np.ones((2, 3), "f4"))
    for step in range(300):
        assert isinstance(weight, Constant)
        scaled = round_scaled(weight, np.array([[2.0], [0.5]]) ** (-1) ** step, axes=(0,))
        assert isinstance(scaled, Constant)
        weight = evaluated(Negation(), [Value("w", (2, 3), constant=scaled)])
    assert isinstance(weight, Constant)
    np.testing.assert_array_equal(weight.array(), np.ones((2, 3)))


def test_bfloat16_is_rounded_once() -> None:
    # Halfway between two bfloat16 numbers but for 2**-40: through float32 the tie goes the wrong way.
    exact = 1 + 2.0**-8 + 2.0**-40
    result = scaled(np.ones((1, 1), ml_dtypes.bfloat16), [exact])
    assert isinstance(result, np.ndarray)
    assert float(result[0, 0]) == 1 + 2.0**-7
    through_float32 = float(np.float32(exact).astype(ml_dtypes.bfloat16))
    assert through_float32 == 1.0


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.floats(min_value=2.0**-60, max_value=2.0**60), st.booleans())
def test_bfloat16_is_the_nearest(value: float, negative: bool) -> None:
    exact = -value if negative else value
    result = scaled(np.ones((1, 1), ml_dtypes.bfloat16), [exact])
    assert isinstance(result, np.ndarray)
    stored = float(result[0, 0])
    bits = result.view(np.uint16)[0, 0]
    for neighbour in (bits - np.uint16(1), bits + np.uint16(1)):
        other = float(np.array([neighbour]).view(ml_dtypes.bfloat16)[0])
        assert abs(Fraction(stored) - Fraction(exact)) <= abs(Fraction(other) - Fraction(exact))


@pytest.mark.parametrize(("dtype", "factor"), [(np.float16, 1e5), (np.float32, 1e39)])
def test_overflow_is_refused(dtype: type, factor: float) -> None:
    refusal = scaled(np.ones((2, 3), dtype), [1, factor])
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.OUT_OF_RANGE
    assert "1 of 2 channels" in refusal.detail


@pytest.mark.parametrize(("dtype", "factor"), [(np.float16, 1e-5), (np.float32, 1e-39)])
def test_underflow_is_refused(dtype: type, factor: float) -> None:
    refusal = scaled(np.ones((2, 3), dtype), [1, factor])
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.OUT_OF_RANGE


def test_small_weights_beside_large_ones_may_lose_digits() -> None:
    # 1e-38 · 0.1 is subnormal, but its error is far below the channel's unit.
    result = scaled(np.float32([[1.0, 1e-38]]), [0.1])
    assert isinstance(result, np.ndarray)


def test_scale_of_zero_gives_zero() -> None:
    result = scaled(np.ones((2, 2), np.float32), [0, 1])
    assert isinstance(result, np.ndarray)
    np.testing.assert_array_equal(result, [[0, 0], [1, 1]])


def test_channel_of_zeros_stays() -> None:
    result = scaled(np.zeros((1, 4), np.float32), [1e-30])
    assert isinstance(result, np.ndarray)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_weight_is_refused(bad: float) -> None:
    refusal = scaled(np.float32([[1, bad]]), [1])
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.BAD_STATISTICS


def test_integer_weight_is_refused() -> None:
    refusal = scaled(np.ones((1, 2), np.int8), [2])
    assert isinstance(refusal, Refusal)


def test_two_folds_are_rounded_once() -> None:
    """0.1 and 10 in turn: rounding after each would end one unit off in many of these."""
    weight = np.float32(np.random.default_rng(0).standard_normal((4, 100)))
    first = round_scaled(Constant.of(weight), np.full((4, 1), 0.1), axes=(0,))
    assert isinstance(first, Constant)
    second = round_scaled(first, np.full((4, 1), 10.0), axes=(0,))
    assert isinstance(second, Constant)
    exact = (weight.astype(np.float64) * 0.1) * 10.0
    np.testing.assert_array_equal(second.array(), exact.astype(np.float32))
    twice = ((weight * np.float64(0.1)).astype(np.float32) * np.float64(10.0)).astype(np.float32)
    assert (twice != second.array()).any()


def test_vector_is_rounded_once() -> None:
    result = round_vector(np.array([1 + 2.0**-8 + 2.0**-40]), np.dtype(ml_dtypes.bfloat16))
    assert isinstance(result, Constant)
    assert float(result.array()[0]) == 1 + 2.0**-7
    assert result.exact()[0] == 1 + 2.0**-8 + 2.0**-40


def test_vector_overflow_is_refused() -> None:
    refusal = round_vector(np.array([7e4]), np.dtype(np.float16))
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.OUT_OF_RANGE


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_vector_is_refused(bad: float) -> None:
    refusal = round_vector(np.array([bad]), np.dtype(np.float32))
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.BAD_STATISTICS


def test_integer_vector_is_refused() -> None:
    assert isinstance(round_vector(np.ones(2), np.dtype(np.int32)), Refusal)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("seed", range(5))
def test_known_magnitudes_are_those_of_the_numbers(name: str, seed: int) -> None:
    """Found once and carried along, they must be what looking at the folded weight again would give."""
    rng = np.random.default_rng(seed)
    constant = Constant.of(rng.standard_normal((4, 3, 3)).astype(DTYPES[name]))
    for _ in range(3):
        result = round_scaled(constant, rng.standard_normal((4, 1, 1)), axes=(0,))
        assert isinstance(result, Constant)
        ((low, high),) = result.magnitudes.values()
        largest = np.abs(result.exact()).max(axis=(1, 2), keepdims=True)
        if low is high:
            np.testing.assert_array_equal(low, largest)
        assert (low <= largest).all()
        assert (largest <= high).all()
        constant = result


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 2, 3, 3), (2, 400, 3, 3)])
@pytest.mark.parametrize("limit", [float(np.finfo("f4").max), float(np.finfo("f4").tiny)])
def test_bounds_decide_nothing_that_the_numbers_decide_otherwise(
    shape: tuple[int, ...], limit: float
) -> None:
    rng = np.random.default_rng(len(shape))
    weight = rng.standard_normal(shape).astype("f4")
    largest = np.abs(weight.astype("f8")).max(axis=tuple(range(1, weight.ndim)), keepdims=True)
    for factor in (0.01, 0.26, 0.51, 0.9999, 1.0001, 1.9, 3.9, 100.0):
        scale = limit / largest * factor
        outcome = round_scaled(Constant.of(weight), scale, axes=(0,))
        assert isinstance(outcome, Refusal) == ((factor > 1) == (limit > 1)), factor


@pytest.mark.parametrize("earlier", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("limit", [float(np.finfo("f4").max), float(np.finfo("f4").tiny)])
def test_bounds_of_a_product_decide_nothing_otherwise_either(limit: float, axis: int, earlier: float) -> None:
    """Along the other axis, and in another shape, than that which the first scale was for."""
    weight = np.random.default_rng(axis).uniform(0.5, 2, (6, 35)).astype("f4")
    scale = np.full((1, 35) if axis == 0 else (6, 1), earlier)
    for seen in ((6, 35), (5, 42), (42, 5)):
        for factor in (0.01, 0.26, 0.51, 0.9, 0.9999, 1.0001, 1.3, 1.9, 3.9, 100.0):
            # Anew each time: once the exact numbers were looked at, they are remembered.
            first = round_scaled(Constant.of(weight), scale, axes=(1 - axis,))
            assert isinstance(first, Constant)
            largest = np.abs(first.exact()).reshape(seen).max(axis=1 - axis, keepdims=True)
            by = limit / largest * factor
            outcome = round_scaled(first, by, axes=(axis,), seen_as=seen)
            assert isinstance(outcome, Refusal) == ((factor > 1) == (limit > 1)), factor
            if isinstance(outcome, Constant):
                exact = (first.exact().reshape(seen) * by).reshape(6, 35)
                np.testing.assert_array_equal(outcome.exact(), exact)


def test_what_is_multiplied_stays_as_it_is() -> None:
    """A sum of kernels holds its exact numbers, which a BatchNorm behind it must not change."""
    numbers = np.array([[1.0, 2.0], [3.0, 4.0]])
    total = round_sum(numbers.copy(), np.dtype("f4"))
    assert isinstance(total, Constant)
    scaled = round_scaled(total, np.array([[2.0], [3.0]]), axes=(0,))
    assert isinstance(scaled, Constant)
    for _ in range(2):
        np.testing.assert_array_equal(scaled.exact(), [[2, 4], [9, 12]])
        np.testing.assert_array_equal(total.exact(), numbers)


def test_what_vanishes_in_float64_vanishes_whatever_numpy_is_told_to_raise() -> None:
    with np.errstate(all="raise"):
        scaled = round_scaled(Constant.of(np.array([[1.0, 1e-300]])), np.array([[1e-300]]), axes=(0,))
        assert isinstance(scaled, Constant)
        assert scaled.exact().tolist() == [[1e-300, 0]]


def test_a_second_scale_is_held_against_the_first() -> None:
    first = round_scaled(Constant.of(np.full((1, 2), 10, np.float16)), np.array([[1000.0]]), axes=(0,))
    assert isinstance(first, Constant)
    second = round_scaled(first, np.array([[10.0]]), axes=(0,))
    assert isinstance(second, Refusal)
    assert second.reason is Reason.OUT_OF_RANGE


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("folds", [1, 2])
def test_written_into_an_array_the_numbers_are_the_same(name: str, folds: int) -> None:
    rng = np.random.default_rng(2)
    constant = Constant.of(rng.standard_normal((6, 4, 3)).astype(DTYPES[name]))
    for axes, shape in [((0,), (6, 1, 1)), ((0, 2), (2, 1, 2, 1, 1))][:folds]:
        seen = None if len(axes) == 1 else (2, 3, 2, 2, 3)
        scale = rng.uniform(0.5, 2, shape)
        scaled = round_scaled(constant, scale, axes=axes, seen_as=seen)
        assert isinstance(scaled, Constant)
        constant = scaled
    for target in (np.zeros((6, 4, 3), DTYPES[name]), np.zeros((3, 4, 6), DTYPES[name]).T):
        constant.write(target)
        assert (target == constant.array()).all()
        assert (target != 0).all()


@pytest.mark.parametrize("numbers", [1, 511, 512, 513, 8193])
def test_products_are_the_same_in_any_buffer_and_numpys_own_stays_as_it_was(numbers: int) -> None:
    weight = np.random.default_rng(numbers).standard_normal((3, numbers)).astype(np.float32)
    scale = np.array([[0.3], [-1e-3], [7.0]])
    before = np.setbufsize(16384)
    try:
        scaled = round_scaled(Constant.of(weight), scale, (0,))
        assert isinstance(scaled, Constant)
        assert (scaled.array() == (weight.astype(np.float64) * scale).astype(np.float32)).all()
        assert np.getbufsize() == 16384
        with pytest.raises(ValueError, match="broadcast"):
            _multiply(weight, np.ones((4, 1)), np.empty_like(weight))
        assert np.getbufsize() == 16384
    finally:
        np.setbufsize(before)
