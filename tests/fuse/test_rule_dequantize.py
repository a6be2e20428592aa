"""The rule for weights behind DequantizeLinear, and what layers ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from support.graphs import model, operators, random, relative_error, run
from support.rule_laws import Moves, affine, backward, node, reason, refusal, took

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.fold import fold
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.dequantize import Dequantize, into_quantized, is_dequantized
from convbn.fuse.operators.linear import Linear
from convbn.fuse.operators.registry import rule_for
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Value
from convbn.fuse.view.op import Other

O, IN = 4, 3  # noqa: E741 - the symbol of the formulas
SHAPE = (O, IN, 2)
MALFORMED, NOT_CONSTANT = "parameters-malformed", "weight-not-constant"


def integers(*shape: int, dtype: Any = np.int8, low: int = -127) -> np.ndarray:
    return np.random.default_rng(0).integers(low, 127, shape).astype(dtype)


def scales(count: int = O, dtype: Any = "f4") -> np.ndarray:
    return np.random.default_rng(1).uniform(0.01, 0.02, count).astype(dtype)


def weight(
    q: Any, s: Any, *zero: Any, axis: int | None = 0, output: Sequence[int | None] | None = SHAPE
) -> Node:
    return node(Dequantize(axis), q, s, *zero, output=output)


def scale_by(*numbers: float) -> Affine:
    return Affine.scale_by(np.array(numbers))


# --- the rule ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axis"), [((O, 3), 0), ((3, O), 1), ((2, 3, O), 2), ((O, O), 0), ((O,), 0)]
)
@pytest.mark.parametrize("zero", [[], [np.zeros(O, np.int8)]])
def test_scales_take_magnitudes_and_integers_signs(
    shape: tuple[int, ...], axis: int, zero: list[Any]
) -> None:
    built = weight(integers(*shape), scales(), *zero, axis=axis, output=shape)
    moves = took(backward(built, affine(O, "scale"), axis))
    assert set(moves.constants) == {0, 1}
    assert moves.constants[0].array().dtype == np.int8
    assert (moves.constants[1].array() > 0).all()


def test_positive_scales_leave_the_integers_alone() -> None:
    built = weight(integers(*SHAPE), scales(), np.full(O, 9, np.int8))
    assert set(took(backward(built, scale_by(1, 2, 0.5, 3), 0)).constants) == {1}


def test_a_scale_of_zero_keeps_the_stored_scale_and_clears_the_integers() -> None:
    moves = took(backward(weight(integers(*SHAPE), scales()), scale_by(1, 0, 2, 3), 0))
    assert not moves.constants[0].array()[1].any()
    assert moves.constants[1].array()[1] == scales()[1]


@pytest.mark.parametrize("kind", ["shift", "both"])
def test_it_has_no_place_for_a_shift(kind: str) -> None:
    assert refusal(backward(weight(integers(*SHAPE), scales()), affine(O, kind), 0)) == (
        "producer-not-foldable",
        "Dequantize 'n' has no place for a shift",
    )


@pytest.mark.parametrize(
    ("q", "s", "axis", "along"),
    [
        (SHAPE, np.float32(0.1), None, 0),
        (SHAPE, np.full(1, 0.1, "f4"), 0, 0),
        (SHAPE, scales(O + 1), 0, 0),
        ((O, O), scales(), 1, 0),
        ((O, O), scales(), 0, 1),
        ((O + 1, 3), scales(), 0, 0),
        ((), scales(), 0, 0),
        ((3,), scales(), 1, 1),
    ],
)
def test_other_scales_stay(q: tuple[int, ...], s: Any, axis: int | None, along: int) -> None:
    built = weight(np.asarray(integers(*q)), np.asarray(s), axis=axis, output=q)
    assert refusal(backward(built, affine(O, "scale"), along)) == (
        NOT_CONSTANT,
        "Dequantize 'n' has one scale for the whole weight, or its scales are along another axis",
    )


@pytest.mark.parametrize("zero", [(O + 1,), (O, 1), (1, O)])
@pytest.mark.parametrize("by", [(1, 2, 3, 4), (1, -2, 3, 0)])
def test_zero_points_of_another_shape_than_the_scales_stay(
    zero: tuple[int, ...], by: tuple[int, ...]
) -> None:
    built = weight(integers(*SHAPE), scales(), np.ones(zero, np.int8))
    found = refusal(backward(built, scale_by(*by), 0))
    assert found[0] == Reason.PARAMETERS_MALFORMED
    assert found[1] == f"the zero points of Dequantize 'n' are {list(zero)} where its scales are [{O}]"


@pytest.mark.parametrize(
    ("operands", "text"),
    [((SHAPE, scales()), "'v0'"), ((integers(*SHAPE), (O,)), "'v1'"), ((SHAPE, (O,)), "'v1'")],
)
def test_computed_integers_or_scales_stay(operands: tuple[Any, Any], text: str) -> None:
    found, detail = refusal(backward(weight(*operands), affine(O, "scale"), 0))
    assert found == NOT_CONSTANT
    assert text in detail


def test_integers_that_another_operator_computes_stay() -> None:
    computing = node(Other("Cast"), SHAPE, output=SHAPE)
    at = weight(computing.outputs[0], scales())
    assert refusal(backward(at, affine(O, "scale"), 0)) == (
        NOT_CONSTANT,
        "the constant 'out' of Dequantize 'n' is computed while the model runs",
    )


@pytest.mark.parametrize("operands", [(..., scales()), (integers(*SHAPE), ...)])
def test_integers_or_scales_that_are_left_out_stay(operands: tuple[Any, Any]) -> None:
    assert reason(backward(weight(*operands), affine(O, "scale"), 0)) == NOT_CONSTANT


@pytest.mark.parametrize(
    ("q", "zero"),
    [
        (integers(*SHAPE), [np.array([0, 0, 1, 0], np.int8)]),
        (integers(*SHAPE, dtype=np.uint8, low=0), []),
        (integers(*SHAPE, dtype=np.uint8, low=0), [np.full(O, 200, np.uint8)]),
    ],
)
def test_integers_about_a_zero_point_turn_about_it(q: np.ndarray, zero: list[np.ndarray]) -> None:
    by = scale_by(1, -2, -0.5, 0)
    moves = took(backward(weight(q, scales(), *zero), by, 0))
    changed = [moves.constants[slot].array() for slot in (0, 1, 2)]
    assert {changed[0].dtype, changed[2].dtype} == {q.dtype}

    def stands_for(stored: np.ndarray, scale: np.ndarray, about: np.ndarray) -> np.ndarray:
        return (stored.astype(float) - about.reshape(-1, 1, 1).astype(float)) * scale.reshape(-1, 1, 1)

    about = zero[0] if zero else np.zeros(O)
    expected = by.scale.reshape(-1, 1, 1) * stands_for(q, scales(), about)
    np.testing.assert_allclose(stands_for(*changed), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_integers_in_blocks_turn_about_the_zero_point_of_each(dtype: Any) -> None:
    q, zero = integers(O, 6, dtype=dtype, low=0), np.arange(2 * O, dtype=dtype).reshape(O, 2)
    built = node(Dequantize(1, blocks=True), q, scales(2 * O).reshape(O, 2), zero, output=(O, 6))
    by, moves = scale_by(2, -1, -0.5, 1), Moves()
    rule = rule_for(built.op)
    assert rule is not None
    assert rule.backward is not None
    assert rule.backward(moves, built, built.outputs[0], by, 0) is None

    def stands_for(slots: list[np.ndarray]) -> np.ndarray:
        stored, scale, point = (numbers.astype(np.float64) for numbers in slots)
        return np.repeat(scale, 3, 1) * (stored - np.repeat(point, 3, 1))

    before = [q, scales(2 * O).reshape(O, 2), zero]
    after = [moves.constants[slot].array() for slot in range(3)]
    assert [one.dtype for one in after] == [one.dtype for one in before]
    np.testing.assert_allclose(stands_for(after), by.scale[:, None] * stands_for(before), rtol=1e-6)
    none = backward(built, scale_by(2, -1, 0, 1), 0)
    assert refusal(none) == (
        "negative-scale",
        "a scale is 0, and Dequantize 'n' has a zero point for each block",
    )


def test_a_scale_of_blocks_that_would_lose_its_digits_stays() -> None:
    """Along the channels that the map has, not along the blocks: beside it there are larger ones."""
    built = node(Dequantize(1, blocks=True), integers(O, 6), scales(2 * O, "f2").reshape(O, 2), output=(O, 6))
    assert reason(backward(built, scale_by(1, 1e-4, 1, 1), 0)) == "out-of-range"
    across = node(
        Dequantize(0, blocks=True), integers(6, O), scales(2 * O, "f2").reshape(2, O), output=(6, O)
    )
    assert reason(backward(across, scale_by(1, 1e-4, 1, 1), 1)) == "out-of-range"


@pytest.mark.parametrize("least", [-1.0, 0.0])
def test_zero_points_that_are_not_known_turn_no_sign(least: float) -> None:
    assert refusal(backward(weight(integers(*SHAPE), scales(), (O,)), scale_by(1, 2, least, 3), 0)) == (
        "negative-scale",
        "some scale is not positive, and the integers of Dequantize 'n' or their zero points are not known",
    )


def test_the_lowest_integer_is_only_in_the_way_of_a_negative_sign() -> None:
    q = integers(*SHAPE)
    q[1, 0, 0] = -128
    assert refusal(backward(weight(q, scales()), scale_by(1, -1, 1, 1), 0)) == (
        "out-of-range",
        "Dequantize 'n' holds -128, which has no negative",
    )
    took(backward(weight(q, scales()), scale_by(-1, 1, 1, 1), 0))
    took(backward(weight(q, scales()), scale_by(1, 0, 1, 1), 0))


@pytest.mark.parametrize("slot", [0, 1])
def test_what_cannot_be_set_ends_it(slot: int) -> None:
    assert reason(backward(weight(integers(*SHAPE), scales()), affine(O, "scale"), 0, [slot])) == "too-far"


@pytest.mark.parametrize("factor", [1e-4, 1e7])
def test_a_scale_that_its_type_cannot_hold_stays(factor: float) -> None:
    """Below float16's normal numbers the scale of a channel would lose its digits, and the channel with it."""
    built = weight(integers(*SHAPE), scales(dtype="f2"))
    assert reason(backward(built, scale_by(1, 1, factor, 1), 0)) == "out-of-range"


# --- layers ------------------------------------------------------------------------------------------


def layer(source: Node, *bias: Any, op: Linear | Conv | None = None, output: Sequence[int] = (5, O)) -> Node:
    return node(op or Linear(0), (5, IN), source.outputs[0], *bias, output=output)


def quantized(**arguments: Any) -> Node:
    return weight(integers(O, IN), scales(), output=(O, IN), **arguments)


def quantized_bias(*, q: Any = None, s: Any = None, zero: Any = None, op: Any = None) -> Value:
    source = node(
        op or Dequantize(0),
        integers(O, dtype=np.int32) if q is None else q,
        scales() if s is None else s,
        *([] if zero is None else [zero]),
        output=(O,),
    )
    return source.outputs[0]


BIAS = np.linspace(1, 2, O).astype("f4")


@pytest.mark.parametrize("kind", ["both", "scale", "shift"])
@pytest.mark.parametrize("factor", [1.0, 0.5])
@pytest.mark.parametrize("output_axis", [0, 1])
@pytest.mark.parametrize("bias", [[], [BIAS], [...]])
def test_a_linear_layer(bias: list[Any], output_axis: int, factor: float, kind: str) -> None:
    shape = (O, IN) if output_axis == 0 else (IN, O)
    source = weight(integers(*shape), scales(), axis=output_axis, output=shape)
    built = layer(source, *bias, op=Linear(output_axis, 3.0, factor))
    moves = took(backward(built, affine(O, kind), 1))
    ((value, found, axis),) = moves.produced
    assert (value, axis) == (source.outputs[0], output_axis)
    assert found.is_scale
    assert (2 in moves.constants) == (any(isinstance(b, np.ndarray) for b in bias) or kind != "scale")
    assert all(constant.array().dtype == np.float32 for constant in moves.constants.values())


@pytest.mark.parametrize(
    "zero", [None, np.array(7, np.int32), np.array([7], np.int32), np.array([1, -2, 3, 4], np.int32)]
)
@pytest.mark.parametrize("s", [None, np.array(0.1, "f4"), np.array([0.1], "f4")])
def test_a_bias_behind_its_own_integers_becomes_a_float(s: Any, zero: Any) -> None:
    built = layer(quantized(), quantized_bias(s=s, zero=zero))
    moves, found = Moves(), affine(O)
    assert into_quantized(moves, built, found, 0) is None
    q, by = integers(O, dtype=np.int32).astype(float), (scales() if s is None else s).astype(float)
    expected = found.scale * (q - (0 if zero is None else zero)) * by + found.shift
    np.testing.assert_allclose(moves.constants[2].exact(), expected)


@pytest.mark.parametrize(
    "changed",
    [
        {"q": (O,)},
        {"s": (O,)},
        {"zero": (O,)},
        {"q": ...},
        {"s": ...},
        {"op": Other("Op")},
        {"q": integers(1, O)},
        {"q": integers(O, 1)},
        {"q": np.asarray(integers())},
        {"s": scales(O - 1)},
        {"zero": np.zeros(O + 1, np.int32)},
    ],
)
def test_a_bias_that_is_not_known_stays(changed: dict[str, Any]) -> None:
    built = layer(quantized(), quantized_bias(**changed))
    found, detail = refusal(backward(built, affine(O), 1))
    assert found == NOT_CONSTANT
    fed = any(isinstance(operand, tuple) for operand in changed.values())
    whence = (
        "computed while the model runs" if fed else "computed from constants alone, by operators of which"
    )
    assert detail.startswith(f"the constant 'out' of Linear 'n' is {whence}")


def test_a_bias_that_the_model_is_fed_stays() -> None:
    built = layer(quantized(), Value("fed", (O,), not_constant=Refusal(Reason.OVERRIDABLE, "fed")))
    assert reason(backward(built, affine(O), 1)) == "overridable-initializer"


@pytest.mark.parametrize("kind", ["both", "scale"])
def test_a_layer_that_ignores_its_bias(kind: str) -> None:
    answer = backward(layer(quantized(), BIAS, op=Linear(0, 1.0, 0.0)), affine(O, kind), 1)
    assert refusal(answer) == ("no-place-for-a-bias", "Linear 'n' multiplies its bias by 0")
    took(backward(layer(quantized(), op=Linear(0, 1.0, 0.0)), affine(O, "scale"), 1))


@pytest.mark.parametrize("shape", [(1, O), (5, O)])
def test_a_bias_of_another_shape_stays(shape: tuple[int, ...]) -> None:
    assert refusal(backward(layer(quantized(), random(*shape)), affine(O), 1)) == (
        MALFORMED,
        f"Linear 'n' has {np.prod(shape)} output channels and the BatchNorm {O}",
    )


def test_what_a_layer_cannot_set_ends_it() -> None:
    assert reason(backward(layer(quantized()), affine(O), 1, [2])) == "too-far"
    assert reason(backward(layer(quantized()), affine(O), 1, ["out"])) == "too-far"


def test_another_number_of_channels_stays() -> None:
    assert refusal(backward(layer(quantized()), affine(O + 1), 1)) == (
        MALFORMED,
        f"Linear 'n' has {O} output channels and the BatchNorm {O + 1}",
    )


@pytest.mark.parametrize("shape", [(), (O,), (2, O, O)])
def test_a_matrix_of_another_rank_stays(shape: tuple[int, ...]) -> None:
    built = layer(weight(np.asarray(integers(*shape)), scales(), output=shape))
    assert refusal(backward(built, affine(O, "scale"), 1)) == (
        "axis-not-proven",
        f"the weight of Linear 'n' has rank {len(shape)}, not 2",
    )


def test_a_convolution_with_one_integer_for_a_weight_stays() -> None:
    built = node(
        Conv(1),
        (5, IN, 3),
        weight(np.asarray(integers()), scales()).outputs[0],
        output=(5, O, 3),
    )
    assert refusal(backward(built, affine(O), 1)) == (
        MALFORMED,
        f"Conv 'n' has 1 output channels and the BatchNorm {O}",
    )


FED = Value("fed", (O, IN), not_constant=Refusal(Reason.OVERRIDABLE, "fed"))


@pytest.mark.parametrize(
    ("operands", "expected"),
    [
        (
            ((O, IN), scales()),
            (NOT_CONSTANT, "the weight 'v0' of Dequantize 'n' is an input of the model"),
        ),
        (
            (integers(O, IN), (O,)),
            (NOT_CONSTANT, "the scale 'v1' of Dequantize 'n' is an input of the model"),
        ),
        ((FED, scales()), ("overridable-initializer", "fed")),
        ((integers(O, IN), FED), ("overridable-initializer", "fed")),
        ((..., scales()), (NOT_CONSTANT, "Linear 'n' has no weight")),
        ((integers(O, IN), ...), (NOT_CONSTANT, "Linear 'n' has no weight")),
    ],
)
def test_a_weight_whose_integers_are_not_known_stays(
    operands: tuple[Any, Any], expected: tuple[str, str]
) -> None:
    assert refusal(backward(layer(weight(*operands, output=(O, IN))), affine(O), 1)) == expected


def test_which_weights_are_dequantized() -> None:
    assert is_dequantized(layer(quantized()))
    known = quantized()
    known.outputs[0].constant = Constant.of(random(O, IN))
    assert not is_dequantized(layer(known))
    other = node(Other("Op"), integers(O, IN), output=(O, IN))
    assert not is_dequantized(layer(other))
    assert not is_dequantized(node(Linear(0), (5, IN), output=(5, O)))
    assert not is_dequantized(node(Linear(0), (5, IN), (O, IN), output=(5, O)))


@pytest.mark.parametrize("operands", [((5, IN),), ((5, IN), (O, IN))])
def test_a_layer_without_such_a_weight_is_refused(operands: tuple[Any, ...]) -> None:
    built = node(Linear(0), *operands, output=(5, O))
    assert isinstance(answer := into_quantized(Moves(), built, affine(O), 0), Refusal)
    assert answer.reason is Reason.WEIGHT_NOT_CONSTANT


# --- in a graph --------------------------------------------------------------------------------------


def product(q: np.ndarray, data: Sequence[int], channels: int) -> onnx.ModelProto:
    """``x·dequantize(q)`` and a number a channel behind it."""
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=q.ndim - 2 if q.ndim > 1 else 0),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Mul", ["m", "c"], ["y"]),
    ]
    count = q.shape[-2] if q.ndim > 1 else q.shape[0]
    return model(nodes, {"x": data}, ["y"], {"q": q, "s": scales(count), "c": random(channels)})


@pytest.mark.parametrize(
    ("shape", "data", "channels"), [((2, 4, 4), (2, 3, 4), 4), ((4,), (3, 4), 3), ((4,), (2, 3, 4), 3)]
)
def test_a_product_with_integers_of_another_rank_stays(
    shape: tuple[int, ...], data: tuple[int, ...], channels: int
) -> None:
    """A stack of square matrices with a scale a row: axis 1 is not what the product gives."""
    built = product(integers(*shape), data, channels)
    result = fold(built)
    assert operators(result.model) == operators(built)
    feeds = {"x": random(*data, seed=7)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-6
