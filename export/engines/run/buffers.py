"""Device memory of a runner for one set of shapes."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from convbn.errors import NotSupportedError
from convbn.export.engines.run.cuda import Device

__all__ = ["Buffers", "host_type", "is_cuda_tensor", "type_name"]

_TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "BF16": "bfloat16",
    "FP8": "float8_e4m3fn",
}


def host_type(name: str) -> np.dtype[Any]:
    """NumPy's type for one of TensorRT's.

    Raises:
        NotSupportedError: NumPy has none, not even with ml_dtypes.
    """
    if name not in _TYPES:
        raise NotSupportedError(f"tensors of type {name} cannot be passed in or out")
    if name in ("BF16", "FP8"):
        import ml_dtypes  # comes with onnx

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _TYPES[name]))
        return found
    return np.dtype(_TYPES[name])


def is_cuda_tensor(value: object) -> bool:
    """Whether it is a tensor of PyTorch's on a GPU; PyTorch is not imported for that."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor) and value.is_cuda


def type_name(value: Any) -> str:
    """``float32`` of an array and of a tensor alike."""
    return str(value.dtype).removeprefix("torch.")


class Buffers:
    """Inputs and outputs on the device.

    Args:
        device: the GPU.
        shapes: of the inputs.
        outputs: shapes of the outputs.
        types: of both.

    Attributes:
        addresses: by name.
    """

    def __init__(
        self,
        device: Device,
        shapes: Mapping[str, tuple[int, ...]],
        outputs: Mapping[str, tuple[int, ...]],
        types: Mapping[str, np.dtype[Any]],
    ) -> None:
        self.shapes, self._outputs, self._types = dict(shapes), dict(outputs), types
        self._device = device
        self.addresses: dict[str, int] = {}
        for name, shape in {**shapes, **outputs}.items():
            self.addresses[name] = device.allocate(math.prod(shape) * types[name].itemsize)

    def fill(self, values: Mapping[str, Any]) -> None:
        """Copy the inputs to the device."""
        kept = []
        for name, value in values.items():
            if is_cuda_tensor(value):
                tensor = value.contiguous()
                sys.modules["torch"].cuda.current_stream(value.device).synchronize()
                size = tensor.numel() * tensor.element_size()
                self._device.copy(self.addresses[name], tensor.data_ptr(), size)
                kept.append(tensor)
            else:
                array = np.ascontiguousarray(value)
                self._device.upload(self.addresses[name], array)
                kept.append(array)
        self._device.synchronize()  # what was copied from may go now
        kept.clear()

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The outputs, on the host."""
        found = {name: np.empty(shape, self._types[name]) for name, shape in self._outputs.items()}
        for name, array in found.items():
            self._device.download(array, self.addresses[name])
        self._device.synchronize()
        return found

    def tensors(self, device: object) -> dict[str, Any]:
        """The outputs, as tensors of PyTorch's on a device of PyTorch's."""
        torch = sys.modules["torch"]
        found = {}
        for name, shape in self._outputs.items():
            tensor = torch.empty(shape, dtype=getattr(torch, self._types[name].name), device=device)
            self._device.copy(tensor.data_ptr(), self.addresses[name], tensor.numel() * tensor.element_size())
            found[name] = tensor
        self._device.synchronize()
        return found

    def free(self) -> None:
        """Give the memory back."""
        for address in self.addresses.values():
            self._device.free(address)
        self.addresses = {}
