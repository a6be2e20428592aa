"""What the calls in a symbolically traced graph are, in the names that ATen has for them.

Functions of ``torch`` and ``torch.nn.functional``, methods of tensors, Python's operators and the modules of
``torch.nn`` that stay whole: each is brought to an ATen name and its arguments, for the readers that
exported graphs have as well.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from convbn.fuse.frontends.torch.calls.aten import EXPORTED
from convbn.fuse.frontends.torch.calls.schema import schema_of, written_by
from convbn.fuse.operators.calls import Aten, AtenCall, Tensors
from convbn.fuse.operators.registry import aten_rows, until_change

if TYPE_CHECKING:
    import torch
    import torch.fx

__all__ = ["AUGMENTED", "call_of_module", "gives_new_memory", "named_call", "writes_in_place"]

_RENAMED = {
    "input": "self",
    "axis": "dim",
    "axis0": "dim0",
    "axis1": "dim1",
    "keepdims": "keepdim",
    "tensor": "self",
    "split_size_or_sections": "split_size",
}


@until_change
def _functions() -> Mapping[Any, str]:
    """ATen's names of functions and, by their own names, of methods."""
    import torch
    import torch.nn.functional as functional

    found: dict[Any, str] = {}
    for row in aten_rows():
        first = row.names[0]
        for name in (first, *row.functions) if row.signature else row.names:
            known = found[name] = first if row.signature else name
            for module in (torch, functional, operator):
                if hasattr(module, name):
                    found.setdefault(getattr(module, name), known)
    return found


def _name(node: torch.fx.Node) -> str:
    """The name that ATen has for a function or a method; empty for what is not in the registry."""
    target = node.target
    if isinstance(target, str) and not target.endswith("__"):
        target = target.removesuffix("_")
    return _functions().get(target, "")


def named_call(node: torch.fx.Node, tensors: Tensors = EXPORTED) -> AtenCall | None:
    """A call of a function or a method by its ATen name, None for any other call."""
    name, args = _name(node), node.args
    signature = next((row.signature for row in aten_rows(name) if row.signature), ())
    if signature and signature[-1].startswith("*") and len(args) > len(signature):
        args = (*args[: len(signature) - 1], args[len(signature) - 1 :])
    if len(args) > len(signature):
        return None
    given = dict(zip((argument.lstrip("*") for argument in signature), args, strict=False))
    renamed = {key: key if key in signature else _RENAMED.get(key, key) for key in node.kwargs}
    given.update({renamed[key]: value for key, value in node.kwargs.items()})
    return AtenCall(name, given, tensors) if signature and _plain(name, given) else None


def _plain(name: str, given: Mapping[str, Any]) -> bool:
    """Whether the call computes what its ATen name says."""
    if given.get("out") is not None or given.get("return_indices", False):
        return False
    if given.get("dtype") is not None and name != "to":
        return False
    return name != "dropout" or given.get("training", True) is False


@until_change
def _modules() -> Mapping[type, Aten]:
    """The classes of ``torch.nn`` that are called like an operator, but for case and underscores, and others."""
    from torch import nn

    classes = {name.lower(): getattr(nn, name) for name in nn.modules.__all__}
    found: dict[type, Aten] = {}
    for row in aten_rows():
        names = (row.names[0].replace("_", ""), *(name.lower() for name in row.modules))
        found |= {classes[name]: row for name in names if name in classes and row.signature}
    return found


def call_of_module(
    part: torch.nn.Module, data: torch.fx.Node, tensors: Tensors = EXPORTED
) -> AtenCall | None:
    """What a module of ``torch.nn`` does to its one input, None where no reader knows it."""
    row = _modules().get(type(part))
    if row is None or "forward" in vars(part):
        return None
    given = {field: getattr(part, field) for field in row.signature[1:] if hasattr(part, field)}
    return AtenCall(row.names[0], {"self": data, **given}, tensors) if _plain(row.names[0], given) else None


def gives_new_memory(node: torch.fx.Node) -> bool:
    """Whether a function or a method gives a tensor of its own, unless it is told to work in place."""
    return any(row.fresh for row in aten_rows(_name(node)))


def writes_in_place(node: torch.fx.Node, parts: Mapping[str, torch.nn.Module]) -> list[torch.fx.Node]:
    """The tensors that a traced call changes, or may change where it is somebody's own function."""
    reads = list(node.all_input_nodes)
    if node.op == "call_module":
        return reads[:1] if getattr(parts[str(node.target)], "inplace", False) is True else []
    if node.op == "call_method":
        name = str(node.target)
        inner = name.startswith("__") and name.endswith("__")
        own = (name.endswith("_") and not inner) or name in (
            "__setitem__",
            "__iadd__",
            "__imul__",
            "__isub__",
        )
        return reads[:1] if own else []
    if node.op != "call_function":
        return []
    if schema_of(node) is not None:
        return list(written_by(node))
    name = str(getattr(node.target, "__name__", ""))
    flagged = _flag(node)
    if name.endswith("_") or name in (*AUGMENTED, "setitem") or flagged:
        return reads[:1]
    out = node.kwargs.get("out")
    if out is not None:
        return [read for read in reads if read is out or (isinstance(out, tuple) and read in out)]
    return [] if _known(node.target) else reads


AUGMENTED = (
    "iadd",
    "isub",
    "imul",
    "itruediv",
    "ifloordiv",
    "imod",
    "ipow",
    "iand",
    "ior",
    "ixor",
)
"""Python's augmented assignments, which write to a tensor."""


def _flag(node: torch.fx.Node) -> bool:
    """Whether a functional form was told to work in place, or may have been."""
    if node.kwargs.get("inplace", False) is not False:
        return True
    place = _place_of_flag(node.target)
    return place is not None and len(node.args) > place and node.args[place] is not False


@cache
def _place_of_flag(target: Any) -> int | None:
    try:
        parameters = list(inspect.signature(target).parameters)
    except (TypeError, ValueError):  # built into PyTorch, where no function has such a flag
        return None
    return parameters.index("inplace") if "inplace" in parameters else None


def _known(target: Callable[..., Any] | str) -> bool:
    """Whether a function is PyTorch's or Python's, whose names tell what they write to."""
    home = getattr(target, "__module__", None)
    return home is None or str(home).partition(".")[0] in (
        "torch",
        "_operator",
        "operator",
        "builtins",
        "math",
    )
