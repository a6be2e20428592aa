"""A CUDA stream of one session: where its inferences run, how they are timed, and what it has to give back."""

from __future__ import annotations

from collections.abc import Callable

from convbn.bench.runtimes.base import Prepared
from convbn.bench.runtimes.cuda_driver import CudaDriver, device_times
from convbn.bench.runtimes.nvml import L2, GpuMode

__all__ = ["GpuStream"]


class GpuStream:
    """A stream with the memory and graphs that were made for it.

    Args:
        l2: whether the L2 cache is flushed before each inference.

    Raises:
        RuntimeMissingError: there is no GPU.
    """

    def __init__(self, l2: L2) -> None:
        self.driver = CudaDriver()
        self.stream = self.driver.stream()
        self._l2 = l2
        self._releases: list[Callable[[], None]] = []

    def allocate(self, size: int) -> int:
        """Device memory that is freed when the stream is closed."""
        pointer = self.driver.allocate(size)
        self._releases.append(lambda: self.driver.free(pointer))
        return pointer

    def prepared(self, launch: Callable[[], None], mode: GpuMode) -> Prepared:
        """Inferences that are timed by events on this stream.

        Args:
            launch: puts one inference on the stream.
            mode: "graph" captures it once and replays it.

        Raises:
            SessionError: it cannot be captured.
        """
        # Lazy loading and the choice of kernels happen in the first runs, which a capture must not hold.
        for _ in range(2):
            launch()
        self.driver.synchronize(self.stream)
        if mode == "graph":
            launch, release = self.driver.capture(self.stream, launch)
            self._releases.append(release)
        flush = None
        if self._l2 == "flushed":
            flush, pointer = self.driver.flusher(self.stream)
            self._releases.append(lambda: self.driver.free(pointer))

        def call() -> None:
            launch()
            self.driver.synchronize(self.stream)

        times = device_times(self.driver, self.stream, launch, flush)
        return Prepared(call, times, self.driver.device(mode, self._l2))

    def close(self) -> None:
        """Give everything back, last things first; a second call does nothing."""
        releases, self._releases = self._releases, []
        for release in reversed(releases):
            release()
        if self.stream:
            self.driver.destroy_stream(self.stream)
            self.stream = 0
