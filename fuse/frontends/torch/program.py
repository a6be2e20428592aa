"""Exported programs: an ``ExportedProgram`` in, another one out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convbn.errors import BadInputError
from convbn.fuse.frontends.frontend import Applied, Capture
from convbn.fuse.frontends.torch.aten import map_aten, written_nodes
from convbn.fuse.frontends.torch.drawing import Drawing, Source, draw, innermost
from convbn.fuse.plan.plan import Kept
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.edits import Edit
from convbn.fuse.view.ops import BatchNorm

if TYPE_CHECKING:
    import torch
    import torch.fx
    from torch.export import ExportedProgram

__all__ = ["capture_program", "draw_program", "hidden_batchnorms", "state_names", "state_of"]


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
    drawing = draw_program(program)

    def apply(edits: Sequence[Edit]) -> Applied:
        from convbn.fuse.frontends.torch.program_edit import edit_program

        edited = edit_program(program, edits)
        return Applied(edited, draw_program(edited).nodes)

    return Capture(
        view=drawing.view,
        nodes=drawing.nodes,
        apply=apply,
        unreachable=hidden_batchnorms(program),
        how="Read from the exported program's own graph: proven for every input that it accepts.",
        seconds=time.perf_counter() - begun,
    )


def draw_program(program: ExportedProgram, **facts: Any) -> Drawing:
    """The drawing of a program's main graph; ``facts`` are further fields of :class:`Source`."""
    names = state_names(program)
    signature = program.graph_signature
    written = {names[node] for node in written_nodes(program.graph) if node in names}
    written |= set(signature.buffers_to_mutate.values())
    written |= set(getattr(signature, "parameters_to_mutate", {}).values())
    refused = {
        name: Refusal(Reason.WEIGHT_NOT_CONSTANT, f"'{name}' is written to while the model runs")
        for name in written
    }
    return draw(Source(program.graph, state_of(program), names, map_aten, refused=refused, **facts))


def state_names(program: ExportedProgram) -> dict[torch.fx.Node, str]:
    """The placeholders that stand for a parameter, buffer or constant, and its name."""
    from torch.export.graph_signature import InputKind

    lifted = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    placeholders = program.graph.find_nodes(op="placeholder")
    specs = program.graph_signature.input_specs
    return {
        node: str(spec.target)
        for node, spec in zip(placeholders, specs, strict=True)
        if spec.kind in lifted and spec.target is not None
    }


def state_of(program: ExportedProgram) -> Mapping[str, torch.Tensor]:
    """Every tensor a program carries, by name."""
    return {**program.constants, **program.state_dict}


def hidden_batchnorms(program: ExportedProgram) -> list[Kept]:
    """BatchNorms in the sub-graphs of control flow, which the view does not show, each once."""
    # A sub-graph calls what it is given by the name it has outside.
    names = {node.name: name for node, name in state_names(program).items()}
    found: dict[str, Kept] = {}
    for where, graph in _subgraphs(program.graph_module):
        for node in graph.nodes:
            mapped = map_aten(node)
            if mapped is None or not isinstance(mapped.op, BatchNorm):
                continue
            given = (
                names.get(slot.name, "") for slot in mapped.slots[1:] if not isinstance(slot, str | None)
            )
            owner = next((name.rpartition(".")[0] for name in given if name), "")
            name = innermost(node) or owner or f"{where}.{node.name}"
            detail = f"it stands in the sub-graph '{where}' of a branch, a loop or a grad or autocast region"
            found.setdefault(name, Kept(name, Reason.OTHER_SCOPE, detail))
    return list(found.values())


def _subgraphs(module: torch.fx.GraphModule, scope: str = "") -> Iterator[tuple[str, torch.fx.Graph]]:
    import torch.fx

    for name, child in module.named_children():
        if isinstance(child, torch.fx.GraphModule):
            yield f"{scope}{name}", child.graph
            yield from _subgraphs(child, f"{scope}{name}.")
