"""Where the range of a dtype ends, to the last digit; and what is said there."""

from __future__ import annotations

import tracemalloc
import warnings

import ml_dtypes
import numpy as np
import pytest

from convbn.fuse.algebra import rounding
from convbn.fuse.algebra.rounding import round_scaled, round_sum, round_vector, stored_as, unit_roundoff
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant

LARGEST = {
    "float16": 65504.0,
    "bfloat16": 3.3895313892515355e38,
    "float32": 3.4028234663852886e38,
    "float64": 1.7976931348623157e308,
}
SMALLEST = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
DTYPES = {
    "float16": np.dtype("f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype("f4"),
    "float64": np.dtype("f8"),
}
NARROW = ["float16", "bfloat16", "float32"]
every_dtype = pytest.mark.parametrize("name", DTYPES)


def ones(shape: tuple[int, ...], name: str) -> Constant:
    return Constant.of(np.ones(shape, DTYPES[name]))


def taken(result: Constant | Refusal) -> Constant:
    assert isinstance(result, Constant), result
    return result


def refused(result: object) -> str:
    assert isinstance(result, Refusal)
    assert result.reason is Reason.OUT_OF_RANGE
    return result.detail


def last_that_fits(name: str) -> float:
    """Half a unit in the last place above the largest number; float64 itself has none."""
    return LARGEST[name] * (1 + UNIT[name] / 2)


@every_dtype
def test_unit_roundoff(name: str) -> None:
    assert unit_roundoff(DTYPES[name]) == UNIT[name]
    assert unit_roundoff(np.dtype("i4")) is None


# --- the largest number ------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("sign", [-1, 1])
def test_what_rounds_down_to_the_largest_number_fits(name: str, sign: int) -> None:
    edge = last_that_fits(name) * sign
    for result in (
        round_scaled(ones((2, 2), name), np.array([[1.0], [edge]]), axes=(0,)),
        round_sum(np.array([[1.0, 1.0], [0.0, edge]]), DTYPES[name]),
        round_vector(np.array([1.0, edge]), DTYPES[name]),
    ):
        assert float(taken(result).array().reshape(-1)[-1]) == LARGEST[name] * sign


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("sign", [-1, 1])
def test_one_digit_more_does_not(name: str, sign: int) -> None:
    beyond = np.nextafter(last_that_fits(name), np.inf) * sign
    details = (
        refused(round_scaled(ones((3, 2), name), np.array([[1.0], [beyond], [1]]), axes=(0,))),
        refused(round_sum(np.array([[1.0], [beyond], [1]]), DTYPES[name])),
        refused(round_vector(np.array([1.0, beyond, 1]), DTYPES[name], "shift β")),
    )
    whats = ("weights", "weight", "shift β")
    for what, detail in zip(whats, details, strict=True):
        assert (
            detail
            == f"in 1 of 3 channels, the folded {what} would exceed {LARGEST[name]:.3g}, the largest {name}"
        )


def test_beyond_float64_itself() -> None:
    weight = Constant.of(np.array([[1e200], [-1e200]]))
    assert "in 2 of 2" in refused(round_scaled(weight, np.array([[1e200], [-1e200]]), axes=(0,)))


def test_zero_times_infinity_is_no_number() -> None:
    weight = Constant.of(np.zeros((1, 2)))
    assert "in 1 of 1" in refused(round_scaled(weight, np.array([[np.inf]]), axes=(0,)))


# --- the smallest normal number ----------------------------------------------------------------------


@every_dtype
def test_the_smallest_normal_number_fits(name: str) -> None:
    """The channel of zeros makes the bounds alone decide nothing."""
    edge = SMALLEST[name]
    weight = Constant.of(np.array([[1, 0], [0, 0]], DTYPES[name]))
    for result in (
        round_scaled(weight, np.array([[edge], [1.0]]), axes=(0,)),
        round_sum(np.array([[-edge, 0.0], [0, 0]]), DTYPES[name]),
    ):
        assert abs(float(taken(result).array()[0, 0])) == edge


@every_dtype
def test_one_digit_less_does_not(name: str) -> None:
    below = np.nextafter(SMALLEST[name], 0)
    for result in (
        round_scaled(ones((2, 2), name), np.array([[1.0], [below]]), axes=(0,)),
        round_sum(np.array([[1.0, 0], [-below, 0]]), DTYPES[name]),
    ):
        assert refused(result) == (
            f"in 1 of 2 channels, the folded weights would fall below {SMALLEST[name]:.3g}, "
            f"where {name} loses its digits"
        )


def test_what_vanishes_even_in_float64_is_refused() -> None:
    refused(round_scaled(Constant.of(np.full((1, 2), 1e-200)), np.array([[1e-200]]), axes=(0,)))


@pytest.mark.parametrize("exact", [np.zeros((2, 2)), np.array([[0, 1.0], [0, 0]])])
def test_channels_of_zeros_may_be_stored(exact: np.ndarray) -> None:
    np.testing.assert_array_equal(taken(round_sum(exact, np.dtype("f4"))).array(), exact)


def test_a_small_number_in_a_vector_is_nobodys_loss() -> None:
    """It is added to what the weights give, so only its distance counts."""
    assert isinstance(round_vector(np.array([1e-300]), np.dtype("f4")), Constant)


# --- what is no float, no number or nothing ----------------------------------------------------------


def test_an_integer_takes_no_fold() -> None:
    numbers = np.ones((1, 2))
    for result in (
        round_scaled(Constant.of(numbers.astype("i1")), numbers[:, :1], axes=(0,)),
        round_sum(numbers, np.dtype("i1")),
        round_vector(numbers, np.dtype("i1")),
    ):
        assert isinstance(result, Refusal)
        assert result.reason is Reason.WEIGHT_NOT_CONSTANT
        assert "int8, not as a float" in result.detail


@every_dtype
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_takes_no_fold(name: str, bad: float) -> None:
    numbers = np.array([[1.0, 2.0], [bad, 1.0]])
    for result in (
        round_scaled(Constant.of(numbers.astype(DTYPES[name])), np.full((2, 1), 0.5), axes=(0,)),
        round_scaled(Constant.of(numbers.astype(DTYPES[name])), np.zeros((2, 1)), axes=(0,)),
        round_sum(numbers, DTYPES[name]),
    ):
        assert isinstance(result, Refusal)
        assert result.reason is Reason.BAD_STATISTICS


@every_dtype
@pytest.mark.parametrize("shape", [(0, 3, 1), (2, 0, 1), (2, 3, 0)])
def test_a_weight_without_numbers(name: str, shape: tuple[int, int, int]) -> None:
    for axis in (0, 1):
        scale = np.full([n if i == axis else 1 for i, n in enumerate(shape)], 1e-300)
        weight = ones(shape, name)
        result = taken(round_scaled(weight, scale, axes=(axis,)))
        assert (result.array().shape, result.array().dtype) == (shape, DTYPES[name])
        for constant in (weight, result):
            ((low, high),) = constant.magnitudes.values()
            assert low.shape == high.shape == scale.shape


# --- along which axes --------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("earlier", [None, (0,), (0, 1)])
def test_each_axis_has_its_own_magnitudes(name: str, earlier: tuple[int, ...] | None, sign: int) -> None:
    """The second column is small; what was found for the rows must not answer for the columns."""
    small = 2.0**-9
    weight = Constant.of(np.array([[sign, small], [sign, small]], DTYPES[name]))
    if earlier is not None:
        taken(round_scaled(weight, np.ones([2 if i in earlier else 1 for i in (0, 1)]), axes=earlier))
    scale = np.array([[1, SMALLEST[name] * 256]])
    assert "in 1 of 2" in refused(round_scaled(weight, scale, axes=(1,)))
    assert isinstance(round_scaled(weight, 2 * scale, axes=(1,)), Constant)


def test_each_shape_that_it_is_seen_in_has_its_own_magnitudes() -> None:
    weight = Constant.of(np.array([1, 1, 1e-20, 1e-20], "f4").reshape(2, 2))
    taken(round_scaled(weight, np.ones((1, 1)), axes=(0,), seen_as=(1, 4)))
    scale = np.array([[1.0], [1e-20]])
    refused(round_scaled(weight, scale, axes=(0,)))
    taken(round_scaled(weight, np.full((1, 1), 1e-20), axes=(0,), seen_as=(1, 4)))


def test_a_bound_is_not_taken_for_the_number_itself() -> None:
    """Of a hundred ones the norm is 10: a second fold must not be held against that."""
    first = taken(round_scaled(ones((1, 100), "float32"), np.array([[1.0]]), axes=(0,)))
    for scale in (LARGEST["float32"] / 2, SMALLEST["float32"]):
        taken(round_scaled(first, np.array([[scale]]), axes=(0,)))
    refused(round_scaled(first, np.array([[SMALLEST["float32"] / 2]]), axes=(0,)))


def test_a_product_along_another_axis_is_bounded_without_its_numbers() -> None:
    reads: list[int] = []
    numbers = np.random.default_rng(0).normal(size=(8, 6)).astype("f4")

    def load() -> np.ndarray:
        reads.append(1)
        return numbers

    weight = Constant(numbers.shape, load, dtype=numbers.dtype)
    rows, columns = np.geomspace(1e-3, 1e3, 8).reshape(8, 1), np.geomspace(-1e2, -1e-2, 6).reshape(1, 6)
    product = weight
    for _ in range(3):
        product = taken(round_scaled(product, rows, axes=(0,)))
        product = taken(round_scaled(product, columns, axes=(1,)))
    assert len(reads) == 2  # once for each axis
    expected = numbers.astype("f8")
    for _ in range(3):
        expected = expected * rows * columns
    assert np.array_equal(product.array(), expected.astype("f4"))
    assert np.array_equal(product.exact(), expected)


def test_a_product_along_another_axis_is_held_against_the_limits() -> None:
    """What its factors allow at worst is no reason to refuse, what it is is one."""
    far = np.array([[1e-20], [1e20]])
    numbers = np.array([[1e20, 1e20], [1e-20, 1e-20]], "f4")
    product = taken(round_scaled(Constant.of(numbers), far, axes=(0,)))
    wide = taken(round_scaled(product, np.array([[1e19, 1.0]]), axes=(1,)))
    assert np.allclose(wide.array(), [[1e19, 1], [1e19, 1]])
    assert "in 1 of 2" in refused(round_scaled(product, np.array([[1e39, 1.0]]), axes=(1,)))


def test_a_bound_beyond_float64_is_no_warning() -> None:
    """The largest weight is not where the largest scale is, so that the product stays small."""
    weight = Constant.of(np.array([[1e200, 1e-200]] * 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        product = taken(round_scaled(weight, np.array([[1e-200, 1e200]]), axes=(1,)))
        again = taken(round_scaled(product, np.array([[2.0], [3.0]]), axes=(0,)))
    assert np.allclose(again.array(), [[2, 2], [3, 3]])


def test_equal_products_have_equal_keys() -> None:
    weight, scale = ones((2, 3), "float32"), np.array([[2.0], [3.0]])
    once, again = (taken(round_scaled(weight, scale, axes=(0,))) for _ in range(2))
    other = taken(round_scaled(weight, scale[::-1].copy(), axes=(0,)))
    twice = taken(round_scaled(once, scale, axes=(0,)))
    assert once.key == again.key
    assert len({once.key, other.key, twice.key, weight.key}) == 4


def test_the_dtype_is_known_without_the_numbers() -> None:
    reads: list[int] = []

    def load() -> np.ndarray:
        reads.append(1)
        return np.ones((1, 2), "f2")

    result = taken(round_scaled(Constant((1, 2), load, dtype=np.dtype("f2")), np.ones((1, 1)), axes=(0,)))
    before = len(reads)
    assert result.dtype == np.float16
    assert len(reads) == before


@every_dtype
def test_seen_in_another_shape_it_keeps_its_own(name: str) -> None:
    weight = ones((2, 2), name)
    scale = np.array([1.0, 2, 4, 8]).reshape(4, 1)
    result = taken(round_scaled(weight, scale, axes=(0,), seen_as=(4, 1)))
    for numbers in (result.exact(), result.array().astype("f8")):
        np.testing.assert_array_equal(numbers, [[1, 2], [4, 8]])
    scale[3] = SMALLEST[name] / 2
    assert "in 1 of 4" in refused(round_scaled(weight, scale, axes=(0,), seen_as=(4, 1)))


@pytest.mark.parametrize("name", NARROW)
def test_what_a_fold_made_vanish_is_still_held_against_the_bound(name: str) -> None:
    """The second column is stored as 0 after the first fold, and is 1.3 subnormal units after the second."""
    tiny = SMALLEST[name]
    first = taken(
        round_scaled(Constant.of(np.array([[1, 1.25 * tiny]], DTYPES[name])), np.array([[tiny]]), axes=(0,))
    )
    assert first.array()[0, 1] == 0
    refused(round_scaled(first, np.array([[1.0, UNIT[name] / tiny]]), axes=(1,)))


@every_dtype
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("shape", [(1, 4, 3), (2, 3, 5), (7, 1, 2), (20, 3, 5), (2, 3, 60), (3, 60, 1)])
def test_block_by_block_is_all_at_once(
    name: str, axes: tuple[int, ...], shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "_BLOCK", 64)
    rng = np.random.default_rng(3)
    stored = rng.uniform(0.5, 2, shape).astype(DTYPES[name])
    scale = rng.uniform(0.5, 2, [n if i in axes else 1 for i, n in enumerate(shape)])
    result = taken(round_scaled(Constant.of(stored), scale, axes=axes))
    expected = stored_as(stored.astype(np.float64) * scale, DTYPES[name])
    np.testing.assert_array_equal(result.array(), expected)
    target = np.zeros(shape, DTYPES[name])
    result.write(target)
    np.testing.assert_array_equal(target, expected)


@every_dtype
def test_a_vector_of_weights(name: str) -> None:
    result = taken(round_scaled(ones((5,), name), np.arange(5.0), axes=(0,)))
    np.testing.assert_array_equal(result.array().astype("f8"), np.arange(5.0))
    np.testing.assert_array_equal(result.exact(), np.arange(5.0))


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_no_float64_copy_of_a_weight_is_made(name: str) -> None:
    result = taken(round_scaled(ones((256, 64, 5, 5), name), np.ones((256, 1, 1, 1)), axes=(0,)))
    tracemalloc.start()
    try:
        array = result.array()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert array.size == 256 * 64 * 25
    assert peak < array.nbytes + array.size * 8 / 2


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_a_scaled_weight_is_written_without_a_second_one(name: str) -> None:
    result = taken(round_scaled(ones((256, 64, 5, 5), name), np.full((256, 1, 1, 1), 2.0), axes=(0,)))
    target = np.zeros(result.shape, DTYPES[name])
    tracemalloc.start()
    try:
        result.write(target)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (target == 2).all()
    assert peak < target.nbytes / 2


@every_dtype
def test_equal_numbers_are_known_to_be_equal(name: str) -> None:
    """A layer that is called twice, with equal BatchNorms behind it, stays one tensor."""

    def scaled(first: float, factor: float) -> Constant:
        weight = np.array([[first, 2], [3, 4]], DTYPES[name])
        return taken(round_scaled(Constant.of(weight), np.array([[factor], [1.0]]), axes=(0,)))

    def vector(number: float) -> Constant:
        return taken(round_vector(np.array([number, 2.0]), DTYPES[name]))

    assert scaled(1, 0.5).key == scaled(1, 0.5).key
    assert vector(0.5).key == vector(0.5).key
    assert len({scaled(1, 0.5).key, scaled(1, 0.25).key, scaled(5, 0.5).key}) == 3
    assert vector(0.5).key != vector(0.25).key


# --- bfloat16, whose rounding is ours ----------------------------------------------------------------


@pytest.mark.parametrize("power", [-130, -126, -20, -1, 0, 1, 20, 126])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("last", [0, 1])
def test_beside_a_tie_bfloat16_goes_to_the_nearer_side(power: int, sign: int, last: int) -> None:
    """Between 1 + last·2⁻⁷ and the next number; to either side of the middle by less than float32 can tell."""
    unit = 2.0**-7 if power >= -126 else 2.0**-3
    low, middle, high = (1 + (last + part) * unit for part in (0, 0.5, 1))
    exact = np.array([middle * (1 - 2.0**-40), middle, middle * (1 + 2.0**-40)])
    expected = np.array([low, high if last else low, high])
    result = stored_as(sign * exact * 2.0**power, DTYPES["bfloat16"]).astype("f8")
    np.testing.assert_array_equal(result, sign * expected * 2.0**power)


def test_bfloat16_keeps_what_is_no_number() -> None:
    odd = np.array([np.inf, -np.inf, 0.0, -0.0, 1e39, -1e39, 1e-300, np.nan])
    result = stored_as(odd, DTYPES["bfloat16"]).astype("f8")
    np.testing.assert_array_equal(result, [np.inf, -np.inf, 0, 0, np.inf, -np.inf, 0, np.nan])
    np.testing.assert_array_equal(np.signbit(result[:4]), [False, True, False, True])


# --- a caller who makes errors of what NumPy warns of -------------------------------------------------


@every_dtype
def test_whatever_numpy_is_told_to_raise(name: str) -> None:
    small = SMALLEST[name]
    with np.errstate(all="raise"):
        weight = Constant.of(np.array([[1, small], [1, small]], DTYPES[name]))
        first = taken(round_scaled(weight, np.array([[small * 4], [1]]), axes=(0,)))
        second = taken(round_scaled(first, np.array([[1.0], [small * 4]]), axes=(0,)))
        for result in (first, second):
            assert result.array()[0, 1] == 0
            target = np.ones((2, 2), DTYPES[name])
            result.write(target)
            assert target[0, 1] == 0
        refused(round_scaled(second, np.full((2, 1), small), axes=(0,)))
        refused(round_scaled(Constant.of(np.zeros((1, 1), DTYPES[name])), np.array([[np.inf]]), axes=(0,)))
        refused(round_scaled(Constant.of(np.full((1, 1), 2, DTYPES[name])), np.array([[1.7e308]]), axes=(0,)))
        large = Constant.of(np.full((1, 2), LARGEST[name], DTYPES[name]))
        assert isinstance(round_scaled(large, np.array([[0.5]]), axes=(0,)), Constant)
        for number in (np.inf, np.nan):
            spoilt = Constant.of(np.array([[number, 1]], DTYPES[name]))
            assert isinstance(round_scaled(spoilt, np.zeros((1, 1)), axes=(0,)), Refusal)
        assert float(taken(round_vector(np.array([1e-320]), DTYPES[name])).array()[0]) < 1e-300
        if name != "float64":
            assert np.isinf(float(stored_as(np.array([1e300]), DTYPES[name])[0]))


def test_what_is_too_large_is_said_first() -> None:
    assert "would exceed" in refused(round_sum(np.array([[1e39], [1e-45]]), np.dtype("f4")))


def test_a_vector_is_a_bias_unless_it_is_said_what_it_is() -> None:
    assert "the folded bias would exceed" in refused(round_vector(np.array([1e39]), np.dtype("f4")))


def test_what_is_folded_into_a_vector_again_starts_from_its_exact_numbers() -> None:
    """A bias that takes two maps is rounded once."""
    exact = np.array([1 / 3, 1e-3, -2.0])
    stored = round_vector(exact, np.dtype(np.float16))
    assert isinstance(stored, Constant)
    assert (stored.exact() == exact).all()
    assert (stored.array() == exact.astype(np.float16)).all()
