"""Between tensors and NumPy arrays, without a rounding on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convbn.fuse.refusal import Reason, Refusal

if TYPE_CHECKING:
    import torch

__all__ = ["to_array", "to_tensor", "why_not_constant"]

_FLOATS = ("float16", "bfloat16", "float32", "float64")


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
    elif tensor.layout != torch.strided or str(tensor.dtype).removeprefix("torch.") not in _FLOATS:
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


def to_tensor(array: NDArray[Any], like: torch.Tensor) -> torch.Tensor:
    """A new tensor with the numbers of ``array``, on the device and in the memory format of ``like``."""
    import torch

    if array.dtype.name == "bfloat16":
        source = torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    else:
        source = torch.from_numpy(np.ascontiguousarray(array))
    plain = like.detach()
    if tuple(array.shape) == tuple(plain.shape):
        tensor = torch.empty_like(plain, dtype=source.dtype, memory_format=torch.preserve_format)
    else:
        tensor = torch.empty(array.shape, dtype=source.dtype, device=plain.device)
    return tensor.copy_(source)
