"""The outputs of a PyTorch model as arrays: tensors in any nest, in fields of objects, sparse and nested ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from convbn.bench.models.arguments import array_of
from convbn.bench.models.inputs import Array
from convbn.fuse.frontends.torch.modules.results import fields_of

if TYPE_CHECKING:
    import torch

__all__ = ["in_the_kind_of", "named_outputs"]


def in_the_kind_of(a: Array, b: Array) -> Array:
    """An output beside another model's: complex numbers where ONNX has them as two reals along a last axis."""
    if a.dtype.kind != "c" or b.dtype.kind != "f" or b.shape != (*a.shape, 2):
        return b
    joined: Array = (b[..., 0] + 1j * b[..., 1]).astype(np.complex64 if b.itemsize <= 4 else np.complex128)
    return joined


def named_outputs(result: Any) -> Iterator[tuple[str, Array]]:
    """Everything in a result that is a tensor or a number, under the way to it: ``output[0].boxes``.

    Args:
        result: of a module's forward. Objects that PyTorch knows no nest of are taken apart into their fields.
    """
    yield from _named(result, "output", ())


def _named(value: Any, name: str, around: tuple[int, ...]) -> Iterator[tuple[str, Array]]:
    import torch
    from torch.utils import _pytree as pytree

    for keys, leaf in pytree.tree_flatten_with_path(value)[0]:
        here = f"{name}{pytree.keystr(keys)}"
        if isinstance(leaf, torch.Tensor):
            yield from _tensors(leaf, here)
        elif leaf is not None and id(leaf) not in around:
            fields = fields_of(leaf)
            if fields is None:
                yield here, np.asarray(leaf)
            else:
                for key, item in fields.items():
                    yield from _named(item, f"{here}.{key}", (*around, id(leaf)))


def _tensors(tensor: torch.Tensor, name: str) -> Iterator[tuple[str, Array]]:
    import torch

    if tensor.is_nested:
        for index, part in enumerate(tensor.unbind()):
            yield f"{name}[{index}]", array_of(part)
    elif tensor.is_quantized:
        yield name, array_of(tensor.dequantize())
    else:
        yield name, array_of(tensor if tensor.layout is torch.strided else tensor.to_dense())
