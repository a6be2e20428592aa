"""The CUDA driver: memory, streams, graphs and events of the first GPU, called by its C interface.

The driver library comes with every GPU that can be used, so an engine runs and is timed without a CUDA build of
PyTorch. NVIDIA's own bindings (cuda-bindings, cuda-core) would be a package more that must fit the driver's
version, for two dozen functions whose signatures have not changed since CUDA 11. Memory and streams lie in the
device's primary context, which TensorRT, onnxruntime and PyTorch use too.

Source: CUDA Driver API reference.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from convbn.errors import ConvBNError, NotSupportedError
from convbn.export.engines.errors import CaptureError, NoGpuError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CudaDevice", "CudaError", "require_gpu"]

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: the legacy default stream does not wait for it
_CAPTURE_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do is not looked at
_L2_CACHE_SIZE = 38  # CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE
_NAME_BYTES = 256


class CudaError(NotSupportedError):
    """A call of the driver failed; most often the GPU's memory is full."""


def require_gpu(*, source: object = None) -> None:
    """Ask the driver whether there is a GPU.

    Raises:
        NoGpuError: there is no driver, or no device.
    """
    _first_device(source)


def _first_device(source: object = None) -> tuple[ctypes.CDLL, ctypes.c_int]:
    hint = "an engine is loaded only where a GPU is"
    try:
        cuda = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise NoGpuError("there is no NVIDIA driver here", source=source, hint=hint) from error
    device = ctypes.c_int()
    status = cuda.cuInit(ctypes.c_uint(0)) or cuda.cuDeviceGet(ctypes.byref(device), 0)
    if status:
        raise NoGpuError(f"there is no usable GPU: {_text(cuda, status)}", source=source, hint=hint)
    return cuda, device


class CudaDevice:
    """The first visible GPU, with one stream of its own.

    The current context belongs to the thread, and other libraries change it: what allocates, waits or captures
    makes this device's current, and :meth:`enter` does so before copies and launches.

    Raises:
        NoGpuError: there is no driver, or no device.
    """

    def __init__(self) -> None:
        self._cuda, self._device = _first_device()
        context, stream = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._context = context
        self.enter()
        self._call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING))
        self._stream = stream

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        return self._stream.value or 0

    @property
    def name(self) -> str:
        """What the GPU is called."""
        return self._described("cuDeviceGetName")

    @property
    def bus_id(self) -> str:
        """Its place on the PCI bus, ``0000:3b:00.0``."""
        return self._described("cuDeviceGetPCIBusId")

    @property
    def l2_bytes(self) -> int:
        """Size of its L2 cache."""
        size = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(size), _L2_CACHE_SIZE, self._device)
        return size.value

    def free_memory(self) -> int:
        """Bytes of device memory that nobody holds."""
        self.enter()
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def enter(self) -> None:
        """Make the device's context the current one of this thread."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        """Device memory of at least one byte; its address."""
        self.enter()
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return address.value

    def free(self, address: int) -> None:
        """Give memory back."""
        self.enter()
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, address: int, array: np.ndarray[Any, Any]) -> None:
        """Copy a contiguous array to the device. It must live until :meth:`synchronize`."""
        pointer, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), pointer, size, self._stream)

    def download(self, array: np.ndarray[Any, Any], address: int) -> None:
        """Copy from the device into a contiguous array, complete after :meth:`synchronize`."""
        pointer, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
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

    def clear(self, address: int, size: int) -> None:
        """Put zeros into memory, in the stream's order."""
        self._call(
            "cuMemsetD8Async",
            ctypes.c_uint64(address),
            ctypes.c_ubyte(0),
            ctypes.c_size_t(size),
            self._stream,
        )

    def synchronize(self) -> None:
        """Wait for the stream."""
        self.enter()
        self._call("cuStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], object]) -> int:
        """Record what `work` puts on the stream as a graph; nothing of it is executed.

        Returns:
            A handle for :meth:`launch` and :meth:`drop`.

        Raises:
            CaptureError: something in it cannot be captured, or `work` says that it failed.
        """
        self.enter()
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        failure: ConvBNError | None = None
        self._call("cuStreamBeginCapture_v2", self._stream, ctypes.c_int(_CAPTURE_THREAD_LOCAL))
        try:
            work()
        except ConvBNError as error:
            failure = error
        finally:
            # A stream that is left capturing would refuse everything that comes after.
            status = self._cuda.cuStreamEndCapture(self._stream, ctypes.byref(graph))
        try:
            if failure is None:
                self._check("cuStreamEndCapture", status)
                self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_uint64(0))
        except CudaError as error:
            failure = error
        finally:
            if graph:
                self._call("cuGraphDestroy", graph)
        if failure is not None:
            cause = f"the engine's work fits no CUDA graph: {failure.cause}"
            hint = "run it without one: cuda_graph=False, or @enqueue in a benchmark"
            raise CaptureError(cause, hint=hint) from failure
        return executable.value or 0

    def launch(self, graph: int) -> None:
        """Put a captured graph on the stream."""
        self._call("cuGraphLaunch", ctypes.c_void_p(graph), self._stream)

    def drop(self, graph: int) -> None:
        """Give a captured graph back."""
        self.enter()
        self._call("cuGraphExecDestroy", ctypes.c_void_p(graph))

    def event(self) -> int:
        """A new event, which takes times."""
        handle = ctypes.c_void_p()
        self._call("cuEventCreate", ctypes.byref(handle), ctypes.c_uint(0))
        return handle.value or 0

    def record(self, event: int) -> None:
        """Put an event on the stream."""
        self._call("cuEventRecord", ctypes.c_void_p(event), self._stream)

    def seconds_between(self, start: int, end: int) -> float:
        """Time between two events that have passed, by the device's clock."""
        milliseconds = ctypes.c_float()
        pair = ctypes.c_void_p(start), ctypes.c_void_p(end)
        self._call("cuEventElapsedTime", ctypes.byref(milliseconds), *pair)
        return milliseconds.value / 1000

    def drop_event(self, event: int) -> None:
        """Give an event back."""
        self._call("cuEventDestroy_v2", ctypes.c_void_p(event))

    def close(self) -> None:
        """Give the stream and the hold on the context back; a second call does nothing."""
        if self._stream:
            self.enter()
            self._call("cuStreamDestroy_v2", self._stream)
            self._call("cuDevicePrimaryCtxRelease_v2", self._device)
            self._stream = ctypes.c_void_p()

    def _described(self, question: str) -> str:
        text = ctypes.create_string_buffer(_NAME_BYTES)
        self._call(question, text, _NAME_BYTES, self._device)
        return text.value.decode(errors="replace")

    def _call(self, name: str, *arguments: Any) -> None:
        self._check(name, getattr(self._cuda, name)(*arguments))

    def _check(self, name: str, status: int) -> None:
        if status:
            raise CudaError(f"the CUDA driver says: {_text(self._cuda, status)} ({name}, error {status})")


def _text(cuda: ctypes.CDLL, status: int) -> str:
    text = ctypes.c_char_p()
    cuda.cuGetErrorString(ctypes.c_int(status), ctypes.byref(text))
    return text.value.decode(errors="replace") if text.value else "unknown error"
