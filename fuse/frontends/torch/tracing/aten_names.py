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

if TYPE_CHECKING:
    import torch
    import torch.fx

__all__ = ["AUGMENTED", "Named", "call_of_module", "named_call", "writes_in_place"]

Named = tuple[str, dict[str, Any]]
"""An ATen name without namespace, and the arguments by ATen's names."""

_POOL = ("self", "kernel_size", "stride", "padding")

_ARGUMENTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("add", "sub", "mul", "div", "rsub"), ("self", "other")),
    "relu": ("self", "inplace"),
    "leaky_relu": ("self", "negative_slope", "inplace"),
    "prelu": ("self", "weight"),
    "cat": ("tensors", "dim"),
    "mean": ("self", "dim", "keepdim"),
    "amax": ("self", "dim", "keepdim"),
    "split": ("self", "split_size", "dim"),
    "chunk": ("self", "chunks", "dim"),
    "narrow": ("self", "dim", "start", "length"),
    "permute": ("self", "dims"),
    "transpose": ("self", "dim0", "dim1"),
    "flatten": ("self", "start_dim", "end_dim"),
    "squeeze": ("self", "dim"),
    "unsqueeze": ("self", "dim"),
    "contiguous": ("self",),
    "clone": ("self",),
    "pad": ("self", "pad", "mode", "value"),
    "dropout": ("self", "p", "training", "inplace"),
    "upsample_nearest2d": ("self", "size", "scale_factor", "mode"),
    **{f"max_pool{n}d": (*_POOL, "dilation", "ceil_mode", "return_indices") for n in (1, 2, 3)},
    **{f"avg_pool{n}d": (*_POOL, "ceil_mode", "count_include_pad", "divisor_override") for n in (1, 2, 3)},
    **{f"adaptive_{kind}_pool{n}d": ("self", "output_size") for kind in ("avg", "max") for n in (1, 2, 3)},
}
_RENAMED = {
    "input": "self",
    "axis": "dim",
    "axis0": "dim0",
    "axis1": "dim1",
    "keepdims": "keepdim",
    "tensor": "self",
    "split_size_or_sections": "split_size",
}
_LISTS = ("dims",)
"""Arguments that a method also takes one by one."""


@cache
def _functions() -> Mapping[Any, str]:
    import torch
    import torch.nn.functional as functional

    found: dict[Any, str] = {
        operator.add: "add",
        operator.iadd: "add",
        operator.sub: "sub",
        operator.isub: "sub",
        operator.mul: "mul",
        operator.imul: "mul",
        operator.truediv: "div",
        operator.itruediv: "div",
        torch.concat: "cat",
        torch.relu_: "relu",
        torch.swapaxes: "transpose",
        functional.interpolate: "upsample_nearest2d",
        functional.dropout: "dropout",
        functional.pad: "pad",
    }
    for name in _ARGUMENTS:
        for module in (torch, functional):
            target = getattr(module, name, None)
            if target is not None:
                found.setdefault(target, name)
    return found


def named_call(node: torch.fx.Node) -> Named | None:
    """The ATen name and the arguments of a call of a function or a method, None for any other call."""
    if node.op == "call_function":
        name = _functions().get(node.target, "")
    else:
        method = str(node.target)
        name = method if method.endswith("__") else method.removesuffix("_")
        name = {"concat": "cat", "swapaxes": "transpose", "view": "reshape"}.get(name, name)
    if name == "reshape":
        return name, {"self": node.args[0] if node.args else None}
    order = _ARGUMENTS.get(name)
    if order is None:
        return None
    args = node.args
    if order[-1] in _LISTS and len(args) > len(order) and all(isinstance(a, int) for a in args[1:]):
        args = (args[0], args[1:])
    if len(args) > len(order):
        return None
    given = dict(zip(order, args, strict=False))
    given.update({_RENAMED.get(key, key): value for key, value in node.kwargs.items()})
    return (name, given) if _plain(name, given) else None


def _plain(name: str, given: Mapping[str, Any]) -> bool:
    """Whether the call computes what its ATen name says."""
    if given.get("out") is not None or given.get("return_indices", False) or given.get("dtype") is not None:
        return False
    return name != "dropout" or given.get("training", True) is False


@cache
def _modules() -> Mapping[type, str]:
    from torch import nn

    found: dict[type, str] = {
        nn.ReLU: "relu",
        nn.LeakyReLU: "leaky_relu",
        nn.PReLU: "prelu",
        nn.Flatten: "flatten",
    }
    found |= dict.fromkeys(
        (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), "upsample_nearest2d"
    )
    for rank in (1, 2, 3):
        for kind in ("Avg", "Max"):
            found[getattr(nn, f"{kind}Pool{rank}d")] = f"{kind.lower()}_pool{rank}d"
            found[getattr(nn, f"Adaptive{kind}Pool{rank}d")] = f"adaptive_{kind.lower()}_pool{rank}d"
    return found


def call_of_module(part: torch.nn.Module, data: torch.fx.Node) -> Named | None:
    """What a module of ``torch.nn`` does to its one input, None where no reader knows it."""
    name = _modules().get(type(part))
    if name is None or "forward" in vars(part):
        return None
    given = {field: getattr(part, field) for field in _ARGUMENTS[name][1:] if hasattr(part, field)}
    if name == "prelu":
        given = {}  # its weight does not matter
    return ("relu" if name == "prelu" else name, {"self": data, **given}) if _plain(name, given) else None


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
    if schema_writes(node) is not None:
        return schema_writes(node) or []
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


def schema_writes(node: torch.fx.Node) -> list[torch.fx.Node] | None:
    """What an ATen operator says it writes to; None for any other target."""
    from convbn.fuse.frontends.torch.calls.schema import schema_of, written_by

    return None if schema_of(node) is None else list(written_by(node))


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
