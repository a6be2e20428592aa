"""Linear layer (Gemm, MatMul, ``nn.Linear``) and an affine map, on either side.

Behind it: ``s·(α·xW + β·b) + t = α·x(W·diag(s)) + β·b'`` with ``b' = s·b + t/β``; in ONNX terms α and β are the
factors of a Gemm, 1 elsewhere. A layer whose β is 0 ignores its bias and cannot take the shift. Exact when
the map's axis is the output's last one, where W has its output axis. A BatchNorm works on axis 1, so
the output must then have rank 2: over ``[N, L, C]`` it would normalise the sequence, and with L == C
nothing but the numbers would tell.

In front of it: ``α·(s·x + t)W + β·b = α·x(diag(s)·W) + β·(b + α/β·tW)``. A product without a place for a bias
passes the constant ``α·tW`` on to whatever reads it, or gains an addition where a BatchNorm goes for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.algebra.rounding import round_scaled, round_vector
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall
from convbn.fuse.operators.dequantize import into_quantized, is_dequantized
from convbn.fuse.operators.operator import Evaluated, Operator
from convbn.fuse.operators.rule import Moves, Pending, Rule, parameters, wrong_axis, wrong_channels
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Value
from convbn.fuse.view.op import BIAS, DATA, WEIGHT, Op

__all__ = ["OPERATOR", "Linear"]


@dataclass(frozen=True, slots=True)
class Linear(Op):
    """``y = data_factor · x·W + bias_factor · b`` over the last axis of ``x``.

    Slots: data ``[..., I]``, weight with axes ``output_axis`` (size O) and the other one (size I),
    bias broadcast to ``[O]``. The channel axis is the output's last. With ``transposed_data`` the data is
    ``[I, N]`` and read the other way round.
    """

    output_axis: int
    data_factor: float = 1.0
    bias_factor: float = 1.0
    transposed_data: bool = False

    def output_axis_of(self, rank: int | None) -> int | None:
        """The last axis."""
        return None if rank is None else rank - 1


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """``W' = W·diag(s)`` on the output axis, ``b' = s·b + t/β``."""
    if (refusal := wrong_axis(node, axis)) is not None:
        return refusal
    op = cast(Linear, node.op)
    if is_dequantized(node):
        return into_quantized(moves, node, affine, op.output_axis, op.bias_factor, matrix=True)
    constants = _checked(moves, node)
    if isinstance(constants, Refusal):
        return constants
    weight, bias = constants
    outputs = weight.shape[op.output_axis]
    if outputs != affine.channels:
        return wrong_channels(node, outputs, affine.channels)
    if bias is not None or not affine.is_scale:
        row = _row(node, bias, outputs)
        if isinstance(row, Refusal):
            return row
        total = affine.scale * row + affine.shift / op.bias_factor
        if (refusal := moves.set(node, BIAS, round_vector(total, weight.dtype))) is not None:
            return refusal
    return None if affine.is_shift else _scale(moves, node, weight, affine.scale, op.output_axis)


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """``W' = diag(s)·W`` on the input axis, ``b' = b + α/β·tW``."""
    op = cast(Linear, node.op)
    data = node.input(DATA)
    if slot != DATA or data is None or data.rank is None or axis != data.rank - 1 or op.transposed_data:
        return Refusal(Reason.AXIS_NOT_PROVEN, f"{node.label} does not read the map along its last axis")
    constants = _checked(moves, node)
    if isinstance(constants, Refusal):
        return constants
    weight, bias = constants
    input_axis = 1 - op.output_axis
    if weight.shape[input_axis] != affine.channels:
        return wrong_channels(node, weight.shape[input_axis], affine.channels, "input")

    def added() -> NDArray[np.float64]:
        matrix = weight.exact()
        with np.errstate(over="ignore", invalid="ignore"):  # whoever stores the result has to look
            return op.data_factor * (affine.shift @ (matrix if input_axis == 0 else matrix.T))

    if not affine.is_shift:
        refusal = _scale(moves, node, weight, affine.scale, input_axis)
        if refusal is not None:
            return refusal
    if affine.is_scale:
        return None

    def into_bias() -> Refusal | None:
        outputs = weight.shape[op.output_axis]
        row = _row(node, bias, outputs)
        if isinstance(row, Refusal):
            return row
        shape = np.broadcast_shapes(row.shape, (outputs,))
        total = Pending(shape, lambda: round_vector(row + added() / op.bias_factor, weight.dtype))
        return moves.set(node, BIAS, total)

    def onward() -> Refusal | None:
        return moves.consume(node.outputs[0], Affine.shift_by(added()), axis)

    if bias is not None or not (BIAS in node.locks or BIAS in node.adds):
        return into_bias()
    return onward() if BIAS in node.locks else moves.first(onward, into_bias)


def _checked(moves: Moves, node: Node) -> tuple[Constant, Constant | None] | Refusal:
    constants = parameters(moves, node)
    if isinstance(constants, Refusal) or len(constants[0].shape) == 2:
        return constants
    rank = len(constants[0].shape)
    return Refusal(Reason.AXIS_NOT_PROVEN, f"the weight of {node.label} has rank {rank}, not 2")


def _row(node: Node, bias: Constant | None, outputs: int) -> NDArray[np.float64] | Refusal:
    """The bias as one number an output, or for each row of the product and each output."""
    factor = cast(Linear, node.op).bias_factor
    if factor == 0 or not np.isfinite(factor):
        return Refusal(Reason.NO_BIAS, f"{node.label} multiplies its bias by {factor}")
    if bias is None:
        return np.zeros(outputs)
    if len(bias.shape) == 2 and bias.shape[0] > 1 and bias.shape[1] in (1, outputs):
        return bias.exact()
    if bias.shape not in ((), (1,), (outputs,), (1, 1), (1, outputs)):
        return Refusal(
            Reason.AXIS_NOT_PROVEN, f"the bias of {node.label} has shape {list(bias.shape)}, not [{outputs}]"
        )
    return np.broadcast_to(bias.exact().reshape(-1), (outputs,))


def _scale(
    moves: Moves, node: Node, weight: Constant, scale: NDArray[np.float64], axis: int
) -> Refusal | None:
    shape = [1, 1]
    shape[axis] = scale.size
    scaled = Pending(weight.shape, lambda: round_scaled(weight, scale.reshape(shape), axes=(axis,)))
    return moves.set(node, WEIGHT, scaled)


_MOST_PRODUCTS = 1 << 26
"""Multiplications of one product of constants."""


def evaluated(op: Linear, known: Sequence[Constant | None]) -> Evaluated | None:
    """A plain product of constants: spectral norm computes ``uᵀWv``."""
    left, right = [*known, None][:2]
    plain = op.output_axis == 1 and op.data_factor == 1 and not op.transposed_data
    if len(known) != 2 or left is None or right is None or not plain or left.dtype != right.dtype:
        return None
    if not 1 <= len(left.shape) <= 2 or not 1 <= len(right.shape) <= 2 or left.shape[-1] != right.shape[0]:
        return None
    shape = (*left.shape[:-1], *right.shape[1:])
    if math.prod(shape) * right.shape[0] > _MOST_PRODUCTS:
        return None
    return shape, lambda: np.asarray(left.exact() @ right.exact())


def gemm_from_onnx(call: OnnxCall) -> Op | None:
    """Gemm, whose bias broadcasts from opset 7 on."""
    given = call.attributes
    if call.opset < 7:
        return None
    return Linear(
        output_axis=0 if given.get("transB", 0) else 1,
        data_factor=float(given.get("alpha", 1.0)),
        # With 0 the frontend shows no constant as bias, and writes 1 beside the one that it is given.
        bias_factor=float(given.get("beta", 1.0)) or float(call.input(BIAS) is None),
        transposed_data=bool(given.get("transA", 0)),
    )


def matmul_from_onnx(call: OnnxCall) -> Op | None:
    """MatMul; the rows of a matrix from the left are no last axis."""
    left, right = [*call.inputs, None, None][:2]
    if left is None or right is None:
        return None
    from_left = left.constant is not None and right.constant is None and right.rank is not None
    return None if from_left else Linear(output_axis=1)


_ATEN: dict[str, tuple[str | None, ...]] = {
    "linear": ("input", "weight", "bias"),
    "addmm": ("mat1", "mat2", "self"),
    "mm": ("self", "mat2", None),
    "matmul": ("self", "other", None),
}


def from_aten(call: AtenCall) -> Mapped | None:
    """A product with a matrix; one that is stored the other way round is read as it is stored."""
    alpha, beta = call.given.get("alpha", 1.0), call.given.get("beta", 1.0)
    names = _ATEN[call.name]
    shape = call.shape(str(names[WEIGHT]))
    if (
        not (isinstance(alpha, int | float) and isinstance(beta, int | float))
        or shape is None
        or len(shape) != 2
    ):
        return None
    op = Linear(0 if call.name == "linear" else 1, float(alpha), float(beta))
    data, weight, bias = call.reads(op, *names).slots
    stored = _transposed(call, weight)
    if stored is None:
        return Mapped(op, (data, weight, bias), names)
    op = Linear(1 - op.output_axis, op.data_factor, op.bias_factor)
    return Mapped(op, (data, stored, bias), names, through=weight)


def _transposed(call: AtenCall, weight: Any) -> Any:
    """The matrix stored in the graph's own state of which ``weight`` is the transpose."""
    turning = call.tensors.call(weight)
    if turning is None:
        return None
    given = turning.given
    swaps = (
        turning.name == "t"
        or (turning.name == "permute" and [axis % 2 for axis in given["dims"]] == [1, 0])
        or (turning.name == "transpose" and {given["dim0"] % 2, given["dim1"] % 2} == {0, 1})
    )
    source = turning.tensor()
    return source if swaps and source is not None and call.tensors.is_stored(source) else None


RULE = Rule("linear", Linear, backward, forward)

OPERATOR = Operator(
    Linear,
    RULE,
    evaluated,
    onnx={"Gemm": gemm_from_onnx, "MatMul": matmul_from_onnx},
    aten=(Aten(("linear", "matmul"), from_aten), Aten(("addmm", "mm"), from_aten)),
)
