"""Memory, streams and graphs of the CUDA driver, called by its C interface.

The driver library is there wherever a GPU is usable, so no Python package is needed. Memory and streams lie in
the device's primary context, which TensorRT and PyTorch use too.

Source: CUDA Driver API reference, modules Memory Management, Stream Management and Graph Management.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from convbn.export.engines.errors import CaptureError, NoGpuError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CudaError", "Device", "require_gpu"]

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_CAPTURE_THREAD_LOCAL = 1
_NON_BLOCKING = 1


class CudaError(RuntimeError):
    """A call of the driver failed: not what a user did, unless the memory is full."""


def require_gpu(*, source: object = None) -> None:
    """Ask the driver whether there is a GPU.

    Raises:
        NoGpuError: there is no driver, or no device.
    """
    hint = "an engine is loaded only where a GPU is"
    try:
        cuda = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise NoGpuError("there is no NVIDIA driver here", source=source, hint=hint) from error
    status = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(ctypes.c_int()), 0)
    if status:
        raise NoGpuError(f"there is no usable GPU: {_text(cuda, status)}", source=source, hint=hint)


class Device:
    """The first visible GPU, with one stream of its own.

    Raises:
        NoGpuError: there is no driver, or no device.
    """

    def __init__(self) -> None:
        require_gpu()
        self._cuda = ctypes.CDLL(_LIBRARY)
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._context, self._device = context, device
        self._enter()
        self._call("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
        self._stream = stream

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        return self._stream.value or 0

    def allocate(self, size: int) -> int:
        """Device memory of at least one byte; its address."""
        self._enter()
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return address.value

    def free(self, address: int) -> None:
        """Give memory back."""
        self._enter()
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, address: int, array: np.ndarray[Any, Any]) -> None:
        """Copy a contiguous array to the device. It must live until :meth:`synchronize`."""
        pointer = ctypes.c_void_p(array.ctypes.data)
        size = ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), pointer, size, self._stream)

    def download(self, array: np.ndarray[Any, Any], address: int) -> None:
        """Copy from the device into a contiguous array, complete after :meth:`synchronize`."""
        pointer = ctypes.c_void_p(array.ctypes.data)
        size = ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyDtoHAsync_v2", pointer, ctypes.c_uint64(address), size, self._stream)

    def copy(self, to: int, address: int, size: int) -> None:
        """Copy within the device."""
        self._call(
            "cuMemcpyDtoDAsync_v2",
            ctypes.c_uint64(to),
            ctypes.c_uint64(address),
            ctypes.c_size_t(size),
            self._stream,
        )

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._enter()
        self._call("cuStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], bool]) -> int:
        """Record what `work` puts on the stream as a graph; nothing of it is executed.

        Args:
            work: false if it failed.

        Returns:
            A handle for :meth:`launch` and :meth:`drop`.

        Raises:
            CaptureError: something in it cannot be captured.
        """
        self._enter()
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", self._stream, _CAPTURE_THREAD_LOCAL)
        hint = "run it with cuda_graph=False"
        try:
            done = work()
        finally:
            status = self._cuda.cuStreamEndCapture(self._stream, ctypes.byref(graph))
        try:
            if not done or status:
                why = _text(self._cuda, status) if status else "TensorRT could not put its work on the stream"
                raise CaptureError(f"the engine's work fits no CUDA graph: {why}", hint=hint)
            try:
                self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_uint64(0))
            except CudaError as error:
                raise CaptureError(f"the engine's work fits no CUDA graph: {error}", hint=hint) from error
        finally:
            if graph:
                self._call("cuGraphDestroy", graph)
        return executable.value or 0

    def launch(self, graph: int) -> None:
        """Put a captured graph on the stream."""
        self._enter()
        self._call("cuGraphLaunch", ctypes.c_void_p(graph), self._stream)

    def drop(self, graph: int) -> None:
        """Give a captured graph back."""
        self._enter()
        self._call("cuGraphExecDestroy", ctypes.c_void_p(graph))

    def close(self) -> None:
        """Give the stream back."""
        self._enter()
        self._call("cuStreamDestroy_v2", self._stream)
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _enter(self) -> None:
        # The current context belongs to the thread, and other libraries change it.
        self._call("cuCtxSetCurrent", self._context)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._cuda, name)(*arguments)
        if status:
            raise CudaError(f"{name}: {_text(self._cuda, status)}")


def _text(cuda: ctypes.CDLL, status: int) -> str:
    text = ctypes.c_char_p()
    cuda.cuGetErrorString(status, ctypes.byref(text))
    return text.value.decode() if text.value else f"error {status}"
