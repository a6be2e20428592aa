"""Attention's weighted means against one node: which maps pass, and which are mixed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.passing_on import backward, forward, only
from support.rule_laws import NO, affine, mapped, node, refusal

from convbn.fuse.operators.weighted_mean import WeightedMean

MIXES = ("axis-not-proven", "MatMul 'n' mixes what lies along the map's axis")


def weights(*shape: int, axis: int) -> np.ndarray:
    """Positive, and with the sum 1 along ``axis``."""
    numbers = np.random.default_rng(2).uniform(0.1, 1, shape)
    return numbers / numbers.sum(axis, keepdims=True)


RIGHT = ((3, 4, 5), (3, 5, 6), (3, 4, 6))
"""Shapes of the weights, the values on their right and the product."""
LEFT = ((3, 6, 5), (3, 5, 4), (3, 6, 4))
"""Shapes of the values, the weights on their right and the product."""
CASES = {
    "values on the right": (RIGHT, 1, -1),
    "values on the left": (LEFT, 0, -2),
    "matrices on the right": (((4, 5), (5, 6), (4, 6)), 1, -1),
    "matrices on the left": (((6, 5), (5, 4), (6, 4)), 0, -2),
    "one matrix of values": (((3, 4, 5), (5, 6), (3, 4, 6)), 1, -1),
    "one matrix of weights": (((4, 5), (3, 5, 6), (3, 4, 6)), 1, -1),
    "one row of weights": (((5,), (3, 5, 6), (3, 6)), 1, -1),
}


@pytest.mark.parametrize("name", CASES)
def test_a_weighted_mean_passes_maps_of_what_it_does_not_mix(name: str) -> None:
    (left, right, product), slot, place = CASES[name]
    at, found = node(WeightedMean(slot, place), left, right, output=product), affine(6)
    inside, outside = len((left, right)[slot]) + place, len(product) + place
    assert only(backward(at, found, outside)) == (at.inputs[slot], found, inside)
    assert only(forward(at, found, inside, slot=slot)) == (at.outputs[0], found, outside)
    operands = [np.random.default_rng(1).standard_normal(shape) for shape in (left, right)]
    operands[1 - slot] = weights(*(left, right)[1 - slot], axis=-1 if slot else -2)
    expected = mapped(found, operands[0] @ operands[1], outside)
    operands[slot] = mapped(found, operands[slot], inside)
    np.testing.assert_allclose(operands[0] @ operands[1], expected)
    assert backward(at, found, outside, refused=[f"v{slot}"]) == NO
    assert forward(at, found, inside, slot=slot, refused=["out"]) == NO
    for axis in set(range(-3, 4)) - {outside}:
        assert refusal(backward(at, found, axis)) == MIXES
    for axis in set(range(-3, 4)) - {inside}:
        assert refusal(forward(at, found, axis, slot=slot)) == MIXES
    assert refusal(forward(at, found, inside, slot=1 - slot)) == MIXES


@pytest.mark.parametrize(
    ("values", "output"), [(..., (3, 4, 6)), (None, (3, 4, 6)), ((5,), (3, 4)), ((3, 5, 6), None)]
)
def test_values_of_unknown_rank(values: Any, output: Any) -> None:
    at = node(WeightedMean(1, -1), (3, 4, 5), values, output=output)
    for axis in range(3):
        assert refusal(backward(at, affine(6), axis)) == MIXES
        assert refusal(forward(at, affine(6), axis, slot=1)) == MIXES
        assert refusal(backward(at, affine(6), (axis,))) == MIXES


HEADS = ((2, 3, 4, 5), (2, 3, 5, 6), (2, 3, 4, 6))


@pytest.mark.parametrize("axes", [(1, 3), (3,), (0, 3), (1,), (0,), (0, 1)])
def test_a_map_along_what_counts_the_products(axes: tuple[int, ...]) -> None:
    at = node(WeightedMean(1, -1), *HEADS[:2], output=HEADS[2])
    found = affine(int(np.prod([HEADS[2][axis] for axis in axes])))
    assert only(backward(at, found, axes)) == (at.inputs[1], found, axes)
    values = np.random.default_rng(1).standard_normal(HEADS[1])
    shares = weights(*HEADS[0], axis=-1)
    np.testing.assert_allclose(shares @ mapped(found, values, axes), mapped(found, shares @ values, axes))
    assert backward(at, found, axes, refused=["v1"]) == NO


@pytest.mark.parametrize("axes", [(2,), (1, 2), (2, 3)])
def test_a_map_along_what_is_mixed(axes: tuple[int, ...]) -> None:
    """Rows and columns alike, so that no size shows it."""
    at = node(WeightedMean(1, -1), (2, 5, 5, 5), (2, 5, 5, 5), output=(2, 5, 5, 5))
    assert refusal(backward(at, affine(5 ** len(axes)), axes)) == MIXES


@pytest.mark.parametrize("left", [(2, 1, 4, 6), (2, 3, 6, 6)])
def test_values_on_the_left_are_mixed_along_their_last_axis(left: tuple[int, ...]) -> None:
    at = node(WeightedMean(0, -2), left, (2, 3, 6, 6), output=(2, 3, left[2], 6))
    assert only(backward(at, affine(left[2]), (2,)))[2] == (2,)
    assert refusal(backward(at, affine(6), (3,))) == MIXES


@pytest.mark.parametrize(
    ("values", "output", "axes"),
    [
        ((2, 1, 5, 6), (2, 3, 4, 6), (1, 3)),
        ((2, None, 5, 6), (2, None, 4, 6), (1, 3)),
        ((2, None, 5, 6), (2, 3, 4, 6), (1, 3)),
        ((5, 6), (2, 3, 4, 6), (1, 3)),
        ((2, 3, 5, 6), (3, 4, 6), (0, 2)),
        (None, (2, 3, 4, 6), (1, 3)),
        ((2, 3, 5, 6), None, (1, 3)),
    ],
)
def test_products_that_share_their_values(values: Any, output: Any, axes: tuple[int, ...]) -> None:
    """Values that are broadcast over the products have no numbers for each, and unknown sizes may be broadcast."""
    at = node(WeightedMean(1, -1), (2, 3, 4, 5), values, output=output)
    assert refusal(backward(at, affine(18), axes)) == MIXES
