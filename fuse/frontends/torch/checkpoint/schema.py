"""The header of a folded checkpoint: validated when read from JSON, which anyone may have written, and written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from convbn.common.dtypes import dtype_name
from convbn.common.encoding import encoded
from convbn.errors import BadInputError, NotSupportedError

if TYPE_CHECKING:
    import torch

__all__ = ["STRUCTURE_VERSION", "AddedTensor", "Plain", "Replaced", "Structure"]

STRUCTURE_VERSION = "1"
T = TypeVar("T")
Plain: TypeAlias = bool | int | float
_KINDS = ("parameter", "buffer")
_DTYPES = ("float16", "bfloat16", "float32", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True, slots=True)
class Replaced:
    """A module that became nothing, or some of its children one after the other."""

    path: str
    children: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON, by the published schema."""
        if not self.children:
            return {"path": self.path, "becomes": "identity"}
        return {"path": self.path, "becomes": "children", "children": list(self.children)}


@dataclass(frozen=True, slots=True)
class AddedTensor:
    """A tensor that the original does not have, or has in another shape."""

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    requires_grad: bool

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor, kind: str) -> AddedTensor:
        """The description of a tensor."""
        return cls(name, kind, tuple(tensor.shape), dtype_name(tensor), tensor.requires_grad)


@dataclass(frozen=True, slots=True)
class Structure:
    """What a fold did to a module, beside its numbers.

    Attributes:
        modules: those that were replaced, by their path in the original.
        added: tensors that came.
        removed: names of tensors that went from modules that stayed.
        attributes: plain attributes with another value, by path and name.
        shared: groups of names of one and the same tensor.
        settings: what each layer that stayed computes with, to tell another architecture by.
        training: paths of modules that are in training mode, such as a BatchNorm that is kept so.
    """

    modules: tuple[Replaced, ...] = ()
    added: tuple[AddedTensor, ...] = ()
    removed: tuple[str, ...] = ()
    attributes: Mapping[str, Mapping[str, Plain]] = field(default_factory=dict)
    shared: tuple[tuple[str, ...], ...] = ()
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    training: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON, by the published schema."""
        own = {field.name: encoded(getattr(self, field.name)) for field in fields(self)}
        return {"schema_version": STRUCTURE_VERSION, **own}

    @classmethod
    def from_dict(cls, value: object) -> Structure:
        """Check and take in what :meth:`to_dict` gave.

        Raises:
            NotSupportedError: it is of another version.
            BadInputError: it is malformed.
        """
        top = _mapping(value, "structure")
        version = top.get("schema_version")
        if version != STRUCTURE_VERSION:
            raise NotSupportedError(
                f"the structure of the fold has version {version!r}, this convbn reads {STRUCTURE_VERSION!r}",
                hint="load it with the convbn that wrote it, or fold the original again",
            )
        return cls(
            modules=tuple(_replaced(entry) for entry in _list(top.get("modules"), "modules")),
            added=tuple(_added(entry) for entry in _list(top.get("added"), "added")),
            removed=tuple(_text(name, "removed") for name in _list(top.get("removed"), "removed")),
            attributes={
                path: _plain(_mapping(values, "attributes"))
                for path, values in _mapping(top.get("attributes"), "attributes").items()
            },
            shared=tuple(_group(group) for group in _list(top.get("shared"), "shared")),
            settings={
                path: {name: _text(text, "settings") for name, text in _mapping(values, "settings").items()}
                for path, values in _mapping(top.get("settings"), "settings").items()
            },
            training=tuple(_text(path, "training") for path in _list(top.get("training", []), "training")),
        )


def _replaced(value: object) -> Replaced:
    entry = _mapping(value, "modules")
    becomes = entry.get("becomes")
    path = _text(entry.get("path"), "modules")
    if becomes == "identity" and path:
        return Replaced(path)
    if becomes == "children" and path:
        children = tuple(_text(name, "children") for name in _list(entry.get("children"), "children"))
        if children and len(set(children)) == len(children):
            return Replaced(path, children)
    raise _malformed("modules")


def _added(value: object) -> AddedTensor:
    entry = _mapping(value, "added")
    shape = tuple(_list(entry.get("shape"), "added"))
    kind, dtype, trains = (entry.get(key) for key in ("kind", "dtype", "requires_grad"))
    sizes = all(type(size) is int and size >= 0 for size in shape) and len(shape) <= 8
    sizes = sizes and math.prod(max(size, 1) for size in shape) < 1 << 60
    if kind not in _KINDS or dtype not in _DTYPES or type(trains) is not bool or not sizes:
        raise _malformed("added")
    if trains and (kind != "parameter" or "float" not in dtype):
        raise _malformed("added")
    name = _text(entry.get("name"), "added")
    if not name.rpartition(".")[2]:
        raise _malformed("added")
    return AddedTensor(name, kind, shape, dtype, trains)


def _plain(values: Mapping[str, Any]) -> dict[str, Plain]:
    for name, value in values.items():
        if type(value) not in (bool, int, float) or name.startswith("_"):
            raise _malformed("attributes")
    return dict(values)


def _group(value: object) -> tuple[str, ...]:
    names = tuple(_text(name, "shared") for name in _list(value, "shared"))
    if len(names) < 2:
        raise _malformed("shared")
    return names


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    return _of(dict, value, where)


def _list(value: object, where: str) -> list[Any]:
    return _of(list, value, where)


def _text(value: object, where: str) -> str:
    return _of(str, value, where)


def _of(kind: type[T], value: object, where: str) -> T:
    if not isinstance(value, kind):
        raise _malformed(where)
    return value


def _malformed(where: str) -> BadInputError:
    return BadInputError(f"the structure of the fold is malformed in {where!r}")
