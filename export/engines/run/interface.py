"""The inputs and outputs of an engine, and what may be passed in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from convbn.errors import UsageError
from convbn.export.engines.build.builder import TensorInfo
from convbn.export.engines.run.buffers import host_type, is_cuda_tensor, type_name
from convbn.export.engines.run.load import LoadedEngine

__all__ = ["checked_input", "dims_text", "engine_tensors"]


def engine_tensors(loaded: LoadedEngine) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """Inputs and outputs of an engine."""
    engine = loaded.engine
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    infos = {
        name: TensorInfo(name, engine.get_tensor_dtype(name).name, tuple(engine.get_tensor_shape(name)))
        for name in names
    }
    inputs = [name for name in names if engine.get_tensor_mode(name) == loaded.trt.TensorIOMode.INPUT]
    return (
        tuple(infos[name] for name in inputs),
        tuple(info for name, info in infos.items() if name not in inputs),
    )


def checked_input(info: TensorInfo, inputs: Mapping[str, Any], path: str) -> Any:
    """The value that is given for an input.

    Raises:
        UsageError: there is none, or it is of another kind, type or device than the engine takes.
    """
    if info.name not in inputs:
        raise UsageError(f"input {info.name!r} is missing", source=path)
    value = inputs[info.name]
    wanted = host_type(info.dtype).name
    if not isinstance(value, np.ndarray) and not is_cuda_tensor(value):
        cause = f"input {info.name!r} is a {type(value).__name__}, not a NumPy array or a CUDA tensor"
        raise UsageError(cause, source=path)
    if is_cuda_tensor(value) and value.device.index not in (0, None):
        cause = f"input {info.name!r} lies on {value.device}, the engine on the first GPU"
        raise UsageError(cause, source=path, hint="choose the GPU with CUDA_VISIBLE_DEVICES")
    if type_name(value) != wanted:
        raise UsageError(f"input {info.name!r} is {type_name(value)}, the engine takes {wanted}", source=path)
    return value


def dims_text(shape: Any) -> str:
    """``1x3x224x224``."""
    return "x".join(map(str, tuple(shape))) or "scalar"
