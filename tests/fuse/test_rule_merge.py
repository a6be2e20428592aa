"""The sum of two kernels over the same data: forms that no convolution is, and what a weight may look like."""

from __future__ import annotations

import numpy as np
import pytest
from support.convolution import convolved, form
from support.graphs import random

from convbn.fuse.algebra.kernels import Form, add_into, pointwise, union

PAIRS: dict[str, tuple[Form, Form, Form]] = {
    "a kernel and a point": (
        form(4, 4, 3, 3, begin=(1, 1), end=(1, 1)),
        form(4, 4, 1, 1),
        form(4, 4, 3, 3, begin=(1, 1), end=(1, 1)),
    ),
    "a point and a kernel off centre": (
        form(4, 4, 1, 1),
        form(4, 4, 3, 2, begin=(2, 0), end=(0, 1)),
        form(4, 4, 3, 2, begin=(2, 0), end=(0, 1)),
    ),
    "kernels that reach to either side": (
        form(4, 4, 3, begin=(2,), end=(0,)),
        form(4, 4, 3, begin=(0,), end=(2,)),
        form(4, 4, 5, begin=(2,), end=(2,)),
    ),
    "dilated": (
        form(4, 4, 3, dilations=(2,), begin=(2,), end=(2,), strides=(2,)),
        form(4, 4, 2, dilations=(2,), begin=(0,), end=(2,), strides=(2,)),
        form(4, 4, 3, dilations=(2,), begin=(2,), end=(2,), strides=(2,)),
    ),
    "kernels on one lattice that begin elsewhere": (
        form(4, 4, 3, dilations=(3,), begin=(4,), end=(2,)),
        form(4, 4, 2, dilations=(3,), begin=(1,), end=(2,)),
        form(4, 4, 3, dilations=(3,), begin=(4,), end=(2,)),
    ),
    "a dilated kernel and a point of another dilation": (
        form(4, 4, 3, dilations=(3,), begin=(3,), end=(3,)),
        form(4, 4, 1, dilations=(5,)),
        form(4, 4, 3, dilations=(3,), begin=(3,), end=(3,)),
    ),
    "two points of other dilations": (
        form(4, 4, 1, dilations=(2,)),
        form(4, 4, 1, dilations=(3,)),
        form(4, 4, 1),
    ),
    "no padding": (form(4, 4, 3), form(4, 4, 3), form(4, 4, 3)),
    "two taps": (
        form(4, 4, 2, dilations=(2,)),
        form(4, 4, 2, dilations=(2,)),
        form(4, 4, 2, dilations=(2,)),
    ),
    "cropped points": (
        form(4, 4, 1, begin=(-1,), end=(1,)),
        form(4, 4, 1, begin=(1,), end=(-1,)),
        form(4, 4, 3, begin=(1,), end=(1,)),
    ),
    "groups of 4 and of 6": (
        form(12, 3, 1, groups=4),
        form(12, 2, 3, groups=6, begin=(1,), end=(1,)),
        form(12, 6, 3, groups=2, begin=(1,), end=(1,)),
    ),
    "the identity": (
        form(6, 2, 3, groups=3, begin=(1,), end=(1,)),
        form(6, 1, 1, groups=6),
        form(6, 2, 3, groups=3, begin=(1,), end=(1,)),
    ),
    "a multiplier": (
        form(8, 1, 3, groups=4, begin=(0,), end=(2,)),
        form(8, 2, 1, groups=2),
        form(8, 2, 3, groups=2, begin=(0,), end=(2,)),
    ),
}


@pytest.mark.parametrize("factor", [1.0, -1.0, 2.5])
@pytest.mark.parametrize("name", PAIRS)
def test_the_sum_of_two(name: str, factor: float) -> None:
    a, b, expected = PAIRS[name]
    both = union(a, b)
    assert both == expected
    assert union(b, a) == expected
    wa, wb = (random(*part.shape, seed=i, dtype=np.float64) for i, part in enumerate((a, b)))
    total = np.zeros(both.shape)
    add_into(total, both, wa, a)
    add_into(total, both, wb, b, factor)
    x = random(2, a.channels[1], *[13, 11][: len(a.shape) - 2], seed=5, dtype=np.float64)
    if min(*a.window.begin, *b.window.begin, *a.window.end, *b.window.end) < 0:
        return  # the definition of this test only pads
    np.testing.assert_allclose(
        convolved(x, both, total), convolved(x, a, wa) + factor * convolved(x, b, wb), atol=1e-12
    )


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_the_identity(spatial: int) -> None:
    at = pointwise(5, spatial)
    assert at == form(5, 1, *[1] * spatial, groups=5)
    x = random(2, 5, *[4] * spatial, dtype=np.float64)
    assert (convolved(x, at, np.ones(at.shape)) == x).all()


@pytest.mark.parametrize("shape", [(), (1,), (4, 1, 1), (4, 4, 3), (4, 1, 3)])
def test_a_weight_may_be_broadcast(shape: tuple[int, ...]) -> None:
    at = form(4, 4, 3)
    weight, total = np.asarray(random(*shape, dtype=np.float64)), np.zeros(at.shape)
    add_into(total, at, weight, at)
    add_into(total, at, weight, at)
    np.testing.assert_allclose(total, np.broadcast_to(2 * weight, at.shape))


NO_PAIRS: dict[str, tuple[Form, Form]] = {
    "other ranks": (form(4, 4, 1), form(4, 4, 1, 1)),
    "no spatial axis": (form(4, 4), form(4, 4)),
    "other outputs": (form(4, 4, 1), form(8, 4, 1)),
    "other inputs": (form(4, 4, 1), form(4, 4, 1, groups=2)),
    "other strides": (form(4, 4, 1, 1), form(4, 4, 1, 1, strides=(1, 2))),
    "other sizes": (form(4, 4, 3), form(4, 4, 1)),
    "other sizes along the second axis": (form(4, 4, 1, 3, begin=(0, 1)), form(4, 4, 1, 1)),
    "other dilations": (
        form(4, 4, 3, dilations=(2,), begin=(2,), end=(2,)),
        form(4, 4, 3, begin=(1,), end=(1,)),
    ),
    "taps between those of a dilated kernel": (
        form(4, 4, 3, dilations=(2,), begin=(2,), end=(2,)),
        form(4, 4, 1, begin=(1,), end=(-1,)),
    ),
}


@pytest.mark.parametrize("name", NO_PAIRS)
def test_what_is_no_sum(name: str) -> None:
    a, b = NO_PAIRS[name]
    assert union(a, b) is None
    assert union(b, a) is None
