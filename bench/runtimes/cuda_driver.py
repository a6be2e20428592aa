"""The CUDA driver, as far as timing needs it: streams, events, graphs, memory.

``libcuda`` comes with the GPU's driver, so events and graphs are there for TensorRT and onnxruntime without a
CUDA build of PyTorch. Everything runs in the device's primary context, which the libraries share.
Source: CUDA Driver API reference.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from convbn.bench.models.errors import RuntimeMissingError, SessionError
from convbn.bench.runtimes.base import Device
from convbn.bench.runtimes.nvml import L2, GpuMode

__all__ = ["CudaDriver", "device_times"]

_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
_L2_CACHE_SIZE = 38  # CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: the legacy default stream does not wait for it
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED: libraries may allocate on other streams meanwhile
_NAME_BYTES = 256


class CudaDriver:
    """The first device that this process sees.

    Raises:
        RuntimeMissingError: there is no driver or no GPU.
    """

    def __init__(self) -> None:
        self._library = _library()
        device = ctypes.c_int()
        for name, arguments in (("cuInit", (ctypes.c_uint(0),)), ("cuDeviceGet", (ctypes.byref(device), 0))):
            if getattr(self._library, name)(*arguments):
                raise RuntimeMissingError(
                    "the CUDA driver sees no GPU", hint="nvidia-smi must list one on this machine"
                )
        self._device = device
        context = ctypes.c_void_p()
        self._do("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._do("cuCtxSetCurrent", context)

    def device(self, mode: GpuMode, l2: L2) -> Device:
        """The device, with how it is driven."""
        name, bus = (ctypes.create_string_buffer(_NAME_BYTES) for _ in range(2))
        self._do("cuDeviceGetName", name, _NAME_BYTES, self._device)
        self._do("cuDeviceGetPCIBusId", bus, _NAME_BYTES, self._device)
        return Device(name.value.decode(errors="replace"), bus.value.decode(), mode, l2)

    def free_memory(self) -> int:
        """Bytes of device memory that nobody holds."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._do("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def stream(self) -> int:
        """A new stream."""
        handle = ctypes.c_void_p()
        self._do("cuStreamCreate", ctypes.byref(handle), ctypes.c_uint(_NON_BLOCKING))
        return handle.value or 0

    def synchronize(self, stream: int) -> None:
        """Wait until a stream has done everything."""
        self._do("cuStreamSynchronize", ctypes.c_void_p(stream))

    def destroy_stream(self, stream: int) -> None:
        """Give a stream back."""
        self._do("cuStreamDestroy_v2", ctypes.c_void_p(stream))

    def allocate(self, size: int) -> int:
        """Device memory of at least one byte."""
        pointer = ctypes.c_uint64()
        self._do("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return pointer.value

    def free(self, pointer: int) -> None:
        """Give device memory back."""
        self._do("cuMemFree_v2", ctypes.c_uint64(pointer))

    def to_device(self, pointer: int, host: int, size: int) -> None:
        """Copy from the host."""
        self._do("cuMemcpyHtoD_v2", ctypes.c_uint64(pointer), ctypes.c_void_p(host), ctypes.c_size_t(size))

    def to_host(self, host: int, pointer: int, size: int) -> None:
        """Copy to the host."""
        self._do("cuMemcpyDtoH_v2", ctypes.c_void_p(host), ctypes.c_uint64(pointer), ctypes.c_size_t(size))

    def flusher(self, stream: int) -> tuple[Callable[[], None], int]:
        """What overwrites twice the L2 cache on a stream, and the memory it needs, to be freed."""
        size = ctypes.c_int()
        self._do("cuDeviceGetAttribute", ctypes.byref(size), _L2_CACHE_SIZE, self._device)
        count = 2 * max(size.value, 1)
        pointer = self.allocate(count)

        def flush() -> None:
            self._do(
                "cuMemsetD8Async",
                ctypes.c_uint64(pointer),
                ctypes.c_ubyte(0),
                ctypes.c_size_t(count),
                ctypes.c_void_p(stream),
            )

        return flush, pointer

    def capture(self, stream: int, work: Callable[[], None]) -> tuple[Callable[[], None], Callable[[], None]]:
        """Record what ``work`` puts on a stream as a graph.

        Returns:
            What replays the graph on the stream, and what gives it back.

        Raises:
            SessionError: the work cannot be captured.
        """
        graph, runnable = ctypes.c_void_p(), ctypes.c_void_p()
        self._do("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), ctypes.c_int(_RELAXED))
        try:
            work()
        finally:
            # A stream that is left capturing would refuse everything that comes after.
            status = self._library.cuStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(graph))
        self._check("cuStreamEndCapture", status)
        self._do("cuGraphInstantiateWithFlags", ctypes.byref(runnable), graph, ctypes.c_uint64(0))

        def replay() -> None:
            self._do("cuGraphLaunch", runnable, ctypes.c_void_p(stream))

        def release() -> None:
            self._do("cuGraphExecDestroy", runnable)
            self._do("cuGraphDestroy", graph)

        return replay, release

    def event(self) -> ctypes.c_void_p:
        """A new event."""
        handle = ctypes.c_void_p()
        self._do("cuEventCreate", ctypes.byref(handle), ctypes.c_uint(0))
        return handle

    def record(self, event: ctypes.c_void_p, stream: int) -> None:
        """Put an event on a stream."""
        self._do("cuEventRecord", event, ctypes.c_void_p(stream))

    def elapsed_seconds(self, start: ctypes.c_void_p, end: ctypes.c_void_p) -> float:
        """Time between two events that have passed."""
        milliseconds = ctypes.c_float()
        self._do("cuEventElapsedTime", ctypes.byref(milliseconds), start, end)
        return milliseconds.value / 1000

    def destroy_event(self, event: ctypes.c_void_p) -> None:
        """Give an event back."""
        self._do("cuEventDestroy_v2", event)

    def _do(self, name: str, *arguments: Any) -> None:
        self._check(name, getattr(self._library, name)(*arguments))

    def _check(self, name: str, status: int) -> None:
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(ctypes.c_int(status), ctypes.byref(text))
            cause = (text.value or b"unknown error").decode(errors="replace")
            raise SessionError(f"the CUDA driver says: {cause} ({name}, error {status})")


def device_times(
    driver: CudaDriver, stream: int, launch: Callable[[], None], flush: Callable[[], None] | None
) -> Callable[[int], list[float]]:
    """A clock for inferences on a stream: one pair of events around each, flushes outside of the pairs.

    Args:
        driver: the device.
        stream: what ``launch`` puts its work on.
        launch: starts one inference.
        flush: overwrites the L2 cache on the stream; None leaves it warm.

    Returns:
        A function of n that runs n inferences and gives the seconds of each by the device's clock.
    """

    def times(n: int) -> list[float]:
        pairs = [(driver.event(), driver.event()) for _ in range(n)]
        try:
            for start, end in pairs:
                if flush is not None:
                    flush()
                driver.record(start, stream)
                launch()
                driver.record(end, stream)
            driver.synchronize(stream)
            return [driver.elapsed_seconds(start, end) for start, end in pairs]
        finally:
            _destroy(driver, pairs)

    return times


def _destroy(driver: CudaDriver, pairs: Sequence[tuple[ctypes.c_void_p, ctypes.c_void_p]]) -> None:
    for start, end in pairs:
        driver.destroy_event(start)
        driver.destroy_event(end)


def _library() -> Any:
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise RuntimeMissingError(
        "there is no NVIDIA driver (libcuda) here", hint="use a machine with an NVIDIA GPU"
    )
