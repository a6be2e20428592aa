"""A cast between float types, and a move, is no map of its own: ``s·cast(x) + t = cast(s·x + t)``.

What is rounded before and behind it is each number once, as in the model at hand: mixed precision casts a float16
convolution's output to float32 for a BatchNorm, and the convolution that takes the map rounds once where it did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall
from convbn.fuse.operators.channelwise_identity import ChannelwiseIdentity
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Rearrangement, Rule, follow_backward, follow_forward
from convbn.fuse.view.dataflow import Value
from convbn.fuse.view.op import DATA, Op

__all__ = ["OPERATOR", "Cast"]

_FLOATS = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}
"""Of ONNX's numbers of types."""


@dataclass(frozen=True, slots=True)
class Cast(Rearrangement):
    """The same numbers in another float type. Slots: data, and what has that type already."""

    def moved(
        self, source: Value, target: Value, affine: Affine, axis: int, *, back: bool
    ) -> tuple[Affine, int] | None:
        """The same map along the same axis."""
        return affine, axis

    def sees_numbers(self, slot: int) -> bool:
        """Those of the data."""
        return slot == DATA


def from_onnx(call: OnnxCall) -> Op | None:
    """Cast and CastLike from a float type, as far as the graph states it, to a float type; integers have no room
    for a map.
    """
    data, like = call.input(DATA), call.input(1)
    stated = None if data is None else data.dtype
    if call.operator == "CastLike":
        floats = like is not None and like.dtype is not None and like.dtype.name in _FLOATS.values()
    else:
        floats = call.attributes.get("to") in _FLOATS
    return Cast() if floats and (stated is None or stated.name in _FLOATS.values()) else None


_NAMED = {"float": "float32", "half": "float16", "double": "float64", "bfloat16": "bfloat16"}
_TYPES = ("uint8", "int8", "int16", "int32", "int64", "bool", "complex32", "complex64", "complex128")


def from_aten(call: AtenCall) -> Mapped | None:
    """``to``, ``type_as``, ``float`` and the like, from a float type to a float type; ``cpu`` and other moves."""
    source, target = call.tensors.dtype(call.tensor()), _target(call)
    if target is None or source not in (None, *_FLOATS.values()):
        return None
    if target in ("", source):
        return call.unary(ChannelwiseIdentity("To"))
    like = "other" if call.tensor("other") is not None else None
    return call.reads(Cast(), "self", like) if like else call.unary(Cast())


def _target(call: AtenCall) -> str | None:
    """The float type of the result, empty where it is that of the data; None where it may be no float type."""
    if call.name in _NAMED:
        return _NAMED[call.name]
    wanted = ""
    for asked in (call.given.get(name) for name in ("to", "dtype", "other")):
        for one in asked if isinstance(asked, list | tuple) else (asked,):
            if isinstance(one, bool) or one is None:
                continue
            found = _type(call, one)
            if found is None:
                return None
            wanted = found or wanted
    return wanted


def _type(call: AtenCall, asked: Any) -> str | None:
    """A float type that is asked for, empty where a device is; None for what may be another type."""
    if call.tensors.is_tensor(asked):
        name = call.tensors.dtype(asked)
        return name if name in _FLOATS.values() else None
    text = str(asked)
    name = text.removeprefix("torch.")
    if name in _FLOATS.values():
        return name
    return "" if name == text and name not in _TYPES else None


def _aten(name: str, *further: str, signature: tuple[str, ...] = ("self", "*to")) -> Aten:
    overloads = ("device", "dtype", "other", "dtype_layout")
    names = (name, *further)
    return Aten(
        names, from_aten, signature, shape=AtenCall.shape, keeps_rank=True, fresh=False, overloads=overloads
    )


OPERATOR = Operator(
    Cast,
    Rule("cast", Cast, follow_backward, follow_forward, through=True),
    onnx={"Cast": from_onnx, "CastLike": from_onnx},
    aten=(
        _aten("to", "_to_copy"),
        _aten("type_as", signature=("self", "other")),
        *(_aten(name, signature=("self",)) for name in ("cpu", "cuda", *_NAMED)),
    ),
)
