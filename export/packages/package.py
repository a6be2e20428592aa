"""What makes a package, what comes out, and how a package is loaded back to be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch

__all__ = ["LoadedPackage", "Pack", "Package", "Packed"]


@dataclass(frozen=True)
class LoadedPackage:
    """A package that was loaded back.

    Attributes:
        runtime: what runs it, for reports.
        module: calls it like the module that it was made of; None for an ONNX model.
        session: an ``onnxruntime.InferenceSession``; None for a program.
    """

    runtime: str
    module: torch.nn.Module | None = None
    session: Any = None


@dataclass(frozen=True)
class Packed:
    """A package in a folder of its own, not kept yet.

    Attributes:
        path: of the file.
        load: loads it back.
        facts: what its sidecar says beyond what every sidecar says: JSON values.
    """

    path: Path
    load: Callable[[], LoadedPackage]
    facts: Mapping[str, Any]


#: From an ONNX model or exported program, example inputs of a program, and a path, to the file there.
Pack: TypeAlias = Callable[[Any, Sequence[Any], Path], Packed]


@dataclass(frozen=True)
class Package:
    """A kind of package.

    Attributes:
        tools: distributions that make it, whose versions its sidecar names.
        require: raises NotSupportedError where it cannot be made here, with what would help; quick, for
            ``convbn doctor``.
        pack: makes one.
    """

    tools: tuple[str, ...]
    require: Callable[[], None]
    pack: Pack
