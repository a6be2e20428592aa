"""What is measured beside the original: convbn's forms of a fold, its peers, and an experiment with cuDNN's kernels."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from convbn.bench.cases.variants import at_batch, folded_variant, original_variant
from convbn.bench.runtimes.base import Variant
from convbn.fuse.fold import fold
from convbn.fuse.frontends.torch.edit.identities import new_identities, take_out
from gpu.networks import REPARAMETERISABLE, subject

if TYPE_CHECKING:
    from convbn.export.loading.source_model import SourceModel

__all__ = ["Prepared", "cudnn_epilogues", "onnx_variants", "torch_variants"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Prepared:
    """A network's variants.

    Attributes:
        subject: the network with its inputs.
        variants: the original first.
        fold: report of the fold.
        notes: what was not made, and why; how many sites the experiment found.
    """

    subject: SourceModel
    variants: tuple[Variant, ...]
    fold: dict[str, Any]
    notes: dict[str, object]


def torch_variants(name: str, batch: int, *, peers: bool) -> Prepared:
    """The PyTorch forms of a network.

    Args:
        name: of the network.
        batch: size of axis 0.
        peers: with all variants; without, the original and the folded module.
    """
    made = at_batch(subject(name), batch)
    variants, report, notes = _modules(name, peers)
    return Prepared(
        made,
        tuple(replace(variant, example_inputs=made.example_inputs) for variant in variants),
        report,
        notes,
    )


def onnx_variants(name: str, batch: int, runtime: str) -> Prepared:
    """The original and the folded ONNX form of a network.

    Args:
        name: of the network.
        batch: size of axis 0.
        runtime: that takes the ONNX form, or an engine built from it.

    Raises:
        ConvBNError: the network cannot be exported here.
        ModuleNotFoundError: onnx-graphsurgeon or onnxscript is not installed.
    """
    made = at_batch(subject(name), batch)
    original = original_variant(made, (runtime,))
    folded, report = folded_variant(original, made)
    return Prepared(
        made, tuple(replace(variant, module=None) for variant in (original, folded)), report.to_dict(), {}
    )


@cache
def _modules(name: str, peers: bool) -> tuple[tuple[Variant, ...], dict[str, Any], dict[str, object]]:
    made = subject(name)
    original = original_variant(made, ("torch-cpu",))
    folded, report = folded_variant(original, made)
    assert isinstance(original.module, nn.Module)
    assert isinstance(folded.module, nn.Module)
    before, after = original.module, folded.module
    variants, notes = [original, folded], {}
    program = cache(partial(_program, before, made))
    further: dict[str, Callable[[], nn.Module]] = {
        "folded, no Identity": lambda: _without_identities(before, after),
        "folded program": program,
        "folded program + cuDNN epilogues": lambda: _epilogues(copy.deepcopy(program()), notes),
        "torch.fx fuse": lambda: _fx_fused(before),
    }
    if name in REPARAMETERISABLE:
        further["timm reparameterize"] = lambda: _timm_merged(before)
    for label, make in further.items() if peers else ():
        try:
            variants.append(Variant(label, module=make()))
        except Exception as error:  # a peer may refuse a network with whatever its code meets
            notes[label] = f"{type(error).__name__}: {str(error)[:200]}"
    return tuple(variants), report.to_dict(), notes


def _without_identities(before: nn.Module, after: nn.Module) -> nn.Module:
    module = copy.deepcopy(after)
    if take_out(module, new_identities(before, after)) == new_identities(before, after):
        raise ValueError("no Identity can be taken out")
    return module


def _program(module: nn.Module, made: SourceModel) -> nn.Module:
    """The fold in graph form, which may merge branches; exported for any batch."""
    assert made.example_inputs is not None
    # At a batch of 1 torch.export would take the 1 for a constant.
    examples = tuple(torch.cat([value, value]) for value in made.example_inputs)
    shapes = tuple({0: torch.export.Dim.AUTO} for _ in examples)
    program = torch.export.export(module, examples, dynamic_shapes=shapes)
    folded: nn.Module = fold(program).model.module(check_guards=False)
    return folded


def _fx_fused(module: nn.Module) -> nn.Module:
    from torch.fx.experimental.optimization import fuse

    return fuse(copy.deepcopy(module).eval())


def _timm_merged(module: nn.Module) -> nn.Module:
    from timm.utils.model import reparameterize_model

    merged: nn.Module = reparameterize_model(copy.deepcopy(module)).eval()
    return merged


def _epilogues(module: nn.Module, notes: dict[str, object]) -> nn.Module:
    module, found = cudnn_epilogues(module)
    notes["cuDNN epilogues"] = found
    if not found:
        raise ValueError("no convolution with a bias and a ReLU behind it")
    return module


def cudnn_epilogues(module: nn.Module) -> tuple[nn.Module, int]:
    """EXPERIMENT: Conv (+ Add) + ReLU of a folded program as cuDNN's one kernel for all of it.

    Eager PyTorch adds the bias that a fold makes in a kernel of its own.

    Args:
        module: of a folded exported program; it is changed.

    Returns:
        The module, and how many sites were found.
    """
    graph, found = module.graph, 0  # type: ignore[union-attr]  # a GraphModule
    for relu in list(graph.nodes):
        if relu.target not in (aten.relu.default, aten.relu_.default):
            continue
        before, other = relu.args[0], None
        if (
            before.target in (aten.add.Tensor, aten.add_.Tensor)
            and len(before.users) == 1
            and not before.kwargs
        ):
            # In place it is the first that is overwritten, which must be nobody else's.
            pairs = [before.args[:2]] + ([before.args[1::-1]] if before.target is aten.add.Tensor else [])
            before, other = next(((a, b) for a, b in pairs if _plain(a) and _alike(a, b)), (None, None))
        if before is None or not _plain(before):
            continue
        x, weight, bias, stride, padding, dilation, groups = _arguments(before)
        with graph.inserting_before(relu):
            rest = (stride, padding, dilation, groups)
            if other is None:
                new = graph.call_function(_conv_relu, (x, weight, bias, *rest))
            else:
                new = graph.call_function(_conv_add_relu, (x, weight, other, bias, *rest))
        new.meta = dict(relu.meta)
        relu.replace_all_uses_with(new)
        graph.erase_node(relu)
        found += 1
    graph.eliminate_dead_code()
    module.recompile()  # type: ignore[operator]  # a GraphModule
    return module, found


def _plain(node: Any) -> bool:
    """Whether it is a convolution over two axes with a bias, which one node reads."""
    if getattr(node, "target", None) is not aten.conv2d.default or len(node.users) != 1:
        return False
    return _arguments(node)[2] is not None


def _alike(a: Any, b: Any) -> bool:
    shapes = [node.meta["val"].shape if isinstance(node, torch.fx.Node) else None for node in (a, b)]
    return shapes[0] is not None and shapes[1] is not None and tuple(shapes[0]) == tuple(shapes[1])


def _arguments(node: Any) -> tuple[Any, ...]:
    """Input, weight, bias, stride, padding, dilation and groups of a convolution; a fold writes its bias by name."""
    usual = {
        "input": None,
        "weight": None,
        "bias": None,
        "stride": 1,
        "padding": 0,
        "dilation": 1,
        "groups": 1,
    }
    given = usual | dict(zip(usual, node.args, strict=False)) | node.kwargs
    pairs = (given[name] for name in ("stride", "padding", "dilation"))
    two = ([value] * 2 if isinstance(value, int) else list(value) * (2 // len(value)) for value in pairs)
    return (given["input"], given["weight"], given["bias"], *two, given["groups"])


def _conv_relu(x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    if x.is_cuda:
        return torch.cudnn_convolution_relu(x, weight, bias, stride, padding, dilation, groups)
    return torch.relu(torch.conv2d(x, weight, bias, stride, padding, dilation, groups))


def _conv_add_relu(
    x: Any, weight: Any, z: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Any:
    if x.is_cuda:
        return torch.cudnn_convolution_add_relu(x, weight, z, 1.0, bias, stride, padding, dilation, groups)
    return torch.relu(operator.add(torch.conv2d(x, weight, bias, stride, padding, dilation, groups), z))
