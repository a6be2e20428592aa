"""Two convolutions in a row as one: the form, the weight and the bias against the definition, and what is none."""

from __future__ import annotations

import numpy as np
import pytest
from support.convolution import convolved, form
from support.graphs import random

from convbn.fuse.algebra.compose import composed_bias, composed_weight, composition
from convbn.fuse.algebra.kernels import Form

LAYOUT: dict[str, tuple[int, ...]] = {"strides": (2, 1), "dilations": (1, 2), "begin": (2, 1), "end": (0, 3)}
BARE = {"strides": (2, 1), "dilations": (1, 2)}

PAIRS: dict[str, tuple[Form, Form, Form]] = {
    "two points": (form(6, 4, 1, 1), form(8, 6, 1, 1), form(8, 4, 1, 1)),
    "two strided points": (
        form(6, 4, 1, 1, strides=(2, 3)),
        form(8, 6, 1, 1, strides=(3, 1)),
        form(8, 4, 1, 1, strides=(6, 3)),
    ),
    "a kernel and a point": (form(6, 4, 3, 2, **LAYOUT), form(8, 6, 1, 1), form(8, 4, 3, 2, **LAYOUT)),
    "a kernel and a strided point": (
        form(6, 4, 3, 2, **LAYOUT),
        form(8, 6, 1, 1, strides=(2, 3)),
        form(8, 4, 3, 2, **{**LAYOUT, "strides": (4, 3)}),
    ),
    "a point and a kernel": (form(6, 4, 1, 1), form(8, 6, 3, 2, **BARE), form(8, 4, 3, 2, **BARE)),
    "a point and a padded kernel": (form(6, 4, 1, 1), form(8, 6, 3, 2, **LAYOUT), form(8, 4, 3, 2, **LAYOUT)),
    "the same groups": (
        form(6, 2, 3, 2, groups=2, **LAYOUT),
        form(8, 3, 1, 1, groups=2),
        form(8, 2, 3, 2, groups=2, **LAYOUT),
    ),
    "the same groups, a point first": (
        form(6, 2, 1, 1, groups=2),
        form(8, 3, 3, 2, groups=2, **BARE),
        form(8, 2, 3, 2, groups=2, **BARE),
    ),
    "depthwise and a depthwise multiplier": (
        form(4, 1, 3, 2, groups=4),
        form(8, 1, 1, 1, groups=4),
        form(8, 1, 3, 2, groups=4),
    ),
    "a scale and a kernel": (
        form(4, 1, 1, 1, groups=4),
        form(6, 4, 3, 2, **LAYOUT),
        form(6, 4, 3, 2, **LAYOUT),
    ),
    "a scale and groups": (
        form(4, 1, 1, 1, groups=4),
        form(6, 2, 3, 2, groups=2, **BARE),
        form(6, 2, 3, 2, groups=2, **BARE),
    ),
    "a scale and a strided point": (
        form(4, 1, 1, 1, groups=4),
        form(6, 2, 1, 1, groups=2, strides=(2, 1)),
        form(6, 2, 1, 1, groups=2, strides=(2, 1)),
    ),
    "groups and a scale": (
        form(6, 2, 3, 2, groups=2, **LAYOUT),
        form(6, 1, 1, 1, groups=6),
        form(6, 2, 3, 2, groups=2, **LAYOUT),
    ),
    "a kernel and a scale": (form(6, 4, 3, 2), form(6, 1, 1, 1, groups=6), form(6, 4, 3, 2)),
    "two scales": (
        form(4, 1, 1, 1, groups=4),
        form(4, 1, 1, 1, groups=4),
        form(4, 1, 1, 1, groups=4),
    ),
    "a strided depthwise point and a depthwise kernel's point": (
        form(4, 1, 1, 1, groups=4, strides=(2, 2)),
        form(8, 1, 1, 1, groups=4),
        form(8, 1, 1, 1, groups=4, strides=(2, 2)),
    ),
    "one axis": (form(6, 4, 3), form(8, 6, 1), form(8, 4, 3)),
    "three axes": (form(2, 4, 1, 1, 1), form(3, 2, 2, 1, 2), form(3, 4, 2, 1, 2)),
    "one channel": (form(1, 1, 3, 3), form(1, 1, 1, 1), form(1, 1, 3, 3)),
    "dilations of a point": (
        form(6, 4, 1, 1, dilations=(2, 3)),
        form(8, 6, 1, 1),
        form(8, 4, 1, 1, dilations=(2, 3)),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_one_layer_gives_what_two_give(name: str) -> None:
    first, second, expected = PAIRS[name]
    found = composition(first, second)
    assert found == expected
    w1, w2 = (random(*layer.shape, seed=i, dtype=np.float64) for i, layer in enumerate((first, second)))
    weight = composed_weight(first, w1, second, w2)
    assert weight.shape == found.shape
    x = random(2, first.channels[1], *[13, 11, 9][: len(first.shape) - 2], seed=5, dtype=np.float64)
    b1, b2 = (random(layer.shape[0], seed=7, dtype=np.float64) for layer in (first, second))
    padded = second.window.padded  # then there must be no bias in front of it
    inner = convolved(x, first, w1, None if padded else b1)
    bias = b2 if padded else b2 + composed_bias(b1, second, w2)
    np.testing.assert_allclose(
        convolved(x, found, weight, bias), convolved(inner, second, w2, b2), atol=1e-12
    )


NO_PAIRS: dict[str, tuple[Form, Form]] = {
    "other ranks": (form(6, 4, 1), form(8, 6, 1, 1)),
    "other channels": (form(6, 4, 1, 1), form(8, 4, 1, 1)),
    "other channels of a group": (form(6, 4, 1, 1), form(8, 4, 1, 1, groups=2)),
    "two kernels": (form(6, 4, 3, 1), form(8, 6, 1, 3)),
    "a kernel and a padded point": (form(6, 4, 3, 3), form(8, 6, 1, 1, begin=(1, 0))),
    "a kernel and a point padded behind": (form(6, 4, 3, 3), form(8, 6, 1, 1, end=(0, 1))),
    "a padded point and a kernel": (form(6, 4, 1, 1, begin=(0, 1)), form(8, 6, 3, 3)),
    "a strided point and a kernel": (form(6, 4, 1, 1, strides=(1, 2)), form(8, 6, 3, 3)),
    "a strided scale and groups": (
        form(4, 1, 1, 1, groups=4, strides=(2, 2)),
        form(6, 2, 1, 1, groups=2),
    ),
    "groups and a strided scale": (
        form(6, 2, 3, 3, groups=2),
        form(6, 1, 1, 1, groups=6, strides=(2, 2)),
    ),
    "other groups": (form(8, 2, 3, 3, groups=2), form(8, 2, 1, 1, groups=4)),
    "a depthwise multiplier before groups": (form(8, 1, 1, 1, groups=4), form(8, 4, 1, 1, groups=2)),
    "groups before a depthwise multiplier": (form(8, 2, 1, 1, groups=2), form(16, 1, 1, 1, groups=8)),
    "a dense layer of as many groups as a scale": (form(4, 4, 1, 1), form(8, 2, 1, 1, groups=2)),
}


@pytest.mark.parametrize("name", NO_PAIRS)
def test_what_is_no_composition(name: str) -> None:
    assert composition(*NO_PAIRS[name]) is None
