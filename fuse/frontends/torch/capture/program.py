"""Exported programs: an ``ExportedProgram`` in, another one out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convbn.errors import BadInputError
from convbn.fuse.frontends.frontend import Applied, Capture
from convbn.fuse.frontends.torch.calls.aten import map_aten, written_nodes
from convbn.fuse.frontends.torch.capture.functionalize import functional_graph, hides_views, writers
from convbn.fuse.frontends.torch.capture.regions import has_autocast, without_regions
from convbn.fuse.frontends.torch.graph_view.build import (
    CapturedGraph,
    build_view,
    innermost,
    written_while_running,
)
from convbn.fuse.frontends.torch.graph_view.constants import computed_in, reshaped_in
from convbn.fuse.frontends.torch.modules.isolation import exclusive_capture
from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.plan.plan import Kept
from convbn.fuse.refusal import Reason
from convbn.fuse.view.edits import Edit

if TYPE_CHECKING:
    import torch
    import torch.fx
    from torch.export import ExportedProgram

__all__ = ["capture_program", "hidden_batchnorms", "program_graph", "state_names", "state_of"]


def capture_program(program: ExportedProgram) -> Capture:
    """Take the dataflow of an exported program.

    Args:
        program: as ``torch.export.export`` or ``torch.export.load`` gives it; it is not changed.

    Returns:
        The capture; its ``apply`` gives a new program, which shares the tensors that no edit touches.

    Raises:
        BadInputError: the object is no exported program.
    """
    from torch.export import ExportedProgram

    if not isinstance(program, ExportedProgram):
        raise BadInputError(
            f"{type(program).__name__} is not an ExportedProgram", hint="make one with torch.export.export"
        )
    begun = time.perf_counter()
    functional, module, pure = _functional(program)
    graph_view = build_view(program_graph(functional, module.graph, pure=pure))

    def apply(edits: Sequence[Edit]) -> Applied:
        from convbn.fuse.frontends.torch.edit.program import edit_program

        edited = edit_program(functional, module, edits)
        return Applied(edited, build_view(program_graph(edited)).view.operators())

    return Capture(
        view=graph_view.view,
        operators=graph_view.view.operators(),
        apply=apply,
        unreachable=hidden_batchnorms(functional, module),
        how=_HOW if pure else f"{_HOW} It writes to tensors in place in a way that keeps most folds out.",
        seconds=time.perf_counter() - begun,
    )


_HOW = "Read from the exported program's own graph: proven for every input that it accepts."


def _functional(program: ExportedProgram) -> tuple[ExportedProgram, torch.fx.GraphModule, bool]:
    """The program, a graph of it in which nothing is written in place, and whether there is such a graph."""
    start = without_regions(program.graph_module)
    own = state_names(program, start.graph)
    if not has_autocast(start):  # lowered, a region is calls and casts of the main graph
        if not writers(start.graph, set(own)):
            return program, start, True
        module = functional_graph(start, {node.name for node in own})
        if module is not None:
            return program, module, True
    if hides_views(start.graph, set(own)):
        return program, start, False
    try:
        with exclusive_capture():
            lowered = program.run_decompositions({})
    except Exception:  # whatever the tracer meets in the user's program; folds that need no more are left
        return program, start, not writers(start.graph, set(own))
    module = without_regions(lowered.graph_module)
    return lowered, module, not writers(module.graph, set(state_names(lowered, module.graph)))


def program_graph(
    program: ExportedProgram, graph: torch.fx.Graph | None = None, **facts: Any
) -> CapturedGraph:
    """A program's main graph and what is known about it.

    Args:
        program: with the tensors.
        graph: the one to take, if it is not the program's own; with the same placeholders.
        facts: further fields of :class:`CapturedGraph`.
    """
    graph = program.graph if graph is None else graph
    names = state_names(program, graph)
    signature = program.graph_signature
    written = {names[node] for node in written_nodes(graph) if node in names}
    written |= set(signature.buffers_to_mutate.values())
    written |= set(getattr(signature, "parameters_to_mutate", {}).values())
    refused = {name: written_while_running(name) for name in written}
    state = state_of(program)
    if facts.get("graph_form", True):
        facts["computed"] = computed_in({node: state[name] for node, name in names.items()})
    else:
        facts["computed"] = reshaped_in
    return CapturedGraph(graph, state, names, map_aten, refused=refused, **facts)


def state_names(program: ExportedProgram, graph: torch.fx.Graph | None = None) -> dict[torch.fx.Node, str]:
    """The placeholders that stand for a parameter, buffer or constant, and its name."""
    from torch.export.graph_signature import InputKind

    lifted = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    placeholders = (program.graph if graph is None else graph).find_nodes(op="placeholder")
    specs = program.graph_signature.input_specs
    return {
        node: str(spec.target)
        for node, spec in zip(placeholders, specs, strict=True)
        if spec.kind in lifted and spec.target is not None
    }


def state_of(program: ExportedProgram) -> Mapping[str, torch.Tensor]:
    """Every tensor a program carries, by name."""
    return {**program.constants, **program.state_dict}


def hidden_batchnorms(program: ExportedProgram, module: torch.fx.GraphModule) -> list[Kept]:
    """BatchNorms in the sub-graphs of control flow, which the view does not show, each once."""
    # A sub-graph calls what it is given by the name it has outside.
    names = {node.name: name for node, name in state_names(program).items()}
    found: dict[str, Kept] = {}
    for where, graph in _subgraphs(module):
        for node in graph.nodes:
            mapped = map_aten(node)
            if mapped is None or not isinstance(mapped.op, BatchNorm):
                continue
            given = (names.get(slot.name, "") for slot in mapped.slots[1:] if isinstance(slot, type(node)))
            owner = next((name.rpartition(".")[0] for name in given if name), "")
            name = innermost(node) or owner or f"{where}.{node.name}"
            detail = f"it stands in the sub-graph '{where}' of a branch, a loop or an autocast region"
            found.setdefault(name, Kept(name, Reason.OTHER_SCOPE, detail))
    return list(found.values())


def _subgraphs(module: torch.fx.GraphModule, scope: str = "") -> Iterator[tuple[str, torch.fx.Graph]]:
    import torch.fx

    for name, child in module.named_children():
        if isinstance(child, torch.fx.GraphModule):
            yield f"{scope}{name}", child.graph
            yield from _subgraphs(child, f"{scope}{name}.")
