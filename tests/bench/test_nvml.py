from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from convbn.bench.runtimes.gpu.nvml import GpuFacts, GpuReading, read_gpu, throttle_names, throttled


def test_an_idle_gpu_and_clocks_set_by_a_user_are_no_throttling() -> None:
    assert throttle_names(0x1 | 0x2) == ()
    assert throttle_names(0x1 | 0x4 | 0x40) == ("software power cap", "hardware thermal slowdown")


def test_reasons_before_and_after_count_and_unknown_is_not_none() -> None:
    hot = GpuReading(throttle_reasons=("software thermal slowdown",))
    facts = GpuFacts("GPU", "graph", "warm", before=None, after=hot)
    assert throttled(facts) == ("software thermal slowdown",)
    assert throttled(GpuFacts("GPU", "graph", "warm", GpuReading(), None)) == ()
    assert facts.to_dict()["before"] is None
    assert facts.to_dict()["after"]["throttle_reasons"] == ["software thermal slowdown"]


def fake_nvml(**answers: Any) -> types.ModuleType:
    """NVML of a device that answers only what it is given; there is no GPU here to ask."""

    class NVMLError(Exception):
        pass

    def question(name: str) -> Any:
        def ask(*arguments: Any) -> Any:
            if name not in answers:
                raise NVMLError(name)
            return answers[name]

        return ask

    module = types.ModuleType("pynvml")
    names = ("PowerUsage", "CurrentClocksThrottleReasons", "ClockInfo", "Temperature", "HandleByPciBusId")
    for name in names:
        setattr(module, f"nvmlDeviceGet{name}", question(name))
    for name in ("nvmlInit", "nvmlShutdown"):
        setattr(module, name, question(name) if name in answers.get("broken", ()) else lambda: None)
    vars(module).update(NVMLError=NVMLError, NVML_CLOCK_SM=1, NVML_CLOCK_MEM=2, NVML_TEMPERATURE_GPU=0)
    return module


def test_watts_are_watts_and_what_a_device_does_not_know_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules, "pynvml", fake_nvml(HandleByPciBusId="h", PowerUsage=71_500, ClockInfo=1980)
    )
    assert read_gpu("0000:3b:00.0") == GpuReading(
        sm_clock_mhz=1980, memory_clock_mhz=1980, power_watts=71.5, throttle_reasons=None
    )


def test_no_library_no_driver_and_no_such_device_are_no_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(broken=("nvmlInit",)))
    assert read_gpu("0000:3b:00.0") is None
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    assert read_gpu("0000:3b:00.0") is None
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as if it were not installed
    assert read_gpu("0000:3b:00.0") is None
