"""Depth to space and back: r² channels become one channel of blocks of r by r, in one of two orders of channels.

Channel-major (``PixelShuffle``, ``CRD``) the r² channels of a block stand together, so scale and shift are
``s.repeat(r²)`` over the depth; block-major (``DCR``, ``SpaceToDepth``) they stand C apart, ``s.tile(r²)``. From the
depth to the blocks a map goes where those r² numbers agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.calls import Aten, AtenCall, Mapped, OnnxCall, Shape
from convbn.fuse.operators.operator import Operator
from convbn.fuse.operators.rule import Rearrangement, Rule, follow_backward, follow_forward, size_along
from convbn.fuse.view.dataflow import Value
from convbn.fuse.view.op import DATA, Labelled, Op

__all__ = ["OPERATOR", "DepthToSpace"]


@dataclass(frozen=True, slots=True)
class DepthToSpace(Labelled, Rearrangement):
    """Blocks of images, whose channels are the second axis, as channels, or channels as blocks.

    Attributes:
        label: the framework's own name.
        block: r, the side of a block.
        channel_major: whether the r² channels of a block stand together.
        to_space: whether the data holds the depth; else the output does.
    """

    block: int
    channel_major: bool
    to_space: bool

    def moved(
        self, source: Value, target: Value, affine: Affine, axis: int, *, back: bool
    ) -> tuple[Affine, int] | None:
        """The map on the depth for one on the blocks, or one on the blocks for r² that agree."""
        times = self.block**2
        if axis != 1 or size_along(source, 1) != affine.channels:
            return None
        if back is self.to_space:
            spread = np.repeat if self.channel_major else np.tile
            return Affine(spread(affine.scale, times), spread(affine.shift, times)), 1
        if affine.channels % times:
            return None
        shape = (-1, times) if self.channel_major else (times, -1)
        scale, shift = (vector.reshape(shape) for vector in (affine.scale, affine.shift))
        if self.channel_major:
            scale, shift = scale.T, shift.T
        agree = (scale == scale[:1]).all() and (shift == shift[:1]).all()
        return (Affine(scale[0].copy(), shift[0].copy()), 1) if agree else None


def from_onnx(call: OnnxCall) -> Op | None:
    """DepthToSpace in both modes, and SpaceToDepth."""
    block, mode = int(call.attributes.get("blocksize", 0)), call.attributes.get("mode", "DCR")
    data, to_space = call.input(DATA), call.operator == "DepthToSpace"
    if block < 1 or mode not in ("DCR", "CRD") or data is None or data.rank != 4:
        return None
    return DepthToSpace(call.operator, block, to_space and mode == "CRD", to_space)


def from_aten(call: AtenCall) -> Mapped | None:
    """``pixel_shuffle`` and ``pixel_unshuffle`` of a batch."""
    to_space = call.name == "pixel_shuffle"
    block = call.given.get("upscale_factor" if to_space else "downscale_factor")
    if type(block) is not int or block < 1 or call.rank() != 4:
        return None
    return call.unary(DepthToSpace(call.name, block, True, to_space))


def shuffled_shape(call: AtenCall) -> Shape | None:
    """Of a batch: the channels, and images r times as large, or small."""
    found, shape = from_aten(call), call.shape()
    if found is None or shape is None or not isinstance(found.op, DepthToSpace):
        return None
    r, (batch, channels, *image) = found.op.block, shape
    if found.op.to_space:
        return (batch, channels and channels // r**2, *(size and size * r for size in image))
    return (batch, channels and channels * r**2, *(size and size // r for size in image))


OPERATOR = Operator(
    DepthToSpace,
    Rule("depth-to-space", DepthToSpace, follow_backward, follow_forward, through=True),
    onnx=dict.fromkeys(("DepthToSpace", "SpaceToDepth"), from_onnx),
    aten=(
        Aten(
            ("pixel_shuffle",), from_aten, ("self", "upscale_factor"), shape=shuffled_shape, keeps_rank=True
        ),
        Aten(
            ("pixel_unshuffle",),
            from_aten,
            ("self", "downscale_factor"),
            shape=shuffled_shape,
            keeps_rank=True,
        ),
    ),
)
