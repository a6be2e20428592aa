"""Convolutions, plain and transposed, each against one node: the law they keep, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.layer_laws import backward, done, forward, numbers, put
from support.rule_laws import NO, Moves, affine, node, refusal

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.conv_transpose import ConvTranspose
from convbn.fuse.operators.registry import rule_for
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.op import Window


def window(*spatial: int, pads: int = 0) -> Window:
    n = len(spatial)
    return Window((2,) * n, (1,) * n, (0,) * n, (pads,) * n)


def conv(
    groups: int = 1, *, bias: bool = True, spatial: tuple[int, ...] = (2, 3), pads: int = 0, dtype: Any = "f4"
) -> Node:
    """6 channels in, 4 out."""
    weight = numbers(4, 6 // groups, *spatial, dtype=dtype)
    given = [numbers(4, dtype=dtype)] if bias else []
    op = Conv(groups, window=window(*spatial, pads=pads))
    return node(op, (2, 6, *[7] * len(spatial)), weight, *given, output=None)


def transposed(groups: int = 1, *, bias: bool = True, spatial: tuple[int, ...] = (2, 3)) -> Node:
    """6 channels in, 4 out."""
    given = [numbers(4)] if bias else []
    weight = numbers(6, 4 // groups, *spatial)
    return node(ConvTranspose(groups), (2, 6, *[5] * len(spatial)), weight, *given, output=None)


@pytest.mark.parametrize("make", [conv, transposed])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("spatial", [(3,), (2, 3)])
@pytest.mark.parametrize("kind", ["both", "scale", "shift"])
def test_convolutions_take_what_stands_behind_them(
    make: Any, groups: int, bias: bool, spatial: tuple[int, ...], kind: str
) -> None:
    at = make(groups, bias=bias, spatial=spatial)
    constants = done(backward(at, affine(4, kind)))
    assert set(constants) == ({2} if kind == "shift" else {1, 2}), "a shift leaves the weight as it is"
    assert {c.dtype for c in constants.values()} == {np.dtype("f4")}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("spatial", [(3,), (2, 3)])
@pytest.mark.parametrize("kind", ["both", "scale", "shift"])
def test_a_convolution_takes_what_stands_in_front(
    groups: int, bias: bool, spatial: tuple[int, ...], kind: str
) -> None:
    constants = done(forward(conv(groups, bias=bias, spatial=spatial), affine(6, kind)))
    assert set(constants) == {"both": {1, 2}, "scale": {1}, "shift": {2}}[kind]
    assert {c.dtype for c in constants.values()} == {np.dtype("f4")}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("spatial", [(3,), (2, 3)])
def test_a_transposed_convolution_takes_a_scale_in_front(groups: int, spatial: tuple[int, ...]) -> None:
    assert set(done(forward(transposed(groups, spatial=spatial), affine(6, "scale")))) == {1}


def everywhere(groups: int, *, bias: bool = True) -> Node:
    """A transposed convolution whose one element reaches every place; 6 channels in, 4 out."""
    given = [numbers(4)] if bias else []
    op = ConvTranspose(groups, single=True)
    return node(op, (2, 6, 5, 5), numbers(6, 4 // groups, 1, 1), *given, output=None)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["both", "scale", "shift"])
def test_a_transposed_convolution_of_one_element_takes_a_shift_too(
    groups: int, bias: bool, kind: str
) -> None:
    constants = done(forward(everywhere(groups, bias=bias), affine(6, kind)))
    assert set(constants) == {"both": {1, 2}, "scale": {1}, "shift": {2}}[kind]
    if kind != "scale":
        assert forward(everywhere(groups, bias=bias), affine(6, kind), refused=[2]) == NO


def test_zeros_around_the_data_let_only_a_scale_in() -> None:
    assert refusal(forward(conv(pads=1), affine(6))) == (
        "shift-into-padding",
        "Conv 'n' puts zeros around its data, where the shift would lack",
    )
    done(forward(conv(pads=1), affine(6, "scale")))
    unknown = node(Conv(1), (2, 6, 5), numbers(4, 6, 3), output=None)
    assert refusal(forward(unknown, affine(6)))[0] == "shift-into-padding"
    assert "unevenly" in refusal(forward(transposed(), affine(6, "shift")))[1]


@pytest.mark.parametrize("make", [conv, transposed])
@pytest.mark.parametrize("groups", [1, 2])
def test_another_number_of_channels(make: Any, groups: int) -> None:
    name = type(make().op).__name__
    assert refusal(backward(make(groups), affine(8))) == (
        "parameters-malformed",
        f"{name} 'n' has 4 output channels and the BatchNorm 8",
    )
    assert refusal(forward(make(groups), affine(3, "scale"))) == (
        "parameters-malformed",
        f"{name} 'n' has 6 input channels and the BatchNorm 3",
    )


@pytest.mark.parametrize("make", [conv, transposed])
def test_only_along_the_channels(make: Any) -> None:
    assert refusal(backward(make(), affine(4), axis=2))[0] == "axis-not-proven"
    for slot, axis in ((0, 2), (0, 0), (1, 1)):
        reason, detail = refusal(forward(make(), affine(6, "scale"), axis, slot=slot))
        assert (reason, "along its channels" in detail) == ("axis-not-proven", True)


@pytest.mark.parametrize("make", [conv, transposed])
def test_what_stops_a_constant_stops_a_convolution(make: Any) -> None:
    for slot in (1, 2):
        assert backward(make(), affine(4), refused=[slot]) == NO
    assert forward(make(), affine(6, "scale"), refused=[1]) == NO
    assert forward(conv(), affine(6), refused=[2]) == NO
    computing = make()
    computing.inputs[1] = Value("w", computing.inputs[1].shape)
    for answer in (backward(computing, affine(4)), forward(computing, affine(6, "scale"))):
        assert refusal(answer) == (
            "weight-not-constant",
            f"the constant 'w' of {computing.label} is an input of the model",
        )


MALFORMED = {
    "no kernel": (1, (4, 6), (4,)),
    "a number": (1, (), (4,)),
    "groups that do not divide": (2, (5, 3, 2, 2), (5,)),
    "no groups": (0, (4, 6, 2, 2), (4,)),
    "fewer than no groups": (-1, (4, 6, 2, 2), (4,)),
    "one bias for all": (1, (4, 6, 2, 2), (1,)),
    "too few biases": (1, (4, 6, 2, 2), (3,)),
    "a bias of rank 2": (1, (4, 6, 2, 2), (4, 1)),
    "a bias of rank 0": (1, (4, 6, 2, 2), ()),
}


@pytest.mark.parametrize("kind", [Conv, ConvTranspose])
@pytest.mark.parametrize("name", MALFORMED)
def test_parameters_that_do_not_fit_each_other(kind: Any, name: str) -> None:
    groups, weight, bias = MALFORMED[name]
    if kind is ConvTranspose and len(weight) > 2:
        weight = (6, 4 // max(1, groups), 2, 2) if weight[0] == 4 else (5, 2, 2, 2)
    at = node(kind(groups), (2, 6, 5, 5), np.ones(weight, "f4"), np.ones(bias, "f4"), output=None)
    for answer in (backward(at, affine(4)), forward(at, affine(6, "scale"))):
        reason, detail = refusal(answer)
        assert reason == "parameters-malformed"
        assert str(list(bias if "bias" in name else weight)) in detail


def test_no_output_channels_at_all() -> None:
    at = node(Conv(1, window=window(2)), (2, 6, 5), np.ones((0, 6, 2), "f4"), output=None)
    moves = Moves()
    rule = rule_for(at.op)
    assert rule is not None
    assert rule.forward is not None
    assert rule.forward(moves, at, 0, affine(6), 1) is None
    assert moves.constants[2].shape == (0,)


TINY = Affine(np.array([1e-10, 1, 1, 1, 1, 1]), np.zeros(6))
"""Takes a channel of magnitude 1e-30 below what float32 holds with all its digits."""


@pytest.mark.parametrize("groups", [1, 2])
def test_a_channel_that_would_lose_its_digits(groups: int) -> None:
    """Each channel is looked at by itself: one of magnitude 1e-30 is lost among others of magnitude 1."""
    lost = "out-of-range"
    behind, in_front = conv(groups), conv(groups)
    small = np.ones((4, 6 // groups, 2, 3), "f4")
    small[0] *= 1e-30
    assert refusal(backward(put(behind, 1, small), Affine(TINY.scale[:4], TINY.shift[:4])))[0] == lost
    small = np.ones_like(small)
    small[: 4 // groups, 0] = 1e-30
    assert refusal(forward(put(in_front, 1, small), TINY))[0] == lost
    behind, in_front = transposed(groups), transposed(groups)
    small = np.ones((6, 4 // groups, 2, 3), "f4")
    small[: 6 // groups, 0] = 1e-30
    assert refusal(backward(put(behind, 1, small), Affine(TINY.scale[:4], TINY.shift[:4])))[0] == lost
    small = np.ones((6, 4 // groups, 2, 3), "f4")
    small[0] = 1e-30
    assert refusal(forward(put(in_front, 1, small), TINY))[0] == lost


@pytest.mark.parametrize("groups", [1, 2])
def test_small_numbers_in_a_channel_with_large_ones(groups: int) -> None:
    """The digits of a channel are those of its largest number."""
    small = np.ones((4, 6 // groups, 2, 3), "f4")
    small[:, :, 0], small[:, :, :, 1] = 1e-30, 1e-30
    done(backward(put(conv(groups), 1, small), Affine(TINY.scale[:4], TINY.shift[:4])))
    done(forward(put(conv(groups), 1, small), TINY))
    small[1 if groups == 1 else [1, 3]] = 1e-30
    done(forward(put(conv(groups), 1, small), TINY))
    small = np.ones((6, 4 // groups, 2, 3), "f4")
    small[:, :, 0], small[:, :, :, 1] = 1e-30, 1e-30
    done(forward(put(transposed(groups), 1, small), TINY))
    small[1 if groups == 1 else [1, 4]] = 1e-30
    done(backward(put(transposed(groups), 1, small), Affine(TINY.scale[:4], TINY.shift[:4])))
