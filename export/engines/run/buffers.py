"""What goes into an engine and comes out of it: checked, and held in device memory for one set of shapes."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from convbn.common.dtypes import dtype_name
from convbn.errors import UsageError
from convbn.export.dtypes import host_type
from convbn.export.engines.build.builder import TensorInfo
from convbn.export.engines.run.cuda import CudaDevice

__all__ = ["Buffers", "checked_input", "is_cuda_tensor"]


def is_cuda_tensor(value: object) -> bool:
    """Whether it is a tensor of PyTorch's on a GPU; PyTorch is not imported for that."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor) and value.is_cuda


def checked_input(info: TensorInfo, inputs: Mapping[str, Any], path: str) -> Any:
    """The value that is given for an input.

    Raises:
        UsageError: there is none, or it is of another kind, type or device than the engine takes.
    """
    if info.name not in inputs:
        raise UsageError(f"input {info.name!r} is missing", source=path)
    value = inputs[info.name]
    if not isinstance(value, np.ndarray) and not is_cuda_tensor(value):
        cause = f"input {info.name!r} is a {type(value).__name__}, not a NumPy array or a CUDA tensor"
        raise UsageError(cause, source=path)
    if is_cuda_tensor(value) and value.device.index not in (0, None):
        cause = f"input {info.name!r} lies on {value.device}, the engine on the first GPU"
        raise UsageError(cause, source=path, hint="choose the GPU with CUDA_VISIBLE_DEVICES")
    given, wanted = dtype_name(value), host_type(info.dtype).name
    if given != wanted:
        raise UsageError(f"input {info.name!r} is {given}, the engine takes {wanted}", source=path)
    return value


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
        device: CudaDevice,
        shapes: Mapping[str, tuple[int, ...]],
        outputs: Mapping[str, tuple[int, ...]],
        types: Mapping[str, np.dtype[Any]],
    ) -> None:
        self.shapes, self._outputs, self._types = dict(shapes), dict(outputs), types
        self._device = device
        self.addresses: dict[str, int] = {}
        try:
            for name, shape in {**shapes, **outputs}.items():
                self.addresses[name] = device.allocate(math.prod(shape) * types[name].itemsize)
        except BaseException:
            self.free()
            raise

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
