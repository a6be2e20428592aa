"""Operators that move or combine numbers, by their ATen names, in the view's vocabulary.

One reader serves exported graphs and traced ones. It answers None wherever the formula in
:mod:`convbn.fuse.view.ops` does not hold for the call at hand, or cannot be shown to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from convbn.fuse.frontends.torch.calls.call import Call, Mapped
from convbn.fuse.view.ops import (
    Activation,
    Arithmetic,
    Concat,
    Elementwise,
    Mean,
    Op,
    Pad,
    Passage,
    Pool,
    Reshape,
    Slice,
    Split,
    Transpose,
    Window,
)

__all__ = ["READERS", "window"]


def window(strides: Any, padding: Any, dilations: Any, kernel: Sequence[int | None]) -> Window | None:
    """Where a kernel is laid; None where that is not the same before and behind the data, or not known."""
    spatial = len(kernel)
    stride, dilation = _per_axis(strides, spatial), _per_axis(dilations, spatial)
    if stride is None or dilation is None or any(size is None for size in kernel):
        return None
    if padding == "valid":
        padding = 0
    if padding == "same":
        overhang = [step * ((size or 1) - 1) for step, size in zip(dilation, kernel, strict=True)]
        if any(total % 2 for total in overhang):
            return None
        padding = [total // 2 for total in overhang]
    begin = _per_axis(padding, spatial)
    return None if begin is None else Window(stride, dilation, begin, begin)


def _per_axis(given: Any, spatial: int) -> tuple[int, ...] | None:
    """One number an axis, where one may stand for all."""
    numbers = tuple(given) if isinstance(given, list | tuple) else (given,)
    if len(numbers) == 1:
        numbers *= spatial
    return numbers if len(numbers) == spatial and all(type(n) is int for n in numbers) else None


def _unary(op: Op, call: Call, name: str = "self") -> Mapped | None:
    data = call.tensor(name)
    return None if data is None else Mapped(op, (data,), (name,))


def _axis(call: Call, argument: str, rank: int | None, default: int | None = None) -> int | None:
    axis = call.given.get(argument, default)
    if type(axis) is not int:
        return None
    return axis if axis >= 0 else None if rank is None else axis + rank


def _elementwise(operation: Arithmetic, swapped: bool = False) -> Callable[[Call], Mapped | None]:
    def read(call: Call) -> Mapped | None:
        given = call.given
        if given.get("alpha", 1) != 1 or given.get("rounding_mode") is not None:
            return None
        names = ("other", "self") if swapped else ("self", "other")
        slots = tuple(given.get(name) for name in names)
        tensors = [slot for slot in slots if isinstance(slot, type(call.node))]
        numbers = [slot for slot in slots if type(slot) in (int, float)]
        if not tensors or len(tensors) + len(numbers) != 2:
            return None
        return Mapped(Elementwise(operation), slots, names)

    return read


def _activation(label: str) -> Callable[[Call], Mapped | None]:
    return lambda call: _unary(Activation(label), call)


def _prelu(call: Call) -> Mapped | None:
    names = ("self", "weight")
    return Mapped(Activation("PReLU"), (call.tensor(), call.tensor("weight")), names)


def _passage(label: str) -> Callable[[Call], Mapped | None]:
    return lambda call: _unary(Passage(label), call, "input" if "input" in call.given else "self")


def _pad(call: Call, mode: str = "constant") -> Mapped | None:
    rank, pads = call.rank(), call.given.get("pad", call.given.get("padding"))
    if rank is None or not isinstance(pads, list | tuple) or not all(type(size) is int for size in pads):
        return None
    constant = call.given.get("mode", mode) == "constant"
    if constant and call.given.get("value") not in (None, 0):
        return None
    # From the last axis on, two numbers each.
    around = [(rank - 1 - i // 2, pads[i : i + 2]) for i in range(0, len(pads), 2)]
    axes = tuple(sorted(axis for axis, ends in around if any(ends)))
    return _unary(Pad("Pad", axes, zeros=constant and max(pads, default=0) > 0), call)


def _border(call: Call) -> Mapped | None:
    """Reflected or repeated borders."""
    return _pad(call, "reflect or replicate")


def _reshape(label: str) -> Callable[[Call], Mapped | None]:
    return lambda call: _unary(Reshape(label), call)


def _average_pool(spatial: int) -> Callable[[Call], Mapped | None]:
    def read(call: Call) -> Mapped | None:
        given = call.given
        kernel = _per_axis(given.get("kernel_size"), spatial)
        strides = given.get("stride") or kernel
        laid = None if kernel is None else window(strides, given.get("padding", 0), 1, kernel)
        if kernel is None or laid is None or given.get("divisor_override") is not None:
            return None
        if call.rank() not in (None, spatial + 2):
            return None
        # With ceil_mode a last window may hang over the edge, and what it counts is a matter of its own.
        ceil = bool(given.get("ceil_mode", False))
        counted = bool(given.get("count_include_pad", True)) and (ceil or laid.padded)
        plain = not ceil and (counted or not laid.padded)
        op = Pool("AvgPool", True, counted, kernel if plain else None, laid if plain else None)
        return _unary(op, call)

    return read


def _whole_pool(spatial: int, *, average: bool) -> Callable[[Call], Mapped | None]:
    """Maxima over windows, and averages over windows that lie inside the data."""

    def read(call: Call) -> Mapped | None:
        if call.rank() not in (None, spatial + 2):
            return None
        return _unary(Pool("AdaptiveAvgPool" if average else "MaxPool", average), call)

    return read


def _mean(call: Call) -> Mapped | None:
    rank = call.rank()
    if not rank or call.given.get("dtype") is not None:
        return None
    axes = call.given.get("dim")
    axes = range(rank) if axes is None or axes == [] else axes if isinstance(axes, list | tuple) else [axes]
    if not all(type(axis) is int for axis in axes):
        return None
    keep = bool(call.given.get("keepdim", False))
    return _unary(Mean(tuple(sorted(axis % rank for axis in axes)), rank, keep), call)


def _maximum(call: Call) -> Mapped | None:
    """The maximum over all of the spatial axes."""
    rank, axes = call.rank(), call.given.get("dim")
    if not rank or not isinstance(axes, list | tuple) or not call.given.get("keepdim", False):
        return None
    spatial = bool(axes) and all(type(axis) is int and axis % rank > 1 for axis in axes)
    return _unary(Pool("Max", average=False), call) if spatial else None


def _concat(call: Call) -> Mapped | None:
    tensors = call.given.get("tensors")
    if not isinstance(tensors, list | tuple) or not all(isinstance(t, type(call.node)) for t in tensors):
        return None
    ranks = {None if (shape := call.shape(tensor)) is None else len(shape) for tensor in tensors}
    # Of another rank is only the empty tensor, which older code starts a list with.
    axis = _axis(call, "dim", next(iter(ranks)), 0) if len(ranks) == 1 else None
    return None if axis is None else Mapped(Concat(axis), tuple(tensors))


def _split(call: Call) -> Mapped | None:
    axis = _axis(call, "dim", call.rank(), 0)
    return None if axis is None else _unary(Split(axis), call)


def _slice(call: Call) -> Mapped | None:
    """Along one axis of known size, in steps of 1."""
    data, given = call.tensor(), call.given
    shape = None if data is None else call.shape(data)
    axis = _axis(call, "dim", call.rank(), 0)
    size = None if shape is None or axis is None else shape[axis]
    # What cannot be told from a batch or a side of an image is that it is no channel axis.
    if axis is None or size is None or given.get("step", 1) != 1:
        return None
    start, stop, length = given.get("start"), given.get("end"), given.get("length")
    if not all(bound is None or type(bound) is int for bound in (start, stop, length)):
        return None
    if start is not None and length is not None:
        start = start + size if start < 0 else start
        stop = start + length
    return _unary(Slice(axis, *slice(start, stop).indices(size)[:2]), call)


def _permute(call: Call) -> Mapped | None:
    rank, order = call.rank(), call.given.get("dims")
    if not isinstance(order, list | tuple) or not all(type(axis) is int for axis in order):
        return None
    found = tuple(axis % len(order) for axis in order)
    fits = sorted(found) == list(range(len(order))) and rank in (None, len(order))
    return _unary(Transpose(found), call) if fits else None


def _transpose(call: Call) -> Mapped | None:
    rank = call.rank()
    kind = "axis" if "axis0" in call.given else "dim"  # swapaxes calls them so
    first, second = _axis(call, f"{kind}0", rank, 0), _axis(call, f"{kind}1", rank, 1)
    if rank is None or first is None or second is None or max(first, second) >= rank:
        return None
    order = list(range(rank))
    order[first], order[second] = second, first
    return _unary(Transpose(tuple(order)), call)


READERS: dict[str, Callable[[Call], Mapped | None]] = {
    "add": _elementwise(Arithmetic.ADD),
    "sub": _elementwise(Arithmetic.SUBTRACT),
    "rsub": _elementwise(Arithmetic.SUBTRACT, swapped=True),
    "mul": _elementwise(Arithmetic.MULTIPLY),
    "div": _elementwise(Arithmetic.DIVIDE),
    "relu": _activation("ReLU"),
    "leaky_relu": _activation("LeakyReLU"),
    "prelu": _prelu,
    "_prelu_kernel": _prelu,
    "cat": _concat,
    "concat": _concat,
    "concatenate": _concat,
    "mean": _mean,
    "amax": _maximum,
    "split": _split,
    "split_with_sizes": _split,
    "chunk": _split,
    "slice": _slice,
    "narrow": _slice,
    "permute": _permute,
    "transpose": _transpose,
    "swapaxes": _transpose,
    "t": _transpose,
    "clone": _passage("Clone"),
    "contiguous": _passage("Contiguous"),
    "pad": _pad,
    "constant_pad_nd": _pad,
    **{
        name: _reshape("Reshape")
        for name in ("view", "reshape", "_unsafe_view", "_reshape_alias", "view_as", "reshape_as")
    },
    **{name: _reshape(name.capitalize()) for name in ("flatten", "unflatten", "squeeze", "unsqueeze")},
    **{
        name: _passage("Resize")
        for name in (
            *(f"upsample_nearest{rank}d" for rank in (1, 2, 3)),
            *(f"_upsample_nearest_exact{rank}d" for rank in (1, 2, 3)),
            *("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"),
            *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
        )
    },
    **{f"{kind}_pad{rank}d": _border for kind in ("reflection", "replication") for rank in (1, 2, 3)},
    **{f"avg_pool{rank}d": _average_pool(rank) for rank in (1, 2, 3)},
    **{f"max_pool{rank}d": _whole_pool(rank, average=False) for rank in (1, 2, 3)},
    **{f"max_pool{rank}d_with_indices": _whole_pool(rank, average=False) for rank in (2, 3)},
    **{f"adaptive_max_pool{rank}d": _whole_pool(rank, average=False) for rank in (1, 2, 3)},
    **{f"adaptive_avg_pool{rank}d": _whole_pool(rank, average=True) for rank in (1, 2, 3)},
    **{f"_adaptive_avg_pool{rank}d": _whole_pool(rank, average=True) for rank in (2, 3)},
}
"""By the operator's name, without the underscore of its in-place form."""
