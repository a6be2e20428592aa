"""Between tensors and NumPy arrays, without a rounding on the way."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant

if TYPE_CHECKING:
    import torch

__all__ = ["as_tensor", "number", "to_array", "to_tensor", "why_not_constant"]


@cache
def _floats() -> frozenset[Any]:
    import torch

    return frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))


def why_not_constant(name: str, tensor: object) -> Refusal | None:
    """Why the numbers of a parameter cannot be read and written like those of a plain dense tensor."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        return Refusal(Reason.WEIGHT_NOT_CONSTANT, f"'{name}' is no tensor")
    kind = type(tensor)
    if kind not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        what = f"a {kind.__name__}, not a plain tensor"
    elif tensor.is_meta:
        what = "on the meta device and holds no numbers"
    elif tensor.layout != torch.strided or tensor.dtype not in _floats():
        what = f"stored as {tensor.dtype} ({tensor.layout}), not as a dense float"
    elif any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
        what = "an expanded tensor, whose elements share their memory"
    else:
        return None
    return Refusal(Reason.WEIGHT_NOT_CONSTANT, f"'{name}' is {what}")


def to_array(tensor: torch.Tensor) -> NDArray[Any]:
    """The numbers of a tensor, in its own dtype; memory is shared where the tensor lies on the CPU."""
    import torch

    plain = tensor.detach().cpu()
    if plain.dtype != torch.bfloat16:
        array: NDArray[Any] = plain.numpy()
        return array
    import ml_dtypes

    bits: NDArray[Any] = plain.view(torch.int16).numpy()
    return bits.view(ml_dtypes.bfloat16)


def as_tensor(array: NDArray[Any]) -> torch.Tensor:
    """The numbers of an array as a tensor in the same memory, if they are not strewn about."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))


def to_tensor(array: NDArray[Any], like: torch.Tensor) -> torch.Tensor:
    """A new tensor with the numbers of ``array``, on the device and in the memory format of ``like``."""
    import torch

    source = as_tensor(array)
    plain = like.detach()
    if tuple(array.shape) == tuple(plain.shape):
        tensor = torch.empty_like(plain, dtype=source.dtype, memory_format=torch.preserve_format)
    else:
        tensor = torch.empty(array.shape, dtype=source.dtype, device=plain.device)
    return tensor.copy_(source)


def number(value: float, like: object) -> Constant:
    """A number in the code as a constant of the dtype of what it meets; PyTorch computes with it unrounded."""
    import ml_dtypes

    name = str(getattr(like, "dtype", "float64")).removeprefix("torch.")
    dtype = np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
    return Constant(
        (),
        lambda: np.asarray(value, dtype),
        exact=lambda: np.asarray(value, np.float64),
        dtype=dtype,
    )
