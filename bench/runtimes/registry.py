"""Runtimes by name. A new one is one file with an ``open_session`` and one line here.

A name may carry a level after ``@`` where the runtime has one: ``onnxruntime-cpu@off``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import cast

from convbn.bench.runtimes.base import Session, SessionOptions, Side
from convbn.errors import UsageError

__all__ = ["check_runtime", "open_session", "runtime_names", "runtime_note"]


@dataclass(frozen=True)
class _Entry:
    module: str
    device: str
    levels: tuple[str, ...] = ()


_ONNXRUNTIME_LEVELS = ("off", "basic", "all")

_RUNTIMES = {
    "onnxruntime-cpu": _Entry("convbn.bench.runtimes.onnxruntime_session", "cpu", _ONNXRUNTIME_LEVELS),
    "onnxruntime-cuda": _Entry("convbn.bench.runtimes.onnxruntime_session", "cuda", _ONNXRUNTIME_LEVELS),
    "torch-cpu": _Entry("convbn.bench.runtimes.torch_session", "cpu"),
    "torch-cuda": _Entry("convbn.bench.runtimes.torch_session", "cuda"),
}


def runtime_names() -> tuple[str, ...]:
    """The names without levels, as ``--runtime`` takes them."""
    return tuple(_RUNTIMES)


def check_runtime(name: str) -> None:
    """Say now, without importing anything heavy, whether a name can be opened at all.

    Args:
        name: a runtime, with or without a level.

    Raises:
        UsageError: there is no such runtime, or it has no such level.
    """
    _split(name)


def runtime_note(name: str) -> str | None:
    """What a reader should expect of a runtime, in one sentence; None if there is nothing to say."""
    base, _, level = name.partition("@")
    if base.startswith("onnxruntime") and level != "off":
        return (
            "onnxruntime folds BatchNorm into convolutions itself when it loads a model, so a time ratio "
            f"near 1 is expected; {base}@off runs both graphs as they stand"
        )
    return None


def open_session(name: str, side: Side, options: SessionOptions | None = None) -> Session:
    """Load a model into a runtime.

    Args:
        name: a runtime, with or without a level.
        side: the model; the runtime takes the form it needs.
        options: how to run it.

    Returns:
        The session, to be used as a context manager.

    Raises:
        UsageError: there is no such runtime, or it has no such level.
        NotSupportedError: the runtime, its device, or the form of the model it needs is missing.
        SessionError: the runtime refuses the model.
    """
    entry, level = _split(name)
    opener = cast(
        "Callable[[Side, SessionOptions, str, str | None], Session]",
        import_module(entry.module).open_session,
    )
    return opener(side, options or SessionOptions(), entry.device, level)


def _split(name: str) -> tuple[_Entry, str | None]:
    base, _, level = name.partition("@")
    entry = _RUNTIMES.get(base)
    if entry is None:
        raise UsageError(f"there is no runtime {base!r}", hint=f"there are: {', '.join(_RUNTIMES)}")
    if "@" not in name:
        return entry, None
    if level not in entry.levels:
        have = ", ".join(f"{base}@{known}" for known in entry.levels) or "it has no levels"
        raise UsageError(f"there is no runtime {name!r}", hint=f"levels of {base}: {have}")
    return entry, level
