"""Timing on a CUDA stream: events around each inference, CUDA graphs, and an L2 cache that is warm or flushed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from convbn.bench.runtimes.base import Device, Prepared
from convbn.bench.runtimes.gpu.nvml import L2, GpuMode
from convbn.export.engines.run.cuda import CudaDevice

__all__ = ["GpuStream", "gpu_facts"]


class GpuStream:
    """The stream of a device with the memory and graphs that were made for timing on it.

    Args:
        l2: whether the L2 cache is flushed before each inference.
        device: whose stream it is, and who closes it; without one a device is opened here, and closed here.

    Attributes:
        device: the GPU.
        stream: handle of its stream.

    Raises:
        NoGpuError: there is no GPU.
    """

    def __init__(self, l2: L2, device: CudaDevice | None = None) -> None:
        self.device = CudaDevice() if device is None else device
        self.stream = self.device.stream
        self._l2 = l2
        self._releases: list[Callable[[], None]] = [self.device.close] if device is None else []

    def prepared(self, launch: Callable[[], object], mode: GpuMode) -> Prepared:
        """Inferences that are timed by events on this stream.

        Args:
            launch: puts one inference on the stream.
            mode: "graph" captures it once and replays it.

        Raises:
            CaptureError: it cannot be captured.
        """
        device = self.device
        # Lazy loading and the choice of kernels happen in the first runs, which a capture must not hold.
        for _ in range(2):
            launch()
        device.synchronize()
        start = launch
        if mode == "graph":
            graph = device.capture(launch)
            self._releases.append(partial(device.drop, graph))
            start = partial(device.launch, graph)
        flush = self._flush() if self._l2 == "flushed" else None

        def call() -> None:
            start()
            device.synchronize()

        def times(n: int) -> list[float]:
            device.enter()
            pairs = [(device.event(), device.event()) for _ in range(n)]
            try:
                for before, after in pairs:
                    if flush is not None:
                        flush()
                    device.record(before)
                    start()
                    device.record(after)
                device.synchronize()
                return [device.seconds_between(before, after) for before, after in pairs]
            finally:
                for pair in pairs:
                    for event in pair:
                        device.drop_event(event)

        return Prepared(call, times, gpu_facts(device, mode, self._l2))

    def close(self) -> None:
        """Give everything back, last things first; a second call does nothing."""
        releases, self._releases = self._releases, []
        for release in reversed(releases):
            release()

    def _flush(self) -> Callable[[], None]:
        """What overwrites twice the L2 cache, in memory of its own."""
        device, size = self.device, 2 * max(self.device.l2_bytes, 1)
        address = device.allocate(size)
        self._releases.append(partial(device.free, address))
        return partial(device.clear, address, size)


def gpu_facts(device: CudaDevice, mode: GpuMode, l2: L2) -> Device:
    """The GPU, with how it is driven."""
    return Device(device.name, device.bus_id, mode, l2)
