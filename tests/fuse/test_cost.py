"""When a merge pays: at equal cost it is made, at one multiply-add more it is not."""

from __future__ import annotations

import pytest

from convbn.fuse.algebra.kernels import Form
from convbn.fuse.plan.merging.cost import chain_pays, multiply_adds, pays
from convbn.fuse.view.op import Window


def form(*shape: int, padding: int = 0) -> Form:
    """A convolution with a weight of this shape."""
    spatial = len(shape) - 2
    window = Window((1,) * spatial, (1,) * spatial, (padding,) * spatial, (0,) * spatial)
    return Form(shape, 1, window)


def test_multiply_adds_at_one_position() -> None:
    assert multiply_adds(form(6, 4, 3, 5)) == 6 * 4 * 3 * 5


@pytest.mark.parametrize(
    ("parts", "makes"), [((54, 48), True), ((54, 47), False), ((102,), True), ((101, 0), False)]
)
def test_the_sum_is_one_operation_a_channel(parts: tuple[int, ...], makes: bool) -> None:
    """108 = 6·2·3·3 multiply-adds against the parts and 6 additions."""
    assert pays(form(6, 2, 3, 3), parts) is makes


@pytest.mark.parametrize(
    ("composed", "first", "second", "padding", "makes"),
    [
        ((8, 3, 1, 1), (4, 3, 1, 1), (8, 4, 1, 1), 0, True),
        ((11, 4, 1, 1), (4, 3, 1, 1), (8, 4, 1, 1), 0, True),
        ((9, 5, 1, 1), (4, 3, 1, 1), (8, 4, 1, 1), 0, False),
        ((8, 4, 1, 1), (4, 3, 1, 1), (8, 4, 1, 1), 1, True),
        ((11, 3, 1, 1), (4, 3, 1, 1), (8, 4, 1, 1), 1, False),
    ],
)
def test_the_first_of_two_counts_only_without_padding(
    composed: tuple[int, ...], first: tuple[int, ...], second: tuple[int, ...], padding: int, makes: bool
) -> None:
    """12 and 32 multiply-adds: 44 together, 32 alone."""
    assert chain_pays(form(*composed), form(*first), form(*second, padding=padding)) is makes
