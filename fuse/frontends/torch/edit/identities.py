"""The Identity that stands where a BatchNorm was, taken out: a call that does nothing costs 1 to 3 µs in eager PyTorch.

In an ``nn.Sequential`` the child goes, and those behind it are nearer to the front. Elsewhere the attribute becomes a
plain function that returns its argument, if the code of the class does nothing but call it. Names of parameters stay.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["new_identities", "take_out"]

#: Ways to reach a child without writing its name.
_BY_ANY_NAME = frozenset(
    {"_modules", "children", "get_submodule", "modules", "named_children", "named_modules"}
)


def new_identities(before: torch.nn.Module, after: torch.nn.Module) -> list[str]:
    """Paths of the modules that a fold of ``before`` replaced by an Identity."""
    import torch

    known = dict(before.named_modules(remove_duplicate=False))
    found = after.named_modules(remove_duplicate=False)
    idle = torch.nn.Identity
    return [path for path, part in found if type(part) is idle and type(known.get(path)) is not idle]


def take_out(module: torch.nn.Module, paths: Iterable[str]) -> list[str]:
    """Take Identities out of a module, in place.

    Args:
        module: computes the same afterwards, and keeps its parameters and their names.
        paths: of the Identities.

    Returns:
        Those that stay, since the code of the module that holds them does more than call them, or cannot be read.
    """
    import torch

    owners = {path: module.get_submodule(path.rpartition(".")[0]) for path in paths if path}
    staying = ["" for path in paths if not path]
    for path, owner in owners.items():
        name = path.rpartition(".")[2]
        kind: Any = type(owner)
        if isinstance(owner, torch.nn.Sequential) and kind.forward is torch.nn.Sequential.forward:
            owner._modules.pop(name, None)
        elif "forward" not in vars(owner) and name.isidentifier() and _only_called(kind, name):
            owner._modules.pop(name, None)
            # Of PyTorch itself, so that a pickled model needs no convbn.
            owner.__dict__[name] = partial(torch.nn.Identity.forward, None)  # type: ignore[arg-type]  # it has no use for self
        else:
            staying.append(path)
    return staying


@cache
def _only_called(kind: Any, name: str) -> bool:
    """Whether the methods of a class use an attribute in no other way than by calling it."""
    import torch

    nodes: list[ast.AST] = []
    for part in kind.__mro__[: kind.__mro__.index(torch.nn.Module)]:
        try:
            (code,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        except (OSError, TypeError, SyntaxError):  # a class that was made without a file
            return False
        methods = [
            method for method in ast.iter_child_nodes(code) if getattr(method, "name", "") != "__init__"
        ]
        nodes += [node for method in methods for node in ast.walk(method)]
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    called = {id(call.func) for call in calls}
    reached = any(
        isinstance(node, ast.Attribute)
        and (node.attr in _BY_ANY_NAME or (node.attr == name and id(node) not in called))
        for node in nodes
    )
    named = any(isinstance(node, ast.Constant) and node.value == name for node in nodes)
    asked = any(isinstance(call.func, ast.Name) and call.func.id in ("getattr", "vars") for call in calls)
    return not (reached or named or asked)
