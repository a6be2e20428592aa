"""Runtimes by name. A new one is one file that defines a :class:`Runtime`, and one row here.

Levels may follow a name after ``@``, joined by ``+``: ``onnxruntime-cpu@off``, ``torch-cuda@tf32+channels_last``.
"""

from __future__ import annotations

import sys
from typing import Literal

from convbn.bench.runtimes import engines, onnxruntime_session, openvino_session, torch_session
from convbn.bench.runtimes.base import Form, Levels, Runtime, Session, SessionOptions, Variant
from convbn.common.text import did_you_mean
from convbn.errors import UsageError

__all__ = [
    "RUNTIMES",
    "check_runtime",
    "device_of",
    "form_of",
    "load_library",
    "open_session",
    "register",
    "runtime_names",
    "runtime_note",
    "runtime_versions",
    "self_fused_name",
]

#: Every runtime by its name, in the order in which reports and the documentation list them.
RUNTIMES: dict[str, Runtime] = {}


def register(*runtimes: Runtime) -> None:
    """Add runtimes to the table.

    Raises:
        UsageError: there is one of that name already.
    """
    for runtime in runtimes:
        if runtime.name in RUNTIMES:
            raise UsageError(f"there is a runtime {runtime.name!r} already")
        RUNTIMES[runtime.name] = runtime


register(*torch_session.RUNTIMES)
register(*onnxruntime_session.RUNTIMES)
register(*openvino_session.RUNTIMES)
register(*engines.RUNTIMES)


def runtime_names() -> tuple[str, ...]:
    """The names without levels, as ``--runtime`` takes them."""
    return tuple(RUNTIMES)


def check_runtime(name: str) -> None:
    """Say now, without importing anything heavy, whether a name can be opened at all.

    Args:
        name: a runtime, with or without levels.

    Raises:
        UsageError: there is no such runtime, or it has no such level.
    """
    _split(name)


def runtime_note(name: str) -> str | None:
    """What a reader should expect of a runtime, in one sentence; None if there is nothing to say."""
    base, _, text = name.partition("@")
    runtime, levels = RUNTIMES.get(base), text.split("+")
    told = []
    if runtime is not None and runtime.folds is not None and runtime.as_it_stands not in levels:
        told.append(f"{runtime.folds}, so a time ratio near 1 is expected")
        if runtime.as_it_stands is not None:
            told.append(f"{base}@{runtime.as_it_stands} runs both graphs as they stand")
    if "tf32" in levels:
        told.append("outputs were compared with TF32 off, and float32 is timed with it")
    return "; ".join(told) or None


def self_fused_name(name: str) -> str | None:
    """The name under which a runtime optimises a graph as it likes.

    Args:
        name: a runtime whose level keeps it from that.

    Returns:
        The same runtime at its highest level; None if it has no such level, or is at it already.
    """
    base, _, text = name.partition("@")
    levels, runtime = text.split("+"), RUNTIMES.get(base)
    if runtime is None or not any(level in runtime.self_fused for level in levels):
        return None
    return f"{base}@{'+'.join(runtime.self_fused.get(level, level) for level in levels)}"


def form_of(name: str) -> Form:
    """Which form of a variant a runtime takes.

    Raises:
        UsageError: there is no such runtime.
    """
    return _split(name)[0].form


def device_of(name: str) -> Literal["cpu", "cuda"]:
    """Where a runtime runs its models.

    Raises:
        UsageError: there is no such runtime.
    """
    return _split(name)[0].device


def load_library(name: str) -> None:
    """Import what a runtime needs, and make its compiler ready, so that loading a model is only that.

    Args:
        name: a runtime, with or without levels.

    Raises:
        UsageError: there is no such runtime.
        RuntimeMissingError: it, or the device it needs, is not on this machine.
    """
    _split(name)[0].load()


def open_session(name: str, model: Variant, options: SessionOptions | None = None) -> Session:
    """Load a model into a runtime.

    Args:
        name: a runtime, with or without levels.
        model: the model; the runtime takes the form it needs.
        options: how to run it.

    Returns:
        The session, to be used as a context manager.

    Raises:
        UsageError: there is no such runtime, or it has no such level.
        NotSupportedError: the runtime, its device, or the form of the model it needs is missing.
        SessionError: the runtime refuses the model.
    """
    runtime, levels = _split(name)
    return runtime.open(model, options or SessionOptions(), levels)


def runtime_versions() -> dict[str, str]:
    """Versions that only an imported library knows, such as the cuDNN of PyTorch; nothing is imported for it."""
    found: dict[str, str] = {}
    for runtime in RUNTIMES.values():
        if any(package.replace("-", "_") in sys.modules for package in runtime.packages):
            found |= runtime.versions()
    return found


def _split(name: str) -> tuple[Runtime, Levels]:
    base, _, text = name.partition("@")
    runtime = RUNTIMES.get(base)
    if runtime is None:
        raise UsageError(
            f"there is no runtime {base!r}",
            hint=did_you_mean(base, RUNTIMES) or f"there are: {', '.join(RUNTIMES)}",
        )
    levels = tuple(text.split("+")) if "@" in name else ()
    for group in runtime.levels:
        if sum(level in group for level in levels) > 1:
            raise UsageError(f"{name!r} has two of the levels {', '.join(group)}", hint="name one of them")
    if not {*levels} <= {level for group in runtime.levels for level in group}:
        have = (
            ", ".join(f"{base}@{level}" for group in runtime.levels for level in group) or "it has no levels"
        )
        raise UsageError(f"there is no runtime {name!r}", hint=f"levels of {base}: {have}")
    return runtime, levels
