"""Model-local functions that a BatchNorm stands in or beside: written out, so that the algebra sees through them.

All other functions stay as they are (:mod:`convbn.fuse.frontends.onnx.local_functions.calls` says which these are), and
so do all of them where nothing is folded in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from convbn.fuse.frontends.onnx.local_functions.calls import callees_first, concerned
from convbn.fuse.frontends.onnx.local_functions.inliner import FunctionKey, Inliner, called, key_of
from convbn.fuse.frontends.onnx.model.graphs import names_of, nodes_below

if TYPE_CHECKING:
    import onnx

__all__ = ["Inlined", "inline_functions"]

_MOST_NODES = 100_000
_MOST_BYTES = 1 << 28
_DEEPEST = 64
"""What writing out may come to: functions that call functions twice each are how a small file becomes a huge graph."""


@dataclass(frozen=True, slots=True)
class Inlined:
    """What was done to a model's functions.

    Attributes:
        notes: for the report, in sentences.
        undo: puts the model back as it came; None if nothing was changed.
        explosive: whether following every call, as onnx's shape inference does, would have no end.
    """

    notes: list[str] = field(default_factory=list)
    undo: Callable[[], None] | None = None
    explosive: bool = False


def inline_functions(model: onnx.ModelProto) -> Inlined:
    """Write out the functions of ``model``, in place, that have to do with a BatchNorm.

    Raises:
        BadInputError: a function calls itself.
    """
    if not model.functions:
        return Inlined()
    functions = {key_of(function): function for function in model.functions}
    order = callees_first(functions)
    wanted = concerned(model, functions)
    notes = []
    inlinable = {}
    for key in order:
        if key not in wanted:
            continue
        misfit = _misfit(functions[key], model, functions)
        if misfit is None:
            inlinable[key] = functions[key]
        else:
            notes.append(f"the model-local function {key[1]} stays a function: {misfit}")
    explosive = _excess(model, functions, order) is not None
    if not inlinable:
        return Inlined(notes, explosive=explosive)
    if (excess := _excess(model, inlinable, order)) is not None:
        notes.append(f"model-local functions stay functions: written out they would {excess}")
        return Inlined(notes, explosive=explosive)
    undo = _restorer(model)
    inliner = Inliner(inlinable, names_of(model))
    inliner.rewrite(model.graph)
    if not inliner.calls:
        return Inlined(notes, explosive=explosive)
    versions = {entry.domain for entry in model.opset_import}
    for entry in [e for key in inliner.calls for e in functions[key].opset_import]:
        if entry.domain not in versions:
            versions.add(entry.domain)
            model.opset_import.append(entry)
    _drop_uncalled(model, inlinable)
    calls = ", ".join(f"{key[1]} ({count}×)" for key, count in sorted(inliner.calls.items()))
    notes.append(f"model-local functions that a BatchNorm stands in or beside were written out: {calls}")
    return Inlined(notes, undo, explosive)


def _misfit(
    function: onnx.FunctionProto, model: onnx.ModelProto, functions: dict[FunctionKey, onnx.FunctionProto]
) -> str | None:
    """Why the function's nodes would mean something else in the model; None if they would not."""
    import onnx

    versions = {_default(entry.domain): entry.version for entry in model.opset_import}
    for entry in function.opset_import:
        domain = _default(entry.domain)
        here = versions.get(domain, entry.version)
        if here == entry.version:
            continue
        for node in nodes_below(function.node):
            if _default(node.domain) != domain or called(node) in functions:
                continue
            try:
                since = {
                    onnx.defs.get_schema(node.op_type, version, domain).since_version
                    for version in (here, entry.version)
                }
            except onnx.defs.SchemaError:
                since = {here, entry.version}
            if len(since) > 1:
                return (
                    f"its {node.op_type} is that of opset {entry.version}, the model's that of opset {here}"
                )
    return None


def _default(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _excess(
    model: onnx.ModelProto, functions: dict[FunctionKey, onnx.FunctionProto], order: list[FunctionKey]
) -> str | None:
    """What writing ``functions`` out would exceed, if anything."""
    sizes: dict[FunctionKey, tuple[int, int, int]] = {}

    def total(nodes: Iterable[onnx.NodeProto], own: int) -> tuple[int, int, int]:
        count, size, depth = 0, own, 0
        for node in nodes_below(nodes):
            inner = sizes.get(called(node), (1, 0, 0))
            count, size, depth = count + inner[0], size + inner[1], max(depth, inner[2])
        return count, size, depth + 1

    for key in order:
        if key in functions:
            sizes[key] = total(functions[key].node, functions[key].ByteSize())
    count, size, depth = total(model.graph.node, 0)
    if count > _MOST_NODES + sum(1 for _ in nodes_below(model.graph.node)):
        return f"make more than {_MOST_NODES} nodes"
    if size > _MOST_BYTES + sum(function.ByteSize() for function in functions.values()):
        return f"take more than {_MOST_BYTES >> 20} MiB"
    return f"be nested more than {_DEEPEST} deep" if depth > _DEEPEST else None


def _restorer(model: onnx.ModelProto) -> Callable[[], None]:
    before = type(model)()
    before.functions.extend(model.functions)
    before.opset_import.extend(model.opset_import)
    before.graph.node.extend(model.graph.node)

    def undo() -> None:
        for now, then in (
            (model.functions, before.functions),
            (model.opset_import, before.opset_import),
            (model.graph.node, before.graph.node),
        ):
            del now[:]
            now.extend(then)

    return undo


def _drop_uncalled(model: onnx.ModelProto, functions: dict[FunctionKey, onnx.FunctionProto]) -> None:
    """Delete those of ``functions`` that nothing calls any more."""
    others = [function.node for function in model.functions if key_of(function) not in functions]
    needed: set[FunctionKey] = set()
    waiting = [model.graph.node, *others]
    while waiting:
        new = {called(node) for node in nodes_below(waiting.pop())} & functions.keys() - needed
        needed |= new
        waiting += [functions[key].node for key in new]
    for index in range(len(model.functions) - 1, -1, -1):
        key = key_of(model.functions[index])
        if key in functions and key not in needed:
            del model.functions[index]
