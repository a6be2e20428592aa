"""The reference's own noise: what its outputs move by where its inputs move by one unit in the last place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from convbn.bench.equivalence.tolerance import Tolerance
from convbn.bench.models.arguments import alike
from convbn.bench.models.inputs import Array, Feeds, is_onnx
from convbn.common.dtypes import is_float

if TYPE_CHECKING:
    import onnx

    from convbn.bench.equivalence.reference_run import Model

__all__ = [
    "BLIND",
    "BLIND_CONVERTED",
    "BOUND_16_BIT",
    "NOISE_MULTIPLE",
    "by_channel",
    "moved_by_rounding",
    "multiple_of",
    "noise_by_channel",
    "weights_moved",
]

#: Bounds (√ε) from here on belong to 16-bit types.
BOUND_16_BIT = 0.03
#: An error of so many times the reference's own noise is let through: the noise is of one or two samples, and a fold
#: rounds in as many places as the reference does. In the 16-bit types one unit in the last place is coarse.
NOISE_MULTIPLE, NOISE_MULTIPLE_16_BIT = 16.0, 4.0
#: Values of a channel below which its noise may be small by chance.
_FEW = 64
#: Of another precision, whose every value is rounded and not the input alone.
NOISE_MULTIPLE_CONVERTED = 8.0
#: What a comparison that needs the noise may let through and still say something; of another precision as int8.
BLIND, BLIND_CONVERTED = 0.1, 0.25


def multiple_of(bound: float, tolerance: Tolerance | None) -> float:
    """How many times the noise an error may be."""
    if tolerance is not None:
        return NOISE_MULTIPLE_CONVERTED
    return NOISE_MULTIPLE_16_BIT if bound > BOUND_16_BIT else NOISE_MULTIPLE


def noise_by_channel(shifts: Sequence[Array], count: int) -> Array:
    """The noise of each channel; where it has few values, no less than that of half of them."""
    if not shifts:
        return np.zeros(count)
    noise: Array = np.max([by_channel(shift).max(axis=1, initial=0.0) for shift in shifts], axis=0)
    return np.maximum(noise, np.median(noise)) if shifts[0].size < _FEW * count else noise


def by_channel(array: Array) -> Array:
    """A row for each place of axis 1."""
    return np.moveaxis(array, 1, 0).reshape(array.shape[1], -1)


def moved_by_rounding(feeds: Feeds, unit: float | None = None) -> Feeds | None:
    """Every float moved up or down by about one unit in its last place; None where there is none.

    Args:
        feeds: arrays by name.
        unit: the unit, relative to the number; that of its own type without.
    """
    import ml_dtypes

    random = np.random.default_rng(0)
    moved: dict[str, Array] = {}
    floats = 0
    for name, array in feeds.items():
        moved[name] = array
        if array.dtype.kind == "c" or is_float(array.dtype):
            real = array.real.dtype if array.dtype.kind == "c" else array.dtype
            step = float(ml_dtypes.finfo(real).eps) if unit is None else unit
            signs = random.integers(0, 2, array.shape) * 2.0 - 1
            wide = array if array.dtype.kind == "c" else array.astype(np.float64)
            moved[name] = (wide * (1 + step * signs)).astype(array.dtype)
            floats += array.size
    return alike(feeds, moved) if floats else None


def weights_moved(model: Model, unit: float, seed: int) -> Model | None:
    """A copy of a model with every number of its weights moved up or down; None where there is no such copy.

    Args:
        model: ONNX or a module; what has fewer than two dimensions stays, since it may be a shape.
        unit: by how much, relative to the number.
        seed: of the signs.
    """
    random = np.random.default_rng(seed)

    def factors(shape: Sequence[int]) -> Array:
        factors: Array = 1 + unit * (random.integers(0, 2, tuple(shape)) * 2.0 - 1)
        return factors

    if is_onnx(model):
        return _graph_moved(model, factors)
    import torch

    if not isinstance(model, torch.nn.Module):
        return None
    from convbn.fuse.frontends.torch.modules.copies import duplicate

    moved = duplicate(model, share=False)
    with torch.no_grad():
        for parameter in moved.parameters():
            if parameter.is_floating_point() and parameter.ndim > 1:
                parameter.mul_(torch.from_numpy(factors(parameter.shape)).to(parameter.dtype))
    return moved


def _graph_moved(
    model: onnx.ModelProto | str | Path, factors: Callable[[Sequence[int]], Array]
) -> onnx.ModelProto:
    import onnx
    from onnx import numpy_helper

    if isinstance(model, str | Path):
        moved = onnx.load(str(model))
    else:
        moved = type(model)()
        moved.CopyFrom(model)
    constants = [
        entry.t
        for node in moved.graph.node
        if node.op_type == "Constant"
        for entry in node.attribute
        if entry.HasField("t")
    ]
    for tensor in (*moved.graph.initializer, *constants):
        if len(tensor.dims) > 1 and tensor.data_type == onnx.TensorProto.FLOAT:
            weight = numpy_helper.to_array(tensor)
            off = (weight * factors(weight.shape)).astype(weight.dtype)
            tensor.CopyFrom(numpy_helper.from_array(off, tensor.name))
    return moved
