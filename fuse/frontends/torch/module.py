"""PyTorch modules: an ``nn.Module`` in, a copy of the same class out."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from convbn.errors import BadInputError, UsageError
from convbn.fuse.frontends.frontend import Applied, Capture
from convbn.fuse.frontends.torch.copies import checked, duplicate, first_line
from convbn.fuse.frontends.torch.drawing import Drawing, innermost
from convbn.fuse.frontends.torch.locks import add_locks
from convbn.fuse.frontends.torch.module_edit import edit_module
from convbn.fuse.frontends.torch.preparation import Prepared, prepare
from convbn.fuse.frontends.torch.program import draw_program, hidden_batchnorms
from convbn.fuse.frontends.torch.traced import draw_traced, trace
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


def capture_module(module: torch.nn.Module, example_inputs: tuple[Any, ...] | None = None) -> Capture:
    """Take the dataflow of a module.

    A module in ``DataParallel``, ``DistributedDataParallel`` or ``torch.compile`` is taken out of it. Forward
    hooks run once, on tensors without numbers.

    Args:
        module: it is not changed; its training flags decide which BatchNorms normalise by the batch.
        example_inputs: positional arguments of its forward. Without them no shape is known.

    Returns:
        The capture; its ``apply`` gives a copy of the same class, forward and parameter names, in which a
        folded BatchNorm is ``nn.Identity`` (or the activation that was part of it) and its layer has a bias.

    Raises:
        BadInputError: the module has no numbers, or cannot be copied or captured; the text says why.
        UsageError: the example inputs are no tuple.
    """
    begun = time.perf_counter()
    if example_inputs is not None and not isinstance(example_inputs, tuple):
        raise UsageError(
            f"example_inputs is a {type(example_inputs).__name__}, not a tuple",
            hint="write (x,) for one input",
        )
    inner = checked(module)
    prepared = prepare(duplicate(inner, share=True))
    paths = _first_names(prepared.module)
    unreachable: list[Kept] = []
    if example_inputs is None:
        graph = trace(prepared.module)
        drawing = draw_traced(prepared, graph, paths=paths)
    else:
        program = _export(prepared.module, example_inputs)
        graph = program.graph
        drawing = draw_program(program, absent=prepared.trials, cloneable=False, paths=paths)
        unreachable.extend(hidden_batchnorms(program))
    unreachable.extend(_unreached(prepared, drawing, {kept.name for kept in unreachable}))
    add_locks(prepared, drawing, graph)

    def apply(edits: Sequence[Edit]) -> Applied:
        gone = sum(isinstance(edit, Bypass) for edit in edits)
        return Applied(edit_module(inner, edits), drawing.nodes - gone)

    return Capture(
        view=drawing.view,
        nodes=drawing.nodes,
        apply=apply,
        unreachable=unreachable,
        how=_TRACED if example_inputs is None else _EXPORTED,
        seconds=time.perf_counter() - begun,
    )


def _export(module: torch.nn.Module, example_inputs: tuple[Any, ...]) -> torch.export.ExportedProgram:
    import torch

    try:
        # A region under no_grad is part of the main graph when gradients are off anyway.
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about this copy, which nobody else sees
            return torch.export.export(module, example_inputs, strict=False)
    except Exception as error:  # whatever the user's forward raises on tensors without numbers
        raise BadInputError(
            f"torch.export could not capture its forward ({first_line(error)})",
            source=type(module).__name__,
            hint="run it on the example inputs first, or export it yourself and fold the program",
        ) from error


def _first_names(module: torch.nn.Module) -> dict[str, str]:
    """The first name of each module, by all its names."""
    first = {id(part): path for path, part in module.named_modules()}
    return {path: first[id(part)] for path, part in module.named_modules(remove_duplicate=False)}


def _unreached(prepared: Prepared, drawing: Drawing, hidden: set[str]) -> Iterator[Kept]:
    """BatchNorm modules that stand behind no node of the view."""
    from torch.nn.modules.batchnorm import _BatchNorm

    shown = {innermost(node.handle) for node in drawing.view.batchnorms()} | hidden
    for path, part in prepared.module.named_modules():
        if not isinstance(part, _BatchNorm) or path in shown:
            continue
        if path in prepared.called:
            yield Kept(path, Reason.NOT_A_MODULE, f"the forward of {type(part).__name__} calls no batch_norm")
        else:
            yield Kept(path, Reason.NEVER_CALLED, "the forward that was captured does not call it")
