"""What a user can ask of a build beyond model, shapes and precision."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields

from convbn.errors import UsageError

__all__ = ["HARDWARE_COMPATIBILITY", "EngineOptions", "parse_size"]

HARDWARE_COMPATIBILITY = ("ampere+", "same-compute-capability")
_CAPABILITY = re.compile(r"\d{1,2}\.\d", re.ASCII)
_SIZE = re.compile(r"(\d+)(KiB|MiB|GiB|K|M|G)?", re.ASCII | re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass(frozen=True)
class EngineOptions:
    """Options of a build. Left at their defaults, TensorRT decides.

    A backend that does not honour one that is given refuses it; which does is listed in docs/tensorrt.md.

    Attributes:
        workspace: the most scratch memory that a layer may use, bytes.
        optimization_level: 0 to 5, how long TensorRT searches for faster kernels.
        compute_capabilities: GPUs to build for, ``8.6``, or ``current`` for the one here.
        hardware_compatibility: ``ampere+`` or ``same-compute-capability``: the engine runs on more GPUs
            than the one it was built on, perhaps slower.
        version_compatible: later versions of TensorRT can load the engine.
        strip_weights: leave weights out that a refit can bring back.
        refit: weights can be exchanged later.
        timing_cache: a folder of timings that builds share, or ``auto`` for the user's own.
    """

    workspace: int | None = None
    optimization_level: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    hardware_compatibility: str | None = None
    version_compatible: bool = False
    strip_weights: bool = False
    refit: bool = False
    timing_cache: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.workspace is not None and self.workspace <= 0:
            raise UsageError(f"a workspace of {self.workspace} bytes is none", source="option workspace")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise UsageError(f"{self.optimization_level} is not 0 to 5", source="option optimization-level")
        level = self.hardware_compatibility
        if level is not None and level not in HARDWARE_COMPATIBILITY:
            hint = f"choose {' or '.join(HARDWARE_COMPATIBILITY)}"
            raise UsageError(f"there is no {level!r}", source="option hardware-compatibility", hint=hint)
        _check_capabilities(self.compute_capabilities)

    def given(self) -> tuple[str, ...]:
        """Names of the options that are not left to TensorRT."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) != f.default)

    def to_dict(self) -> dict[str, object]:
        """The given options as JSON values."""
        values = {name: getattr(self, name) for name in self.given()}
        return {
            name: list(value) if isinstance(value, tuple) else _plain(value) for name, value in values.items()
        }


def parse_size(text: str) -> int:
    """Parse a number of bytes.

    Args:
        text: a whole number, bytes, or with ``KiB``, ``MiB`` or ``GiB``; ``K``, ``M``, ``G`` mean the same.

    Raises:
        UsageError: it is nothing of the kind.
    """
    match = _SIZE.fullmatch(text)
    if not match:
        raise UsageError(f"{text!r} is not a size", hint="write it like 512MiB or 4GiB")
    return int(match[1]) * _UNITS[(match[2] or "")[:1].lower()]


def _check_capabilities(wanted: tuple[str, ...]) -> None:
    source = "option compute-capability"
    for name in wanted:
        if name != "current" and not _CAPABILITY.fullmatch(name):
            raise UsageError(
                f"{name!r} is no compute capability", source=source, hint="write it like 8.6, or current"
            )
    if len(set(wanted)) < len(wanted):
        raise UsageError("one is named twice", source=source)
    if "current" in wanted and len(wanted) > 1:
        raise UsageError("current stands alone", source=source)


def _plain(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value
