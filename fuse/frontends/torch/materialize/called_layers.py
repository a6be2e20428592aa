"""Layers made of the calls in a graph module, such as ``torch.export`` gives with ``program.module()``.

Such a module calls ATen's convolutions, products and BatchNorms itself, on tensors that lie in modules without a class.
With layers of ``torch.nn`` in the place of these a BatchNorm is a module that can go, and a layer can be given a bias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convbn.fuse.frontends.torch.calls.schema import arguments, operator_name
from convbn.fuse.frontends.torch.materialize.plain_layers import built
from convbn.fuse.frontends.torch.modules.copies import duplicate

if TYPE_CHECKING:
    import torch
    import torch.fx

__all__ = ["make_layers", "with_layers"]

_PRODUCTS = ("linear", *(f"conv{form}{rank}d" for form in ("", "_transpose") for rank in (1, 2, 3)))
_TENSORS = ("weight", "bias", "running_mean", "running_var")


def with_layers(module: torch.nn.Module) -> torch.nn.Module:
    """A copy whose graph modules call layers; the module itself, which is not changed, where they would call none."""
    if not any(_calls(graph) for graph in _graphs(module)):
        return module
    copied = duplicate(module, share=True)
    make_layers(copied)
    return copied


def make_layers(module: torch.nn.Module) -> None:
    """Let the graph modules in a module call layers, in place; names of tensors stay."""
    for graph in _graphs(module):
        for path, nodes in _calls(graph).items():
            parent, _, name = path.rpartition(".")
            holder = graph.get_submodule(parent)
            holder._modules[name] = _layer(graph.get_submodule(path), nodes[0])
            for node in nodes:
                given = arguments(node)
                with graph.graph.inserting_before(node):
                    call = graph.graph.call_module(path, (given["input"],))
                call.meta.update(node.meta)
                node.replace_all_uses_with(call)
                graph.graph.erase_node(node)
        for read in graph.graph.find_nodes(op="get_attr"):
            if not read.users:
                graph.graph.erase_node(read)
        graph.recompile()


def _graphs(module: torch.nn.Module) -> list[torch.fx.GraphModule]:
    import torch.fx

    return [part for part in module.modules() if isinstance(part, torch.fx.GraphModule)]


def _calls(graph: torch.fx.GraphModule) -> dict[str, list[torch.fx.Node]]:
    """The calls of each module without a class that is a layer: all of them with the same settings."""
    found: dict[str, list[torch.fx.Node]] = {}
    for node in graph.graph.nodes:
        path = _owner(graph, node)
        if path is not None:
            found.setdefault(path, []).append(node)
    return {path: nodes for path, nodes in found.items() if all(_alike(nodes[0], node) for node in nodes)}


def _owner(graph: torch.fx.GraphModule, node: torch.fx.Node) -> str | None:
    """The module without a class that holds all tensors of a layer's call, under a layer's names for them."""
    import torch

    name = operator_name(node).removeprefix("aten::")
    given = arguments(node)
    if name == "batch_norm":
        rank = len(getattr(node.meta.get("val"), "shape", ()))
        if given["training"] or given["running_mean"] is None or rank not in (2, 3, 4, 5):
            return None
    elif name not in _PRODUCTS:
        return None
    read = {key: given[key] for key in _TENSORS if isinstance(given.get(key), type(node))}
    if any(one.op != "get_attr" for one in read.values()):
        return None
    paths = {str(one.target).rpartition(".")[0] for one in read.values()}
    path = paths.pop() if paths else ""
    if not path or paths or any(one.target != f"{path}.{key}" for key, one in read.items()):
        return None
    owner = graph.get_submodule(path)
    return path if type(owner) is torch.nn.Module and not owner._modules else None


def _alike(one: torch.fx.Node, other: torch.fx.Node) -> bool:
    """Whether two calls are of one layer."""
    first, second = ({**arguments(node), "input": None} for node in (one, other))
    targets = [
        {key: getattr(value, "target", value) for key, value in given.items()} for given in (first, second)
    ]
    return one.target is other.target and targets[0] == targets[1]


def _layer(owner: torch.nn.Module, node: torch.fx.Node) -> torch.nn.Module:
    from torch import nn

    given = arguments(node)
    held: dict[str, Any] = {**owner._parameters, **owner._buffers}
    read = {key: held[key] for key in _TENSORS if isinstance(given.get(key), type(node))}
    name = operator_name(node).removeprefix("aten::")
    if name != "batch_norm":
        layer = built(owner, name, {**given, "weight": read["weight"], "bias": read.get("bias")})
    else:
        kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[
            len(node.meta["val"].shape) - 2
        ]
        size = read["running_mean"].numel()
        layer = kind(size, given["eps"], given["momentum"], affine=False, device="meta").eval()
        layer.affine = "weight" in read
    layer.training = owner.training and name != "batch_norm"
    layer._buffers.clear()
    layer._parameters.update(dict.fromkeys(("weight", "bias")))
    for key, tensor in held.items():
        (layer._parameters if key in owner._parameters else layer._buffers)[key] = tensor
    return layer
