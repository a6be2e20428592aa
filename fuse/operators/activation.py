"""ReLU and its family: ``f(s·x) = s·f(x)`` for s > 0, so a positive scale passes, in either direction.

A shift does not, nor does a negative scale: ``ReLU(−x)`` is no multiple of ``ReLU(x)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Moves, Rule, not_positive, onto_data
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.op import Labelled, Op

__all__ = ["OPERATOR", "Activation"]


@dataclass(frozen=True, slots=True)
class Activation(Labelled):
    """A function of each element with ``f(s·x) = s·f(x)`` for every s > 0: ReLU, LeakyReLU, PReLU.

    Slots: data, and parameters that do not matter for this.
    """


def backward(moves: Moves, node: Node, output: Value, affine: Affine, axis: int) -> Refusal | None:
    """``s·f(x) = f(s·x)``."""
    refusal = _passes(node, affine)
    return refusal if refusal is not None else onto_data(moves, node, affine, axis)


def forward(moves: Moves, node: Node, slot: int, affine: Affine, axis: int) -> Refusal | None:
    """``f(s·x) = s·f(x)``."""
    refusal = (
        _passes(node, affine) if slot == 0 else Refusal(Reason.PRODUCER_NOT_LINEAR, f"{node.label} bends it")
    )
    return refusal if refusal is not None else moves.consume(node.outputs[0], affine, axis)


def _passes(node: Node, affine: Affine) -> Refusal | None:
    if not affine.is_scale:
        return Refusal(
            Reason.PRODUCER_NOT_LINEAR, f"{node.label} lets a positive scale through, and no shift"
        )
    return not_positive(node, affine)


def from_onnx(call: OnnxCall) -> Op:
    """Relu, LeakyRelu, PRelu."""
    return Activation(call.operator)


def clip_from_onnx(call: OnnxCall) -> Op | None:
    """Clip to one side of 0: ReLU, or its mirror image."""
    bounds = [_bound(call, 1, "min", -math.inf), _bound(call, 2, "max", math.inf)]
    return Activation("Clip") if bounds in ([0, math.inf], [-math.inf, 0]) else None


def _bound(call: OnnxCall, slot: int, attribute: str, default: float) -> float | None:
    """A bound; the largest number of float32 stands for none, as older opsets have it. None where it is not known."""
    value = call.input(slot)
    if value is None:
        bound = float(call.attributes.get(attribute, default))
    elif value.constant is None or math.prod(value.constant.shape) != 1:
        return None
    else:
        bound = float(value.constant.exact().reshape(()))
    return default if abs(bound) >= _LARGEST and (bound > 0) == (default > 0) else bound


_LARGEST = 3.4028234e38
"""Of float32."""


def maximum_from_onnx(call: OnnxCall) -> Op | None:
    """Max and Min of the data and 0."""
    data, zero = call.input(0), call.input(1)
    if len(call.inputs) != 2 or data is None or zero is None or zero.constant is None or data.rank is None:
        return None
    constant = zero.constant
    plain = math.prod(constant.shape) == 1 and len(constant.shape) <= data.rank
    return Activation(call.operator) if plain and not constant.array().any() else None


_LABELS = {"relu": "ReLU", "leaky_relu": "LeakyReLU"}


def from_aten(call: AtenCall) -> Mapped | None:
    """Those without a parameter that flows."""
    return call.unary(Activation(_LABELS[call.name]))


def clamp_from_aten(call: AtenCall) -> Mapped | None:
    """``clamp`` to one side of 0, and ``threshold`` at 0."""
    if call.name == "threshold":
        bounds = (call.given.get("threshold"), call.given.get("value"))
        return call.unary(Activation("Threshold")) if bounds == (0, 0) else None
    bounds = (call.given.get("min"), call.given.get("max"))
    return call.unary(Activation("Clamp")) if bounds in ((0, None), (None, 0)) else None


def prelu_from_aten(call: AtenCall) -> Mapped:
    """PReLU, whose slopes are a tensor."""
    return call.reads(Activation("PReLU"), "self", "weight")


RULE = Rule("activation", Activation, backward, forward, through=True)

OPERATOR = Operator(
    Activation,
    RULE,
    onnx={
        **dict.fromkeys(("LeakyRelu", "PRelu", "Relu"), from_onnx),
        **dict.fromkeys(("Max", "Min"), maximum_from_onnx),
        "Clip": clip_from_onnx,
    },
    aten=(
        Aten(("relu",), from_aten, ("self", "inplace"), ("relu_",), shape=AtenCall.shape, keeps_rank=True),
        Aten(
            ("leaky_relu",),
            from_aten,
            ("self", "negative_slope", "inplace"),
            shape=AtenCall.shape,
            keeps_rank=True,
        ),
        *(
            Aten(names, clamp_from_aten, ("self", *bounds), further, shape=AtenCall.shape, keeps_rank=True)
            for names, bounds, further in (
                (("clamp", "clip"), ("min", "max"), ("clip",)),
                (("clamp_min",), ("min",), ()),
                (("clamp_max",), ("max",), ()),
                (("threshold",), ("threshold", "value", "inplace"), ()),
            )
        ),
        Aten(
            ("prelu", "_prelu_kernel"),
            prelu_from_aten,
            ("self", "weight"),
            shape=AtenCall.shape,
            keeps_rank=True,
        ),
    ),
)
