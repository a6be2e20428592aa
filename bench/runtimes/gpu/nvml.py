"""The state of a GPU, read through NVML before and after a timing. Nothing is ever changed.

NVML comes as the package ``nvidia-ml-py`` (imported as ``pynvml``). Without it, or where a device does not
answer a question, there is None instead of a number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from convbn.common.encoding import JsonReady

__all__ = ["L2", "GpuFacts", "GpuMode", "GpuReading", "read_gpu", "throttle_names", "throttled"]

GpuMode: TypeAlias = Literal["graph", "enqueue"]
L2: TypeAlias = Literal["warm", "flushed"]

#: Bits of NVML's clocks event reasons (nvml.h) that hold clocks down. Those of an idle GPU and of clocks that
#: a user set are no throttling.
_THROTTLING = {
    0x04: "software power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clock setting",
    0x200: "board limit",
    0x400: "reliability",
}


@dataclass(frozen=True)
class GpuReading(JsonReady):
    """What NVML said at one moment.

    Attributes:
        sm_clock_mhz: of the multiprocessors.
        memory_clock_mhz: of the memory.
        temperature_celsius: of the chip.
        power_watts: drawn.
        throttle_reasons: why the clocks are held down; empty if they are not, None if not known.
    """

    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_celsius: int | None = None
    power_watts: float | None = None
    throttle_reasons: tuple[str, ...] | None = None


@dataclass(frozen=True)
class GpuFacts(JsonReady):
    """How a GPU was driven, and its state before and after the timing.

    Attributes:
        device: its name.
        mode: "graph" for replays of a captured CUDA graph, "enqueue" for kernels launched one by one.
        l2: "warm", or "flushed" where the L2 cache was overwritten before each inference.
        before: its state; None where NVML does not answer.
        after: likewise.
        tf32: whether float32 products were rounded to TF32; None if that is not known.
    """

    device: str
    mode: GpuMode
    l2: L2
    before: GpuReading | None = None
    after: GpuReading | None = None
    tf32: bool | None = None


def read_gpu(bus_id: str) -> GpuReading | None:
    """The state of one GPU.

    Args:
        bus_id: its PCI bus id, as CUDA gives it: NVML counts devices in an order of its own, and does not
            know ``CUDA_VISIBLE_DEVICES``.

    Returns:
        The reading; None without NVML.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return _reading(pynvml, pynvml.nvmlDeviceGetHandleByPciBusId(bus_id.encode()))
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def throttled(facts: GpuFacts) -> tuple[str, ...]:
    """Reasons for which the clocks were held down before or after the timing; empty if they were not."""
    readings = [reading for reading in (facts.before, facts.after) if reading is not None]
    found = {reason for reading in readings for reason in reading.throttle_reasons or ()}
    return tuple(sorted(found))


def _reading(nvml: Any, handle: Any) -> GpuReading:
    def ask(question: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return question(handle, *arguments)
        except nvml.NVMLError:  # a device need not know the answer to every question
            return None

    milliwatts = ask(nvml.nvmlDeviceGetPowerUsage)
    reasons = ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons)
    return GpuReading(
        sm_clock_mhz=ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
        memory_clock_mhz=ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
        temperature_celsius=ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        power_watts=None if milliwatts is None else milliwatts / 1000,
        throttle_reasons=None if reasons is None else throttle_names(reasons),
    )


def throttle_names(mask: int) -> tuple[str, ...]:
    """What the bits of NVML's clocks event reasons say about throttling.

    Args:
        mask: as NVML gives it.
    """
    return tuple(name for bit, name in _THROTTLING.items() if mask & bit)
