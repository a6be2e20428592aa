"""Constants of an ONNX graph: initializers, and the short chains of nodes that exporters put behind them.

PyTorch's exporter writes many parameters as ``Expand(CastLike(Constant, x), shape)`` and the like. Such
a chain counts as a constant. Shapes are followed first, from shapes alone; numbers are computed when a
rule asks for them, and never for more than :data:`LARGEST` elements, so no file can make us compute much.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convbn.errors import BadInputError
from convbn.fuse.frontends.onnx.outside import Outside, dtype_of
from convbn.fuse.view.dataflow import Constant, Value

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

__all__ = ["CHAIN", "computed_constant", "stored_constant"]

Array = NDArray[Any]
Load = Callable[[], Array]

LARGEST = 1 << 26
"""Elements; a chain whose result would be larger is not treated as a constant."""

_ROUNDED_ALIKE = ("bfloat16", "float8_e4m3fn", "float8_e5m2")
"""Types beside NumPy's own; how a cast to those of four bits and less rounds is another matter in each runtime."""

_LONGEST_SHAPE = 64
"""A tensor that says a shape has few elements; one that has more is not looked into."""


def stored_constant(tensor: gs.Constant, outside: Outside | None = None) -> Constant:
    """The constant an initializer or a Constant node's attribute holds; its bytes may lie ``outside``."""
    from onnx_graphsurgeon.ir.tensor import SparseValues

    # graphsurgeon's own `values` would load the tensor for good, and knows no bfloat16.
    stored = tensor._values
    if isinstance(stored, np.ndarray):
        return Constant.of(stored)
    proto = stored.tensor
    if outside is not None and not isinstance(stored, SparseValues):
        return outside.constant(proto)

    def load() -> Array:
        import onnx

        if not isinstance(proto, onnx.SparseTensorProto) and proto.data_location == proto.EXTERNAL:
            cause = f"initializer '{tensor.name}' lies in another file"
            raise BadInputError(cause, hint="give the model's path, or load it with its external data")
        try:
            if isinstance(proto, onnx.SparseTensorProto):
                return np.asarray(stored.load())
            return np.asarray(onnx.numpy_helper.to_array(proto))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise BadInputError(f"initializer '{tensor.name}' cannot be read: {error}") from error

    dtype = None if isinstance(stored, SparseValues) else dtype_of(proto)
    return Constant(tuple(stored.shape), load, dtype=dtype)


def computed_constant(node: gs.Node, inputs: list[Value | None]) -> Constant | None:
    """The constant that ``node`` computes from constants; None if it computes none."""
    follow = CHAIN.get(node.op)
    return None if follow is None else follow(node, inputs)


def _constant(node: gs.Node, inputs: list[Value | None]) -> Constant | None:
    if "value" in node.attrs:
        return stored_constant(node.attrs["value"])
    for attribute, dtype in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if attribute in node.attrs:
            return Constant.of(np.asarray(node.attrs[attribute], dtype))
    return None


def _same(node: gs.Node, inputs: list[Value | None]) -> Constant | None:
    source = _source(inputs)
    return None if source is None else _arranged(source, source.shape, lambda values: values)


def _cast(node: gs.Node, inputs: list[Value | None]) -> Constant | None:
    target = node.attrs.get("to")
    return None if target is None else _as_dtype(_source(inputs), _numpy_dtype(target))


def _cast_like(node: gs.Node, inputs: list[Value | None]) -> Constant | None:
    # The second input gives its dtype alone; its numbers need not be known.
    return _as_dtype(_source(inputs), _numpy_dtype(node.inputs[1].dtype) if len(node.inputs) > 1 else None)


def _as_dtype(source: Constant | None, dtype: np.dtype[Any] | None) -> Constant | None:
    if source is None or dtype is None or not (dtype.kind in "biuf" or dtype.name in _ROUNDED_ALIKE):
        return None

    def load() -> Array:
        values = source.array()
        # Like the runtime: what does not fit becomes Inf, which the fold then refuses.
        with np.errstate(all="ignore"):
            return values.astype(dtype)

    return Constant(source.shape, load)


def _numpy_dtype(dtype: Any) -> np.dtype[Any] | None:
    """A NumPy dtype from what graphsurgeon holds: a NumPy type, an ONNX code or nothing."""
    import onnx

    if dtype is None or isinstance(dtype, str):
        return None
    if isinstance(dtype, int):
        if dtype == onnx.TensorProto.UNDEFINED or dtype == onnx.TensorProto.STRING:
            return None
        try:
            known: np.dtype[Any] = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(dtype))
            return known
        except KeyError:
            return None
    given: np.dtype[Any] = np.dtype(dtype)
    return given


def _transpose(node: gs.Node, inputs: list[Value | None]) -> Constant | None:
    source = _source(inputs)
    if source is None:
        return None
    rank = len(source.shape)
    order = [int(axis) for axis in node.attrs.get("perm", range(rank)[::-1])]
    if sorted(order) != list(range(rank)):
        return None
    shape = tuple(source.shape[axis] for axis in order)
    return _arranged(source, shape, lambda values: values.transpose(order))


def _reshape(node: gs.Node, inputs: list[Value | None]) -> Constant | None:
    source, target = _source(inputs), _numbers(node, inputs, "shape")
    if source is None or target is None:
        return None
    size = math.prod(source.shape)
    if not node.attrs.get("allowzero", 0):
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


def _squeeze(node: gs.Node, inputs: list[Value | None]) -> Constant | None:
    source, axes = _source(inputs), _numbers(node, inputs, "axes")
    if source is None:
        return None
    rank = len(source.shape)
    if axes is None:
        if len(inputs) > 1:
            return None
        axes = [axis for axis, n in enumerate(source.shape) if n == 1]
    axes = [axis % rank for axis in axes] if rank else []
    if any(source.shape[axis] != 1 for axis in axes):
        return None
    return _reshaped(source, tuple(n for axis, n in enumerate(source.shape) if axis not in axes))


def _unsqueeze(node: gs.Node, inputs: list[Value | None]) -> Constant | None:
    source, axes = _source(inputs), _numbers(node, inputs, "axes")
    if source is None or axes is None:
        return None
    rank = len(source.shape) + len(axes)
    places = sorted(axis % rank for axis in axes)
    if len(set(places)) != len(places):
        return None
    rest = iter(source.shape)
    return _reshaped(source, tuple(1 if axis in places else next(rest) for axis in range(rank)))


def _expand(node: gs.Node, inputs: list[Value | None]) -> Constant | None:
    source, target = _source(inputs), _numbers(node, inputs, "shape")
    if source is None or target is None:
        return None
    try:
        shape = np.broadcast_shapes(source.shape, tuple(target))
    except ValueError:
        return None
    if math.prod(shape) > LARGEST:
        return None
    return _arranged(source, shape, lambda values: np.broadcast_to(values, shape))


def _shape(node: gs.Node, inputs: list[Value | None]) -> Constant | None:
    source = _source(inputs)
    if source is None:
        return None
    start, end = int(node.attrs.get("start", 0)), node.attrs.get("end")
    return Constant.of(np.asarray(source.shape[start : None if end is None else int(end)], np.int64))


def _constant_of_shape(node: gs.Node, inputs: list[Value | None]) -> Constant | None:
    shape = _small(_source(inputs))
    if shape is None or min(shape, default=0) < 0 or math.prod(shape) > LARGEST:
        return None
    value = stored_constant(node.attrs["value"]).array() if "value" in node.attrs else np.zeros(1, np.float32)
    if value.size != 1:
        return None
    return Constant(tuple(shape), lambda: np.broadcast_to(value.reshape(()), tuple(shape)))


def _source(inputs: list[Value | None]) -> Constant | None:
    return inputs[0].constant if inputs and inputs[0] is not None else None


def _numbers(node: gs.Node, inputs: list[Value | None], attribute: str) -> list[int] | None:
    """The integers of a second input, or of the attribute that older opsets had in its place."""
    if attribute in node.attrs:
        return [int(n) for n in node.attrs[attribute]]
    if len(inputs) < 2 or inputs[1] is None:
        return None
    return _small(inputs[1].constant)


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
        return Constant(shape, lambda: arrange(source.array()))
    return Constant(
        shape,
        lambda: arrange(source.array()),
        exact=lambda: arrange(source.exact()),
        dtype=source.dtype,
        work=source.work,
    )


CHAIN: dict[str, Callable[[Any, list[Value | None]], Constant | None]] = {
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
