"""Identity, Dropout in inference, interpolation with weights that sum to 1: every map along the channels passes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall, Shape
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Rearrangement, Rule, follow_backward, follow_forward, size_along
from convbn.fuse.view.dataflow import Value
from convbn.fuse.view.op import DATA, Labelled, Op

__all__ = ["OPERATOR", "ChannelwiseIdentity"]


@dataclass(frozen=True, slots=True)
class ChannelwiseIdentity(Labelled, Rearrangement):
    """What treats every channel alike and gives each affine map of its input back: Identity, Dropout,
    interpolation whose weights sum to 1.
    """

    def moved(
        self, source: Value, target: Value, affine: Affine, axis: int, *, back: bool
    ) -> tuple[Affine, int] | None:
        """The same map, where both sides have the axis and are of one size along it."""
        known = source.shape is not None and target.shape is not None and len(source.shape) > axis
        return (affine, axis) if known and size_along(source, axis) == size_along(target, axis) else None


def from_onnx(call: OnnxCall) -> Op | None:
    """Identity, and Dropout where it is not told to train and its mask is not used."""
    if call.operator == "Dropout":
        told, trains = call.input(2), True
        if told is None or (told.constant is not None and math.prod(told.constant.shape) == 1):
            trains = told is not None and told.constant is not None and bool(told.constant.array().any())
        if trains or any(v is not None for v in call.outputs[1:]):
            return None
    return ChannelwiseIdentity(call.operator)


def resize_from_onnx(call: OnnxCall) -> Op | None:
    """Resize with weights that sum to 1; not where it extrapolates or leaves weights out."""
    given, data, output = call.attributes, call.input(DATA), call.outputs[0]
    if given.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return None
    if given.get("exclude_outside", 0) or given.get("mode", "nearest") not in ("nearest", "linear", "cubic"):
        return None
    if data is None or data.shape is None or output is None or output.shape is None:
        return None
    known = data.shape[1:2] == output.shape[1:2] != (None,)
    return ChannelwiseIdentity(call.operator) if known else None


def from_aten(call: AtenCall) -> Mapped | None:
    """``clone``, ``contiguous`` and ``positive``."""
    return call.unary(ChannelwiseIdentity(call.name.capitalize()))


def upsample_from_aten(call: AtenCall) -> Mapped | None:
    """Interpolation of every kind."""
    return call.unary(ChannelwiseIdentity("Resize"), "input" if "input" in call.given else "self")


def upsampled_shape(call: AtenCall) -> Shape | None:
    """The sizes of the image change."""
    shape = call.shape()
    return None if shape is None else (*shape[:2], *(None,) * (len(shape) - 2))


OPERATOR = Operator(
    ChannelwiseIdentity,
    Rule("passage", ChannelwiseIdentity, follow_backward, follow_forward, through=True),
    onnx={"Dropout": from_onnx, "Identity": from_onnx, "Resize": resize_from_onnx},
    aten=(
        Aten(("clone",), from_aten, ("self",), shape=AtenCall.shape, keeps_rank=True),
        *(
            Aten((name,), from_aten, ("self",), (python,), shape=AtenCall.shape, keeps_rank=True, fresh=False)
            for name, python in (("contiguous", "contiguous"), ("positive", "pos"))
        ),
        # In inference it is another name for its data, which the frontend knows.
        Aten(
            ("dropout",),
            None,
            ("self", "p", "training", "inplace"),
            shape=AtenCall.shape,
            keeps_rank=True,
            fresh=False,
        ),
        Aten(
            (
                "upsample_nearest2d",
                *("upsample_nearest1d", "upsample_nearest3d"),
                *(f"_upsample_nearest_exact{rank}d" for rank in (1, 2, 3)),
                *("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"),
                *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
            ),
            upsample_from_aten,
            ("self", "size", "scale_factor", "mode"),
            ("interpolate",),
            ("Upsample", "UpsamplingNearest2d", "UpsamplingBilinear2d"),
            upsampled_shape,
            keeps_rank=True,
        ),
    ),
)
