"""PyTorch modules: an ``nn.Module`` in, a copy of the same class out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from convbn.common.text import named_line
from convbn.errors import BadInputError, UsageError
from convbn.fuse.frontends.frontend import Applied, Capture
from convbn.fuse.frontends.torch.capture.dispatch_trace import (
    DISPATCH_TRACED,
    cloned_inputs,
    dispatch_graph,
    record,
)
from convbn.fuse.frontends.torch.capture.program import hidden_batchnorms, program_graph
from convbn.fuse.frontends.torch.capture.regions import without_regions
from convbn.fuse.frontends.torch.edit.module import edit_module
from convbn.fuse.frontends.torch.graph_view.build import CapturedGraph, GraphView, build_view, innermost
from convbn.fuse.frontends.torch.limits.edit_constraints import constrain_edits
from convbn.fuse.frontends.torch.materialize.called_layers import with_layers
from convbn.fuse.frontends.torch.materialize.weights import materialized
from convbn.fuse.frontends.torch.modules.copies import checked, duplicate
from convbn.fuse.frontends.torch.modules.instrument import Instrumented, instrument
from convbn.fuse.frontends.torch.modules.isolation import exclusive_capture, isolated
from convbn.fuse.frontends.torch.modules.keywords import called, split
from convbn.fuse.frontends.torch.modules.registered_convs import with_registered
from convbn.fuse.frontends.torch.tracing.trace import trace, traced_graph
from convbn.fuse.plan.plan import Kept
from convbn.fuse.refusal import Reason
from convbn.fuse.view.edits import Bypass, Edit

if TYPE_CHECKING:
    import torch
    import torch.fx

__all__ = ["capture_module"]

_EXPORTED = (
    "Captured by torch.export with the example inputs, in the training flags the module has: proven for "
    "every input that takes the same way through the forward."
)
_TRACED = (
    "Captured by symbolic tracing, without inputs: proven wherever a layer's own code settles the rank; "
    "example inputs would settle the others."
)


def capture_module(
    module: torch.nn.Module, example_inputs: tuple[Any, ...] | None = None, *, materialize: bool = False
) -> Capture:
    """Take the dataflow of a module.

    A module in ``DataParallel``, ``DistributedDataParallel`` or ``torch.compile`` is taken out of it. Forward
    hooks run once, on tensors without numbers.

    Args:
        module: it is not changed; its training flags decide which BatchNorms normalise by the batch.
        example_inputs: arguments of its forward, those by name as Keywords at the end. Without them no shape is
            known.
        materialize: make parameters of the weights that it computes.

    Returns:
        The capture; its ``apply`` gives a copy of the same class, forward and parameter names, in which a
        folded BatchNorm is ``nn.Identity`` (or the activation that was part of it) and its layer has a bias.

    Raises:
        BadInputError: the module has no numbers, or cannot be copied or captured; the text says why.
        UsageError: the example inputs are no tuple.
    """
    if example_inputs is not None and not isinstance(example_inputs, tuple):
        raise UsageError(
            f"example_inputs is a {type(example_inputs).__name__}, not a tuple",
            hint="write (x,) for one input",
        )
    with exclusive_capture():
        inner = checked(module)
        inner, computed = materialized(inner) if materialize else (inner, ())
        inner = with_layers(inner)
        capture = _capture(inner, example_inputs)
        if computed:
            names = ", ".join(f"'{path or 'the model'}'" for path in computed[:3])
            more = ", …" if len(computed) > 3 else ""
            capture.notes.append(
                f"computed weights of {len(computed)} modules are parameters now: {names}{more}"
            )
        return capture


def _capture(inner: torch.nn.Module, example_inputs: tuple[Any, ...] | None) -> Capture:
    begun = time.perf_counter()
    taken = _traced(inner) if example_inputs is None else _exported(inner, example_inputs)
    own = taken.captured
    mapper = with_registered(own.mapper, taken.instrumented.parts, own.names, innermost)
    taken = replace(taken, captured=replace(own, mapper=mapper))
    graph_view = build_view(taken.captured)
    operators = graph_view.view.operators()
    unreachable = [*taken.unreachable, *_unreached(taken, graph_view)]

    @cache
    def as_written() -> CapturedGraph | None:
        if taken.traced:
            return taken.captured
        try:
            return _traced(inner).captured
        except BadInputError:
            return None

    constrain_edits(taken.instrumented, graph_view, taken.captured, as_written)

    def apply(edits: Sequence[Edit]) -> Applied:
        gone = Counter(edit.node.op.describe() for edit in edits if isinstance(edit, Bypass))
        return Applied(edit_module(inner, edits), operators - gone)

    return Capture(
        view=graph_view.view,
        operators=operators,
        apply=apply,
        unreachable=unreachable,
        how=taken.how,
        seconds=time.perf_counter() - begun,
    )


@dataclass(frozen=True, slots=True)
class _Taken:
    """A module's graph, taken in one of three ways.

    Attributes:
        instrumented: the copy that was captured.
        captured: its graph.
        how: what the capture proves, as the report says it.
        unreachable: BatchNorms that the graph does not show.
        traced: whether the graph comes from symbolic tracing.
    """

    instrumented: Instrumented
    captured: CapturedGraph
    how: str
    unreachable: tuple[Kept, ...] = ()
    traced: bool = False


def _traced(module: torch.nn.Module) -> _Taken:
    instrumented = instrument(duplicate(module, share=True), trust_shapes=False)
    return _Taken(instrumented, traced_graph(instrumented, trace(instrumented)), _TRACED, traced=True)


def _exported(
    module: torch.nn.Module, example_inputs: tuple[Any, ...], *, trust_shapes: bool = True
) -> _Taken:
    """By torch.export; where that fails by tracing, and where that fails too from one run."""
    import torch

    instrumented = instrument(duplicate(module, share=True), trust_shapes=trust_shapes)
    try:
        # Gradients are off, so a region under no_grad is part of the main graph.
        places, keywords = split(example_inputs)
        program = torch.export.export(instrumented.module, places, keywords, strict=False)
    except Exception as error:  # whatever the user's forward raises on tensors without numbers
        if trust_shapes and instrumented.guessed:
            return _exported(module, example_inputs, trust_shapes=False)
        return _without_export(module, example_inputs, named_line(error))
    shown = without_regions(program.graph_module, autocast=True)
    instrumented.settle_paths(shown.graph)
    captured = program_graph(program, shown.graph, **instrumented.facts)
    return _Taken(instrumented, captured, _EXPORTED, tuple(hidden_batchnorms(program, shown)))


def _without_export(module: torch.nn.Module, example_inputs: tuple[Any, ...], cause: str) -> _Taken:
    _check_run(module, example_inputs)
    try:
        taken = _traced(module)
    except BadInputError:
        # With tensors of its own: code that reaches back to the original reads none of them.
        instrumented = instrument(duplicate(module, share=False), trust_shapes=False)
        captured = dispatch_graph(instrumented, record(instrumented.module, example_inputs))
        return _Taken(instrumented, captured, DISPATCH_TRACED.format(cause=cause))
    return replace(taken, how=f"{_TRACED} torch.export could not take the forward ({cause}).")


def _check_run(module: torch.nn.Module, example_inputs: tuple[Any, ...]) -> None:
    """Tell a forward that no tracer takes from one that does not run on these inputs at all."""
    try:
        called(isolated(module), cloned_inputs(example_inputs))
    except Exception as error:  # whatever the user's forward raises
        raise BadInputError(
            f"its forward fails on the example inputs ({named_line(error)})",
            source=type(module).__name__,
            hint="give inputs that it takes",
        ) from error


def _unreached(taken: _Taken, graph_view: GraphView) -> Iterator[Kept]:
    """BatchNorm modules that stand behind no node of the view."""
    from torch.nn.modules.batchnorm import _BatchNorm

    shown = {innermost(node.handle) for node in graph_view.view.batchnorms()}
    shown.update(kept.name for kept in taken.unreachable)
    for path, part in taken.instrumented.module.named_modules():
        if not isinstance(part, _BatchNorm) or path in shown:
            continue
        if path in taken.instrumented.called:
            yield Kept(path, Reason.NOT_A_MODULE, f"the forward of {type(part).__name__} calls no batch_norm")
        else:
            yield Kept(path, Reason.NEVER_CALLED, "the forward that was captured does not call it")
