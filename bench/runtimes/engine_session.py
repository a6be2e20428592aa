"""TensorRT and TensorRT-RTX engines: a file is loaded and run, never built here.

The level after ``@`` says how an inference is started: ``graph`` replays a CUDA graph that was captured once,
``enqueue`` launches every kernel from the host. None is ``graph``.
"""

from __future__ import annotations

import importlib
from types import TracebackType
from typing import Any, Self

import numpy as np

from convbn.bench.models.errors import ModelFormMissingError, RuntimeMissingError, SessionError
from convbn.bench.models.inputs import Array, Feeds
from convbn.bench.runtimes.base import Prepared, SessionOptions, Side
from convbn.bench.runtimes.gpu_stream import GpuStream
from convbn.bench.runtimes.nvml import GpuMode
from convbn.common.dtypes import dtype_of
from convbn.errors import ConvBNError

__all__ = ["load_library", "open_session"]

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_HINTS = {
    "tensorrt": "on a machine with an NVIDIA GPU: pip install tensorrt",
    "tensorrt-rtx": "on a machine with an NVIDIA GPU: pip install 'convbn[rtx]'",
}
#: TensorRT's element types by the name of the numpy type.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


def load_library(device: str, variant: str) -> None:
    """Import a TensorRT and find a GPU.

    Raises:
        RuntimeMissingError: one of them is missing.
    """
    from convbn.bench.runtimes.cuda_driver import CudaDriver

    _tensorrt(variant)
    CudaDriver()


def open_session(
    side: Side, options: SessionOptions, device: str, variant: str, level: str | None
) -> EngineSession:
    """Load the engine of a side.

    Args:
        side: the model; the file that ``engines`` holds for the runtime is used.
        options: how to run it.
        device: always ``cuda``.
        variant: ``tensorrt`` or ``tensorrt-rtx``.
        level: ``graph`` or ``enqueue``; None is ``graph``.

    Returns:
        The session.

    Raises:
        ModelFormMissingError: the side has no engine for this runtime.
        RuntimeMissingError: the runtime or a GPU is missing.
        SessionError: the runtime refuses the engine.
        ConvBNError: the engine could not be built.
    """
    path = side.engines.get(variant)
    if path is None:
        raise ModelFormMissingError(
            f"{variant} needs an engine built for it",
            source=side.name,
            hint=f"convbn export MODEL -o model.engine --backend {variant}",
        )
    if isinstance(path, ConvBNError):
        raise path
    trt = _tensorrt(variant)
    gpu = GpuStream(options.l2)
    try:
        data = path.read_bytes()
        engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(data)
    except OSError as error:
        gpu.close()
        raise SessionError(error.strerror or "cannot be read", source=path) from error
    context = None if engine is None else _context(trt, engine)
    if context is None:
        gpu.close()
        raise SessionError(
            f"{variant} {trt.__version__} refuses the engine",
            source=path,
            hint="an engine runs with the version and on the kind of GPU it was built for: build it again here",
        )
    return EngineSession(trt, engine, context, side.name, gpu, "enqueue" if level == "enqueue" else "graph")


def _context(trt: Any, engine: Any) -> Any:
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return engine.create_execution_context()
    # TensorRT-RTX would compile kernels for the shapes it meets in the background, and get faster meanwhile.
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    return engine.create_execution_context(config)


def _tensorrt(variant: str) -> Any:
    try:
        return importlib.import_module(_MODULES[variant])
    except (ImportError, OSError, RuntimeError) as error:  # what is installed may not find its libraries
        cause = " ".join(str(error).split())[:200]
        raise RuntimeMissingError(f"{variant} cannot be used ({cause})", hint=_HINTS[variant]) from error


class EngineSession:
    """An engine with its inputs and outputs in device memory of its own."""

    def __init__(self, trt: Any, engine: Any, context: Any, name: str, gpu: GpuStream, mode: GpuMode) -> None:
        self._trt = trt
        self._engine = engine
        self._context = context
        self._name = name
        self._gpu = gpu
        self._mode = mode
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        taken = {key: engine.get_tensor_mode(key) == trt.TensorIOMode.INPUT for key in names}
        self._inputs = [key for key in names if taken[key]]
        self._outputs: dict[str, tuple[int, Array]] = {}
        self.output_names = tuple(key for key in names if not taken[key])
        # Convolutions may round their inputs to TF32: a 10-bit mantissa, as float16 has.
        self.compute_dtype: str | None = "float16"

    def run(self, feeds: Feeds) -> list[Array]:
        """One inference (see :class:`convbn.bench.runtimes.base.Session`)."""
        self._place(feeds)
        self._enqueue()
        driver = self._gpu.driver
        driver.synchronize(self._gpu.stream)
        for pointer, array in self._outputs.values():
            driver.to_host(array.ctypes.data, pointer, array.nbytes)
        return [self._outputs[key][1] for key in self.output_names]

    def prepare(self, feeds: Feeds) -> Prepared:
        """Put the inputs into device memory."""
        self._place(feeds)
        return self._gpu.prepared(self._enqueue, self._mode)

    def close(self) -> None:
        """Free the engine and its memory."""
        self._context = self._engine = None
        self._gpu.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._gpu.stream):
            raise SessionError("the engine cannot run on these inputs", source=self._name)

    def _place(self, feeds: Feeds) -> None:
        missing = [key for key in self._inputs if key not in feeds]
        if missing:
            raise SessionError(
                f"the engine has an input {missing[0]!r} and none was given", source=self._name
            )
        for key in self._inputs:
            array = np.ascontiguousarray(feeds[key], dtype=self._dtype(key))
            if not self._context.set_input_shape(key, tuple(array.shape)):
                raise SessionError(
                    f"the engine does not take shape {list(array.shape)} for input {key!r}", source=self._name
                )
            pointer = self._gpu.allocate(array.nbytes)
            self._gpu.driver.to_device(pointer, array.ctypes.data, array.nbytes)
            self._context.set_tensor_address(key, pointer)
        for key in self.output_names:
            array = np.empty(tuple(self._context.get_tensor_shape(key)), self._dtype(key))
            pointer = self._gpu.allocate(array.nbytes)
            self._context.set_tensor_address(key, pointer)
            self._outputs[key] = (pointer, array)

    def _dtype(self, key: str) -> np.dtype[Any]:
        if self._engine.get_tensor_location(key) != self._trt.TensorLocation.DEVICE:
            raise SessionError(
                f"tensor {key!r} holds a shape, which is not supported here", source=self._name
            )
        kind = self._engine.get_tensor_dtype(key).name
        if kind not in _DTYPES:
            raise SessionError(
                f"tensor {key!r} has element type {kind}, which has no numpy type", source=self._name
            )
        return dtype_of(_DTYPES[kind])
