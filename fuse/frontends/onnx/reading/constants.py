"""Constants of an ONNX graph: initializers, and the short chains of nodes that exporters put behind them.

PyTorch's exporter writes many parameters as ``Expand(CastLike(Constant, x), shape)`` and the like. Such
a chain counts as a constant. Shapes are followed first, from shapes alone; numbers are computed when a
rule asks for them, and never for more than :data:`LARGEST` elements, so no file can make us compute much.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convbn.errors import BadInputError
from convbn.fuse.frontends.onnx.model.tensors import dtype_of
from convbn.fuse.operators.calls import OnnxCall
from convbn.fuse.view.dataflow import Constant

__all__ = ["CHAIN"]

Array = NDArray[Any]
Load = Callable[[], Array]

LARGEST = 1 << 26
"""Elements; a chain whose result would be larger is not treated as a constant."""

_ROUNDED_ALIKE = ("bfloat16", "float8_e4m3fn", "float8_e5m2")
"""Types beside NumPy's own; how a cast to those of four bits and less rounds is another matter in each runtime."""

_LONGEST_SHAPE = 64
"""A tensor that says a shape has few elements; one that has more is not looked into."""


def _constant(call: OnnxCall) -> Constant | None:
    tensor = call.attributes.get("value")
    if isinstance(tensor, Constant):
        return tensor
    for attribute, dtype in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if attribute in call.attributes:
            return Constant.of(np.asarray(call.attributes[attribute], dtype))
    return None


def _same(call: OnnxCall) -> Constant | None:
    source = _source(call)
    return None if source is None else _arranged(source, source.shape, lambda values: values)


def _cast(call: OnnxCall) -> Constant | None:
    target = call.attributes.get("to")
    return None if target is None else _as_dtype(_source(call), _numpy_dtype(target))


def _cast_like(call: OnnxCall) -> Constant | None:
    # The second input gives its dtype alone; its numbers need not be known.
    like = call.input(1)
    return _as_dtype(_source(call), None if like is None else like.dtype)


def _as_dtype(source: Constant | None, dtype: np.dtype[Any] | None) -> Constant | None:
    if source is None or dtype is None or not (dtype.kind in "biuf" or dtype.name in _ROUNDED_ALIKE):
        return None

    def load() -> Array:
        values = source.array()
        # Like the runtime: what does not fit becomes Inf, which the fold then refuses.
        with np.errstate(all="ignore"):
            return values.astype(dtype)

    return Constant(source.shape, load, dtype=dtype, sources=[source])


def _numpy_dtype(element: Any) -> np.dtype[Any] | None:
    try:
        return dtype_of(element)
    except BadInputError:
        return None


def _transpose(call: OnnxCall) -> Constant | None:
    source = _source(call)
    if source is None:
        return None
    rank = len(source.shape)
    order = [int(axis) for axis in call.attributes.get("perm", range(rank)[::-1])]
    if sorted(order) != list(range(rank)):
        return None
    shape = tuple(source.shape[axis] for axis in order)
    return _arranged(source, shape, lambda values: values.transpose(order))


def _reshape(call: OnnxCall) -> Constant | None:
    source, target = _source(call), _numbers(call, "shape")
    if source is None or target is None:
        return None
    size = math.prod(source.shape)
    if not call.attributes.get("allowzero", 0):
        if any(n == 0 and axis >= len(source.shape) for axis, n in enumerate(target)):
            return None
        target = [source.shape[axis] if n == 0 else n for axis, n in enumerate(target)]
    if target.count(-1) == 1:
        known = math.prod(n for n in target if n != -1)
        target = [size // known if n == -1 else n for n in target] if known else target
    return (
        _reshaped(source, tuple(target))
        if math.prod(target) == size and min(target, default=0) >= 0
        else None
    )


def _squeeze(call: OnnxCall) -> Constant | None:
    source, axes = _source(call), _numbers(call, "axes")
    if source is None:
        return None
    rank = len(source.shape)
    if axes is None:
        if len(call.inputs) > 1:
            return None
        axes = [axis for axis, n in enumerate(source.shape) if n == 1]
    axes = [axis % rank for axis in axes] if rank else []
    if any(source.shape[axis] != 1 for axis in axes):
        return None
    return _reshaped(source, tuple(n for axis, n in enumerate(source.shape) if axis not in axes))


def _unsqueeze(call: OnnxCall) -> Constant | None:
    source, axes = _source(call), _numbers(call, "axes")
    if source is None or axes is None:
        return None
    rank = len(source.shape) + len(axes)
    places = sorted(axis % rank for axis in axes)
    if len(set(places)) != len(places):
        return None
    rest = iter(source.shape)
    return _reshaped(source, tuple(1 if axis in places else next(rest) for axis in range(rank)))


def _expand(call: OnnxCall) -> Constant | None:
    source, target = _source(call), _numbers(call, "shape")
    if source is None or target is None:
        return None
    try:
        shape = np.broadcast_shapes(source.shape, tuple(target))
    except ValueError:
        return None
    if math.prod(shape) > LARGEST:
        return None
    return _arranged(source, shape, lambda values: np.broadcast_to(values, shape))


def _shape(call: OnnxCall) -> Constant | None:
    source = _source(call)
    if source is None:
        return None
    start, end = int(call.attributes.get("start", 0)), call.attributes.get("end")
    return Constant.of(np.asarray(source.shape[start : None if end is None else int(end)], np.int64))


def _constant_of_shape(call: OnnxCall) -> Constant | None:
    shape = _small(_source(call))
    if shape is None or min(shape, default=0) < 0 or math.prod(shape) > LARGEST:
        return None
    tensor = call.attributes.get("value")
    value = tensor.array() if isinstance(tensor, Constant) else np.zeros(1, np.float32)
    if value.size != 1:
        return None
    return Constant(tuple(shape), lambda: np.broadcast_to(value.reshape(()), tuple(shape)))


def _source(call: OnnxCall) -> Constant | None:
    data = call.input(0)
    return None if data is None else data.constant


def _numbers(call: OnnxCall, attribute: str) -> list[int] | None:
    """The integers of a second input, or of the attribute that older opsets had in its place."""
    if attribute in call.attributes:
        return [int(n) for n in call.attributes[attribute]]
    value = call.input(1)
    return None if value is None else _small(value.constant)


def _small(constant: Constant | None) -> list[int] | None:
    if constant is None or math.prod(constant.shape) > _LONGEST_SHAPE:
        return None
    numbers = constant.array().reshape(-1)
    return [int(n) for n in numbers] if numbers.dtype.kind in "iu" else None


def _reshaped(source: Constant, shape: tuple[int, ...]) -> Constant:
    return _arranged(source, shape, lambda values: values.reshape(shape))


def _arranged(source: Constant, shape: tuple[int, ...], arrange: Callable[[Array], Array]) -> Constant:
    """The same numbers in another order or number, in float64 where the source knows them so."""
    if not source.folded:
        return Constant(shape, lambda: arrange(source.array()), sources=[source])
    return Constant(
        shape,
        lambda: arrange(source.array()),
        exact=lambda: arrange(source.exact()),
        dtype=source.dtype,
        work=source.work,
        sources=[source],
    )


CHAIN: dict[str, Callable[[OnnxCall], Constant | None]] = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Identity": _same,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Expand": _expand,
    "Reshape": _reshape,
    "Shape": _shape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""Operators through which a constant stays one."""
