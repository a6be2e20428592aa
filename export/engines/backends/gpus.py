"""Which GPUs this machine has, asked without loading CUDA."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass

__all__ = ["Gpu", "list_gpus", "nvidia_smi"]

_SECONDS = 20.0


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver describes it.

    Attributes:
        name: of the product.
        compute_capability: major and minor, (8, 9) for 8.9.
        driver: version of the driver, if known.
    """

    name: str
    compute_capability: tuple[int, int]
    driver: str | None = None

    @property
    def capability(self) -> str:
        """``8.9``."""
        return ".".join(map(str, self.compute_capability))

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability})"

    def to_dict(self) -> dict[str, str | None]:
        """JSON-ready."""
        return {"name": self.name, "compute_capability": self.capability, "driver": self.driver}


def list_gpus() -> list[Gpu]:
    """The GPUs that a program started now could use, first the default one.

    ``nvidia-smi`` is asked; without it, torch, but only where it is imported already.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return []
    program = shutil.which("nvidia-smi")
    gpus = _from_nvidia_smi() if program else _from_torch()
    # A list of plain numbers selects; names of devices and MIG slices are left to the driver.
    wanted = [entry.strip() for entry in (visible or "").split(",")]
    if program and all(entry.isdecimal() for entry in wanted):
        gpus = [gpus[int(entry)] for entry in wanted if int(entry) < len(gpus)]
    return gpus


def nvidia_smi(*fields: str) -> list[tuple[str, ...]]:
    """What the driver says of each GPU.

    Args:
        fields: as ``nvidia-smi --help-query-gpu`` lists them.

    Returns:
        Their values, a row a GPU; nothing without a driver, or where it hangs.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = (tuple(cell.strip() for cell in line.split(",")) for line in answer.stdout.splitlines())
    return [row for row in rows if len(row) == len(fields)]


def _from_nvidia_smi() -> list[Gpu]:
    gpus = []
    for name, capability, driver in nvidia_smi("name", "compute_cap", "driver_version"):
        major, dot, minor = capability.partition(".")
        if dot and major.isdecimal() and minor.isdecimal():
            gpus.append(Gpu(name, (int(major), int(minor)), driver))
    return gpus


def _from_torch() -> list[Gpu]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    numbers = range(torch.cuda.device_count())
    return [Gpu(torch.cuda.get_device_name(i), tuple(torch.cuda.get_device_capability(i))) for i in numbers]
