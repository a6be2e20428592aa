"""What a forward takes by name alone, as the last of a tuple of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

__all__ = ["Keywords", "called", "split"]


class Keywords(dict[str, Any]):
    """Arguments by name; PyTorch's functions on nests see what is in it, as in any other dict."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__(arguments)
        _make_known()


def split(arguments: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional arguments, and those by name."""
    if arguments and isinstance(arguments[-1], Keywords):
        return arguments[:-1], dict(arguments[-1])
    return arguments, {}


def called(module: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """What a module gives for arguments of either kind."""
    places, keywords = split(arguments)
    return module(*places, **keywords)


@cache
def _make_known() -> None:
    from torch.utils import _pytree as pytree

    pytree.register_pytree_node(
        Keywords,
        lambda held: (list(held.values()), list(held)),
        lambda values, names: Keywords(dict(zip(names, values, strict=True))),
        serialized_type_name="convbn_keywords",
        flatten_with_keys_fn=lambda held: (
            [(pytree.MappingKey(name), value) for name, value in held.items()],
            list(held),
        ),
    )
