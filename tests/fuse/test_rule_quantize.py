"""Weights that are quantised as the model runs: what their integers are, what is refused, and whole layers of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run
from support.rule_laws import Moves, affine, backward, node, reason, refusal

from convbn.fuse.fold import fold
from convbn.fuse.operators.calls import OnnxCall
from convbn.fuse.operators.dequantize import Dequantize
from convbn.fuse.operators.quantize import Quantize, integers_of
from convbn.fuse.operators.registry import onnx_readers
from convbn.fuse.refusal import Refusal
from convbn.fuse.view.dataflow import Node, Value

OUT, IN = 4, 3
WEIGHT = random(OUT, IN)
SCALES = np.full(OUT, 0.02, "f4")


def quantizer(weight: Any = WEIGHT, scale: Any = SCALES, *zero: Any, axis: int | None = 0) -> Node:
    return node(Quantize(axis), weight, scale, *zero, output=(OUT, IN))


def behind(source: Node, scale: Any = SCALES, *zero: Any, axis: int | None = 0) -> Node:
    return node(Dequantize(axis), source.outputs[0], scale, *zero, output=(OUT, IN))


@pytest.mark.parametrize(
    ("scale", "zero", "axis", "kind"),
    [
        (SCALES, None, 0, np.uint8),
        (np.float32(0.03), None, None, np.uint8),
        (SCALES, np.full(OUT, 3, np.int8), 0, np.int8),
        (np.float32(0.01), np.int8(0), None, np.int8),
        (np.full(IN, 0.02, "f4"), np.full(IN, -5, np.int16), 1, np.int16),
        (np.full(1, 0.02, "f4"), np.full(1, 99, np.uint16), 0, np.uint16),
    ],
)
def test_the_integers_are_those_of_onnx(scale: Any, zero: Any, axis: int | None, kind: Any) -> None:
    """``clip(round(x/scale) + zero)``, half to even."""
    found = integers_of(
        Moves(),
        quantizer(WEIGHT, np.asarray(scale), *([] if zero is None else [np.asarray(zero)]), axis=axis),
    )
    assert not isinstance(found, Refusal), found
    shape = (-1, 1) if axis == 0 and np.size(scale) > 1 else (-1,)
    point = np.zeros(1) if zero is None else np.reshape(zero, shape)
    limits = np.iinfo(kind)
    expected = np.clip(np.rint(WEIGHT / np.reshape(scale, shape)) + point, limits.min, limits.max)
    assert found.dtype == kind
    np.testing.assert_array_equal(found, expected)


def test_two_scales_are_one_a_row() -> None:
    weight, pair = np.float32([[1, 2, 3], [4, 5, 6]]), np.float32([1, 2])
    at = node(Quantize(0), weight, pair, np.int8([3, 4]), output=(2, 3))
    found = integers_of(Moves(), at)
    assert not isinstance(found, Refusal), found
    np.testing.assert_array_equal(found, [[4, 5, 6], [6, 6, 7]])


NO_WEIGHT = ("weight-not-constant", "Quantize 'n' quantises no weight of its scale's type")
NO_INTEGERS = ("weight-not-constant", "Quantize 'n' gives no integers of a known kind")
NO_NUMBERS = ("bad-statistics", "the weight of Quantize 'n' holds Inf or NaN, or a scale is 0")


@pytest.mark.parametrize(
    ("operands", "expected"),
    [
        ((..., SCALES), NO_WEIGHT),
        ((WEIGHT, ...), NO_WEIGHT),
        ((WEIGHT.astype("f2"), SCALES), NO_WEIGHT),
        ((np.ones((OUT, IN), "i4"), np.ones(OUT, "i4")), NO_WEIGHT),
        ((WEIGHT, SCALES, np.zeros(OUT, "i4")), NO_INTEGERS),
        ((WEIGHT, SCALES, np.zeros(OUT, "f2")), NO_INTEGERS),
        ((WEIGHT, np.full(OUT + 1, 0.02, "f4")), NO_INTEGERS),
        ((WEIGHT, SCALES, np.zeros(IN, np.int8)), NO_INTEGERS),
        ((np.full((OUT, IN), np.nan, "f4"), SCALES), NO_NUMBERS),
        ((WEIGHT, np.zeros(OUT, "f4")), NO_NUMBERS),
        (
            ((OUT, IN), SCALES),
            ("weight-not-constant", "the constant 'v0' of Quantize 'n' is an input of the model"),
        ),
    ],
)
def test_integers_that_are_not_known_stay(operands: tuple[Any, ...], expected: tuple[str, str]) -> None:
    answer = backward(behind(quantizer(*operands)), affine(OUT, "scale"), 0)
    assert refusal(answer) == expected


def test_a_scale_of_zero_is_refused_whatever_numpy_is_told_to_raise() -> None:
    with np.errstate(all="raise"):
        found = integers_of(Moves(), quantizer(WEIGHT, np.zeros(OUT, "f4")))
    assert isinstance(found, Refusal)
    assert (found.reason, found.detail) == NO_NUMBERS


def test_integers_that_others_see_stay() -> None:
    source = quantizer()
    source.outputs[0].observed = "an output of the model"
    found = refusal(backward(behind(source), affine(OUT, "scale"), 0))
    assert found[0] == "weight-not-constant"
    assert "are read by others" in found[1]
    other = behind(quantizer(axis=0), axis=1)
    assert reason(backward(other, affine(OUT, "scale"), 0)) == "weight-not-constant"
    along = behind(quantizer(WEIGHT, np.full(IN, 0.02, "f4"), axis=1), axis=0)
    assert "its scales are along another axis" in refusal(backward(along, affine(OUT, "scale"), 0))[1]


@pytest.mark.parametrize("slot", [0, 1, 2])
def test_what_cannot_be_set_ends_it(slot: int) -> None:
    zero = np.full(OUT, 3, np.int8)
    at = behind(quantizer(WEIGHT, SCALES, zero), SCALES, zero)
    assert reason(backward(at, affine(OUT, "scale"), 0, [slot])) == "too-far"


def test_one_scale_that_cannot_become_many() -> None:
    one = np.array(0.02, "f4")
    at = node(Dequantize(None, spreads=True), random(OUT, IN).astype(np.int8), one, output=(OUT, IN))
    assert reason(backward(at, affine(OUT, "scale"), 0, ["become"])) == "too-far"


@pytest.mark.parametrize(
    ("attributes", "shape", "expected"),
    [
        ({}, (), Quantize(None, True)),
        ({"axis": 0}, (OUT,), Quantize(0, True)),
        ({"axis": -1}, (OUT,), Quantize(1, True)),
        ({"axis": 0}, None, None),
        ({"axis": 0}, (OUT, 1), None),
        ({"block_size": 2}, (OUT,), None),
        ({"output_dtype": 3}, (), None),
    ],
)
def test_which_quantisations_are_read(attributes: dict[str, Any], shape: Any, expected: Any) -> None:
    (read,) = onnx_readers("QuantizeLinear")
    inputs = [Value("w", (OUT, IN)), Value("s", shape)]
    assert read(OnnxCall("QuantizeLinear", 21, attributes, inputs, [Value("q")])) == expected


# --- whole layers -------------------------------------------------------------------------------------------------

LAYERS = {
    "Conv": ((6, 4, 3, 3), 0, {"pads": [1] * 4}),
    "ConvTranspose": ((4, 6, 2, 2), 1, {"strides": [2, 2]}),
    "Gemm": ((6, 4), 0, {"transB": 1}),
}
KINDS = {"i1": np.int8, "u1": np.uint8, "i2": np.int16}


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(LAYERS)),
    st.sampled_from(sorted(KINDS)),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["none", "zero", "one", "each"]),
    st.lists(st.sampled_from([-3.0, -0.5, 0.0, 0.25, 1.0, 2.0]), min_size=6, max_size=6),
    st.integers(0, 99),
    st.floats(0.3, 1.5),
)
def test_a_layer_of_integers(
    layer: str,
    kind: str,
    running: bool,
    each: bool,
    points: str,
    gamma: list[float],
    seed: int,
    reach: float,
) -> None:
    """Scales one in all or one a channel, of either sign or 0; zero points; weights that leave the integers' range.

    The outputs are those of before. Only the lowest integer about 0, which has no negative, may keep the BatchNorm.
    """
    shape, axis, attributes = LAYERS[layer]
    dtype, rng = KINDS[kind], np.random.default_rng(seed)
    limits = np.iinfo(dtype)
    points = "none" if kind == "i2" and points == "none" and running else points
    weight = rng.standard_normal(shape).astype("f4")
    others = tuple(i for i in range(len(shape)) if i != axis)
    scale = np.asarray(np.abs(weight).max(others if each else None) * reach / limits.max, "f4")
    zero = {
        "none": None,
        "zero": np.zeros(scale.shape, dtype),
        "one": np.full(scale.shape, limits.max // 3, dtype),
        "each": rng.integers(limits.min // 2, limits.max // 2, scale.shape).astype(dtype),
    }[points]
    if zero is None and running:
        dtype, limits = np.uint8, np.iinfo(np.uint8)
    integers = rng.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)
    names = ["s", *([] if zero is None else ["z"])]
    where = {"axis": axis} if each else {}
    nodes = [
        *([helper.make_node("QuantizeLinear", ["fw", *names], ["q"], **where)] if running else []),
        helper.make_node("DequantizeLinear", ["q", *names], ["w"], **where),
        helper.make_node(layer, ["x", "w"], ["c"], **attributes),
        batchnorm("c", "y"),
    ]
    stored = {"s": scale, **({} if zero is None else {"z": zero}), **batchnorm_parameters(6, seed=seed)}
    stored["bn.gamma"] = np.float32(gamma)
    stored |= {"fw": weight} if running else {"q": integers}
    data = (3, 4) if layer == "Gemm" else (2, 4, 5, 5)
    built = model(nodes, {"x": data}, ["y"], stored, opset=21)
    result = fold(built)
    feeds = {"x": random(*data, seed=seed + 1)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 2e-5
    if "BatchNormalization" in operators(result.model):
        (kept,) = result.report.kept
        assert kept.reason == "out-of-range"
        assert f"holds {limits.min}, which has no negative" in kept.detail
        assert points in ("none", "zero")
        assert limits.min < 0
    assert operators(result.model)[: running + 1] == operators(built)[: running + 1]
