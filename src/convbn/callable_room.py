"""Makes the packages ``convbn.fuse`` and ``convbn.bench`` callable; ``convbn.fuse.plan`` stays a module."""

from __future__ import annotations

import types
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import inspect

__all__ = ["CallableRoom"]


class CallableRoom(types.ModuleType):
    """A package that behaves like the function of its own name in :mod:`convbn.api`.

    It can be called, pickled, copied, wrapped, mocked and looked at like that function, which it also holds:
    ``from convbn.fuse import fuse``.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        from convbn.common.public import public

        return public(self.__wrapped__, self.__name__.rpartition(".")[2])(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == self.__name__.rpartition(".")[2]:
            return self.__wrapped__
        raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")

    def __reduce__(self) -> tuple[Callable[[str], types.ModuleType], tuple[str]]:
        return import_module, (self.__name__,)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The function."""
        function: Callable[..., Any] = getattr(import_module("convbn.api"), self.__name__.rpartition(".")[2])
        return function

    @property
    def __signature__(self) -> inspect.Signature:
        """The function's."""
        import inspect

        return inspect.signature(self.__wrapped__)

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        """The call and the function's documentation, then the package's own."""
        import inspect

        name = self.__name__.rpartition(".")[2]
        package = self.__dict__.get("__doc__") or ""
        return f"{name}{self.__signature__}\n\n{inspect.getdoc(self.__wrapped__)}\n\nThe package: {package}"
