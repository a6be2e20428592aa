"""The kinds of file that can be written, told by their suffix: a row each, which every verb reads.

A new one is a row here and, where one program loads it as it is, a file in :mod:`convbn.export.packages`. No framework
is imported for the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from convbn.errors import UsageError

if TYPE_CHECKING:
    from convbn.export.packages.package import Package

__all__ = ["FORMATS", "Format", "format_of", "packaged"]

_OF_ONNX: Final = frozenset({"precision", "opset", "dynamic_batch"})


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        suffixes: that tell it; of two that fit a name the longer one counts.
        name: what messages call one of them, without an article.
        made_of: what is folded and then written in it: an ONNX model, an exported program, or a module.
        verbs: that write it.
        takes: groups of options that mean something for it: ``precision``, ``opset``, ``dynamic_batch``, ``triton``,
            ``engine``, ``external_data``.
        beside: suffixes of what is written next to it, and what that is.
        package: the module of :mod:`convbn.export.packages` that makes it, if one does.
    """

    suffixes: tuple[str, ...]
    name: str
    made_of: Literal["onnx", "program", "module"]
    verbs: frozenset[str]
    takes: frozenset[str] = frozenset()
    beside: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    package: str | None = None

    @property
    def one(self) -> str:
        """Its name with an article."""
        return f"{'an' if self.name[0] in 'AEIOaeiou' else 'a'} {self.name}"

    def packager(self) -> Package:
        """What makes it. Nothing of what it needs is imported yet."""
        return import_module(f"convbn.export.packages.{self.package}").PACKAGE  # type: ignore[no-any-return]


_SIDECAR: Final = MappingProxyType({".json": "the sidecar of OUT"})
_BOTH, _EXPORT = frozenset({"fuse", "export"}), frozenset({"export"})
FORMATS: Final = (
    Format(
        (".onnx",),
        "ONNX model",
        "onnx",
        _BOTH,
        _OF_ONNX | {"triton", "external_data"},
        MappingProxyType({".data": "the weights of OUT"}),
    ),
    Format((".pt2",), "PyTorch program", "program", _BOTH),
    Format((".safetensors",), "safetensors file", "module", frozenset({"fuse"})),
    Format(
        (".engine", ".plan", ".trt"),
        "TensorRT engine",
        "onnx",
        _EXPORT,
        _OF_ONNX | {"triton", "engine"},
        _SIDECAR,
    ),
    Format((".aoti.pt2",), "AOTInductor package", "program", _EXPORT, frozenset(), _SIDECAR, "aot_inductor"),
    Format((".pte",), "ExecuTorch program", "program", _EXPORT, frozenset(), _SIDECAR, "executorch_program"),
    Format((".ort",), "onnxruntime model", "onnx", _EXPORT, _OF_ONNX, _SIDECAR, "onnxruntime_model"),
    Format((".opt.onnx",), "optimised ONNX model", "onnx", _EXPORT, _OF_ONNX, _SIDECAR, "optimised_onnx"),
    Format((".ctx.onnx",), "EPContext model", "onnx", _EXPORT, _OF_ONNX, _SIDECAR, "ep_context"),
)
"""In the order in which they are offered."""


def packaged() -> tuple[Format, ...]:
    """Those that a module of :mod:`convbn.export.packages` makes."""
    return tuple(row for row in FORMATS if row.package is not None)


def format_of(path: str, among: Iterable[Format] = FORMATS) -> Format:
    """The format of OUT, by its suffix: it does not exist yet, so there is no content to go by.

    Raises:
        UsageError: it is none of those.
    """
    name, offered = Path(path).name.lower(), tuple(among)
    fitting = [
        (len(suffix), row, suffix) for row in FORMATS for suffix in row.suffixes if name.endswith(suffix)
    ]
    _, found, suffix = max(fitting, key=lambda entry: entry[0], default=(0, None, Path(name).suffix))
    if found is None or found not in offered:
        suffixes = ", ".join(suffix for row in offered for suffix in row.suffixes)
        raise UsageError(f"cannot write a '{suffix}' file", source=path, hint=f"OUT may be {suffixes}")
    return found
