"""What a backend is: a Python module with TensorRT's API, found by trying."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from convbn.common.text import first_line
from convbn.export.engines.backends.gpus import Gpu
from convbn.export.engines.backends.logs import collect, logger_of
from convbn.export.engines.errors import BackendNotInstalledError

__all__ = ["Backend", "BackendInfo"]

# What the builder calls; a version without one of these is too old or too new.
_NEEDED = ("Builder", "OnnxParser", "ILogger", "IProgressMonitor", "NetworkDefinitionCreationFlag")


@dataclass(frozen=True)
class BackendInfo:
    """State of a backend on this machine.

    Attributes:
        name: ``tensorrt`` or ``tensorrt-rtx``.
        version: where it imports.
        installed: whether there is anything of that name.
        usable: whether it can build here; a builder was really made.
        reason: why it is not usable.
        hint: the way out.
    """

    name: str
    version: str | None
    installed: bool
    usable: bool
    reason: str | None = None
    hint: str | None = None


@dataclass(frozen=True)
class Backend:
    """A TensorRT and how it differs from the other one.

    Attributes:
        name: as users write it.
        modules: import names, the first that imports is taken.
        pip: the command that installs it.
        needs_gpu: whether it builds only where a GPU is.
        serves: whether its engines run on a GPU.
        cli: NVIDIA's command-line program for it.
        unhonoured: build options that have no effect on it, with the reason.
        gpu_only: build options that it honours only where a GPU is.
    """

    name: str
    modules: tuple[str, ...]
    pip: str
    needs_gpu: bool
    serves: Callable[[Gpu], bool]
    cli: str
    unhonoured: Mapping[str, str] = field(default_factory=dict)
    gpu_only: frozenset[str] = frozenset()

    def load(self) -> Any:
        """Import the module.

        Raises:
            BackendNotInstalledError: it is missing, does not import, or lacks what is needed.
        """
        broken: Exception | None = None
        for name in self.modules:
            try:
                module = importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name != name:
                    broken = broken or error
                continue
            except (ImportError, OSError, RuntimeError) as error:  # libraries missing or of another version
                broken = broken or error
                continue
            lacking = [attribute for attribute in _NEEDED if not hasattr(module, attribute)]
            if lacking:
                cause = f"{name} {getattr(module, '__version__', '?')} has no {lacking[0]}"
                raise BackendNotInstalledError(cause, source=self.name, hint=self.pip)
            return module
        if broken is not None:
            cause = f"is installed but does not import: {first_line(broken)}"
            raise BackendNotInstalledError(cause, source=self.name, hint=self.pip)
        raise BackendNotInstalledError("is not installed", source=self.name, hint=self.pip)

    def info(self) -> BackendInfo:
        """Find out, by making a builder, whether it works here."""
        try:
            trt = self.load()
        except BackendNotInstalledError as error:
            installed = any(importlib.util.find_spec(name) for name in self.modules)
            return BackendInfo(self.name, None, installed, False, error.cause, error.hint)
        version = str(trt.__version__)
        with collect(trt) as log:
            try:
                trt.Builder(logger_of(trt))
            except Exception as error:  # pybind11 turns a null builder into a TypeError
                reason = log.first_error() or f"no builder can be made: {error}"
                hint = "it needs an NVIDIA GPU and its driver" if self.needs_gpu else None
                return BackendInfo(self.name, version, True, False, reason, hint)
        return BackendInfo(self.name, version, True, True)
