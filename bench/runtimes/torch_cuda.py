"""PyTorch on a CUDA GPU: streams, events, captured graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from convbn.bench.runtimes.base import Device, Prepared
from convbn.bench.runtimes.gpu.nvml import L2, GpuMode

if TYPE_CHECKING:
    import torch

__all__ = ["on_cuda"]

_RUNS_BEFORE_CAPTURE = 3


def on_cuda(launch: Callable[[], object], *, graph: bool, l2: L2, tf32: bool) -> Prepared:
    """Inferences on a stream of their own, timed by its events.

    Args:
        launch: one inference in PyTorch, on the current stream.
        graph: capture it once and replay it.
        l2: whether the L2 cache is flushed before each inference.
        tf32: whether float32 products are rounded to TF32, as the caller has set it.

    Returns:
        What is timed; any error of PyTorch passes through.
    """
    import torch

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch annotates it only in part
    stream.wait_stream(torch.cuda.current_stream())
    if graph:
        launch = _captured(launch, stream)
    flush = _flusher() if l2 == "flushed" else None

    def call() -> None:
        with torch.cuda.stream(stream):
            launch()
        stream.synchronize()

    def times(n: int) -> list[float]:
        event: Callable[..., Any] = torch.cuda.Event
        events = [[event(enable_timing=True) for _ in range(2)] for _ in range(n)]
        with torch.cuda.stream(stream):
            for start, end in events:
                if flush is not None:
                    flush()
                start.record(stream)
                launch()
                end.record(stream)
        stream.synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in events]

    call()
    device = _device("graph" if graph else "enqueue", l2)
    return Prepared(call, times, device and replace(device, tf32=tf32))


def _captured(launch: Callable[[], object], stream: torch.cuda.Stream) -> Callable[[], None]:
    """What replays an inference that was captured on a stream, after runs that let cuDNN choose kernels.

    A replay reads and writes the memory that the captured inference did, so what it returns holds on to
    ``launch``, which has the inputs, and to the outputs.
    """
    import torch

    with torch.cuda.stream(stream):
        for _ in range(_RUNS_BEFORE_CAPTURE):
            launch()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        outputs = launch()
    held = (launch, outputs)

    def replayed(_held: object = held) -> None:
        graph.replay()

    return replayed


def _flusher() -> Callable[[], None]:
    import torch

    size = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    scratch = torch.empty(2 * max(int(size), 1), dtype=torch.uint8, device="cuda")

    def flush() -> None:
        scratch.zero_()

    return flush


def _device(mode: GpuMode, l2: L2) -> Device:
    from convbn.bench.runtimes.gpu.stream import gpu_facts
    from convbn.export.engines.run.cuda import CudaDevice

    gpu = CudaDevice()
    facts = gpu_facts(gpu, mode, l2)
    gpu.close()
    return facts
