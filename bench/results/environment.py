"""What a measurement ran on. Nothing heavy is imported to find out."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from convbn.export.engines.backends.gpus import nvidia_smi

__all__ = ["describe_environment", "library_versions"]

_LIBRARIES = ("convbn", "numpy", "onnx", "nvidia-ml-py")
#: Variables that overrule what a library is told about float32.
_OVERRIDES = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")


def describe_environment() -> dict[str, Any]:
    """CPU, operating system, Python, libraries and GPUs.

    Returns:
        JSON-ready facts; what cannot be found out is None or empty. ``load_average`` is that of the
        last minute: well above 0 on an idle machine, something else was running.
    """
    return {
        "cpu": _cpu_model(),
        "cores": _cores(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "libraries": library_versions(),
        "gpus": _gpus(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def library_versions() -> dict[str, str]:
    """Versions of the libraries that measure and compare, as far as they are installed."""
    from convbn.bench.runtimes.registry import RUNTIMES, runtime_versions

    found = {}
    for name in dict.fromkeys((*_LIBRARIES, *(name for one in RUNTIMES.values() for name in one.packages))):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | runtime_versions() | {name: os.environ[name] for name in _OVERRIDES if name in os.environ}


def _cpu_model() -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "Model", "cpu model"}:
            return value.strip()
    return platform.machine() or None


def _cores() -> int | None:
    # The cores this process may use: a container often has fewer than the machine.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _gpus() -> list[dict[str, str]]:
    fields = ("name", "driver_version", "memory.total", "clocks.sm", "temperature.gpu", "mig.mode.current")
    return [dict(zip(fields, row, strict=True)) for row in nvidia_smi(*fields)]
