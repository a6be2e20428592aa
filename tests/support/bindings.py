"""TensorRT's Python bindings as a contract that calls are held against, without TensorRT's libraries.

pybind11 writes the signature of every function into its docstring. A :class:`Bindings` stands for the module:
classes whose objects only a builder or runtime can make are replaced by objects that check each call against
those signatures, answer with an object of the returned type, or with what a script says. Enums, and classes
that Python code derives from, are the real ones. A name that the real class lacks is an AttributeError, a call
that no signature allows is a TypeError, as they would be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

_DERIVED_FROM = ("ILogger", "IProgressMonitor", "Logger")
_INTEGERS = ("int", "SupportsInt", "SupportsIndex", "capsule")
_BUFFERS = ("buffer", "Buffer")


class Bindings:
    """The module.

    Args:
        real: the imported bindings.
        script: ``Class.member`` to a value, or to a function of the object and the arguments.
        removed: ``Class.member`` or ``Class`` names to pretend away.
    """

    def __init__(
        self, real: ModuleType, script: Mapping[str, Any] | None = None, removed: Iterable[str] = ()
    ) -> None:
        self._real, self._script, self._removed = real, dict(script or {}), frozenset(removed)
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name in self._removed:
            raise AttributeError(f"module has no attribute '{name}'", name=name, obj=self)
        found = getattr(self._real, name)
        if not isinstance(found, type) or hasattr(found, "__members__") or name in _DERIVED_FROM:
            return found
        return lambda *args, **kwargs: self._construct(found, args, kwargs)

    def make(self, name: str) -> Checked:
        """An object of a class, as TensorRT would hand it out."""
        return Checked(self, getattr(self._real, name))

    def _construct(self, kind: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Checked:
        self.calls.append(kind.__name__)
        check(self, kind.__init__, f"{kind.__name__}.__init__", (Checked(self, kind), *args), kwargs)
        return Checked(self, kind)


class Checked:
    """An object whose attributes and calls are held against a class of the bindings."""

    def __init__(self, bindings: Bindings, kind: type) -> None:
        object.__setattr__(self, "_bindings", bindings)
        object.__setattr__(self, "_kind", kind)
        object.__setattr__(self, "_set", {})

    def __getattr__(self, name: str) -> Any:
        full = f"{self._kind.__name__}.{name}"
        if full in self._bindings._removed or not hasattr(self._kind, name):
            raise AttributeError(f"{self._kind.__name__} has no attribute '{name}'", name=name, obj=self)
        member = getattr(self._kind, name)
        if isinstance(member, property):
            self._bindings.calls.append(full)
            if name in self._set:
                return self._set[name]
            return self._answer(full, _returns(_signatures(member.fget or member)), ())

        def call(*args: Any, **kwargs: Any) -> Any:
            self._bindings.calls.append(full)
            returns = check(self._bindings, member, full, (self, *args), kwargs)
            return self._answer(full, returns, args)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        full = f"{self._kind.__name__}.{name}"
        member = None if full in self._bindings._removed else getattr(self._kind, name, None)
        if not isinstance(member, property) or member.fset is None:
            raise AttributeError(
                f"{self._kind.__name__} has no attribute '{name}' to set", name=name, obj=self
            )
        self._bindings.calls.append(f"{full}=")
        if _signatures(member.fset):
            check(self._bindings, member.fset, full, (self, value), {})
        self._set[name] = value

    def __bytes__(self) -> bytes:
        if self._kind.__name__ != "IHostMemory":
            raise TypeError(f"{self._kind.__name__} is no buffer")
        return bytes(self._bindings._script.get("IHostMemory", b"plan"))

    def _answer(self, full: str, returns: str, args: tuple[Any, ...]) -> Any:
        if full in self._bindings._script:
            scripted = self._bindings._script[full]
            return scripted(self, *args) if callable(scripted) else scripted
        return _default(self._bindings, returns)


def check(
    bindings: Bindings, function: Any, full: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str:
    """Hold a call against every signature of a function; returns the type that the first fitting one returns."""
    signatures = _signatures(function)
    for parameters, returns in signatures:
        if _binds(bindings, parameters, args, kwargs):
            return returns
    shown = ", ".join([*(_shown(arg) for arg in args[1:]), *(f"{k}={_shown(v)}" for k, v in kwargs.items())])
    raise TypeError(f"{full}({shown}): incompatible function arguments, supported are {signatures}")


_SIGNATURE = re.compile(r"^(?:\d+\. )?\w*\((?P<parameters>.*)\) -> (?P<returns>.+?)\s*$", re.MULTILINE)
Parameters = tuple[tuple[str, str, bool], ...]


def _signatures(function: Any) -> list[tuple[Parameters, str]]:
    found = []
    for match in _SIGNATURE.finditer(function.__doc__ or ""):
        if match["parameters"] == "*args, **kwargs":
            continue
        found.append((tuple(_parameter(text) for text in _split(match["parameters"])), match["returns"]))
    return found


def _parameter(text: str) -> tuple[str, str, bool]:
    head, equals, _ = text.partition(" = ")
    name, _, kind = head.partition(": ")
    return name, kind, bool(equals)


def _split(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for index, char in enumerate(text):
        depth += (char in "[(<") - (char in "])>")
        if char == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    return [part for part in (*parts, text[start:].strip()) if part]


def _binds(
    bindings: Bindings, parameters: Parameters, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    if len(args) > len(parameters):
        return False
    given = {name: value for (name, _, _), value in zip(parameters, args, strict=False)}
    if given.keys() & kwargs.keys() or kwargs.keys() - {name for name, _, _ in parameters}:
        return False
    given |= kwargs
    return all(
        _fits(bindings, given[name], kind) if name in given else optional
        for name, kind, optional in parameters
    )


def _fits(bindings: Bindings, value: Any, kind: str) -> bool:
    if value is None:
        return True
    name = re.split(r"[.:]", kind.split("[")[0])[-1]
    if name == "bool":
        return isinstance(value, bool)
    if name in _INTEGERS:
        return isinstance(value, int) and not isinstance(value, bool)
    if name == "str":
        return isinstance(value, str)
    if name in _BUFFERS:
        return isinstance(value, bytes | bytearray | memoryview)
    if name == "Dims":
        return isinstance(value, tuple | list) and all(isinstance(dim, int) for dim in value)
    wanted = getattr(bindings._real, name, None)
    if isinstance(wanted, type):
        return issubclass(value._kind if isinstance(value, Checked) else type(value), wanted)
    return True


def _returns(signatures: list[tuple[Parameters, str]]) -> str:
    return signatures[0][1] if signatures else "object"


def _default(bindings: Bindings, returns: str) -> Any:
    name = re.split(r"[.:]", returns.split("[")[0])[-1]
    simple: dict[str, Callable[[], Any]] = {
        "bool": lambda: True,
        "int": lambda: 0,
        "str": lambda: "",
        "None": lambda: None,
    }
    if name in simple:
        return simple[name]()
    kind = getattr(bindings._real, name, None)
    if hasattr(kind, "__members__"):
        return next(iter(kind.__members__.values()))
    if isinstance(kind, type):
        return Checked(bindings, kind)
    raise NotImplementedError(f"the script must say what {returns} is")


def _shown(value: Any) -> str:
    return value._kind.__name__ if isinstance(value, Checked) else type(value).__name__
