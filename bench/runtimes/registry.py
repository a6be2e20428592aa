"""Runtimes by name. A new one is one file with an ``open_session`` and one line here.

A name may carry a level after ``@`` where the runtime has one: ``onnxruntime-cpu@off``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, TypeAlias, cast

from convbn.bench.runtimes.base import Session, SessionOptions, Side
from convbn.errors import UsageError

__all__ = [
    "check_runtime",
    "device_of",
    "form_of",
    "load_library",
    "open_session",
    "runtime_names",
    "runtime_note",
    "self_fused_name",
]

#: What a runtime runs: the ONNX form of a side, its PyTorch form, or an engine built from the ONNX form.
Form: TypeAlias = Literal["onnx", "torch", "engine"]


@dataclass(frozen=True)
class _Entry:
    module: str
    device: Literal["cpu", "cuda"]
    form: Form
    variant: str
    levels: tuple[str, ...] = ()
    note: str | None = None


_ONNXRUNTIME = "convbn.bench.runtimes.onnxruntime_session"
_TORCH = "convbn.bench.runtimes.torch_session"
_ENGINE = "convbn.bench.runtimes.engine_session"
_OPTIMISATIONS = ("off", "basic", "all")
_STARTS = ("graph", "enqueue")
_FOLDS = (
    "{} folds BatchNorm into convolutions itself when it builds an engine, so a time ratio near 1 is expected"
)
_COMPILES = (
    "torch.compile fuses a BatchNorm with the operators around it into one kernel, so a time ratio near 1 is "
    "expected wherever that kernel was needed anyway"
)

_RUNTIMES = {
    "onnxruntime-cpu": _Entry(_ONNXRUNTIME, "cpu", "onnx", "cpu", _OPTIMISATIONS),
    "onnxruntime-cuda": _Entry(_ONNXRUNTIME, "cuda", "onnx", "cuda", _OPTIMISATIONS),
    "onnxruntime-tensorrt": _Entry(
        _ONNXRUNTIME, "cuda", "onnx", "tensorrt", _OPTIMISATIONS, _FOLDS.format("TensorRT")
    ),
    "torch-cpu": _Entry(_TORCH, "cpu", "torch", "eager"),
    "torch-compile-cpu": _Entry(_TORCH, "cpu", "torch", "compile", note=_COMPILES),
    "torch-cuda": _Entry(_TORCH, "cuda", "torch", "eager"),
    "torch-compile-cuda": _Entry(_TORCH, "cuda", "torch", "compile", note=_COMPILES),
    "torch-cudagraph": _Entry(_TORCH, "cuda", "torch", "cudagraph"),
    "tensorrt": _Entry(_ENGINE, "cuda", "engine", "tensorrt", _STARTS, _FOLDS.format("TensorRT")),
    "tensorrt-rtx": _Entry(_ENGINE, "cuda", "engine", "tensorrt-rtx", _STARTS, _FOLDS.format("TensorRT-RTX")),
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
    entry = _RUNTIMES.get(base)
    if entry is not None and entry.note is not None:
        return entry.note
    if base.startswith("onnxruntime") and level != "off":
        return (
            "onnxruntime folds BatchNorm into convolutions itself when it loads a model, so a time ratio "
            f"near 1 is expected; {base}@off runs both graphs as they stand"
        )
    return None


def self_fused_name(name: str) -> str | None:
    """The name under which a runtime optimises a graph as it likes.

    Args:
        name: a runtime whose level keeps it from that.

    Returns:
        The same runtime at its highest level; None if it has no such level, or is at it already.
    """
    base, _, level = name.partition("@")
    return f"{base}@all" if level in ("off", "basic") else None


def form_of(name: str) -> Form:
    """Which form of a side a runtime takes.

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
        name: a runtime, with or without a level.

    Raises:
        UsageError: there is no such runtime.
        RuntimeMissingError: it, or the device it needs, is not on this machine.
    """
    entry, _ = _split(name)
    loader = cast("Callable[[str, str], None]", import_module(entry.module).load_library)
    loader(entry.device, entry.variant)


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
        "Callable[[Side, SessionOptions, str, str, str | None], Session]",
        import_module(entry.module).open_session,
    )
    return opener(side, options or SessionOptions(), entry.device, entry.variant, level)


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
