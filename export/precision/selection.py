"""Which nodes may compute in a 16-bit type, and why the others stay in float32.

What an operator's specification allows decides first, per type variable of its schema: a Resize takes its
image in float16 and its scales in nothing but float32. Then come the values, as far as they are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convbn.common.encoding import JsonReady
from convbn.export.precision.graphs import FLOAT, captured, opset_of
from convbn.fuse.frontends.onnx.model.graphs import bodies_of

if TYPE_CHECKING:
    import onnx

__all__ = ["Kept", "Selection", "select"]

_DEFAULT_DOMAIN = ("", "ai.onnx")


@dataclass(frozen=True)
class Kept(JsonReady):
    """A node that stays in float32.

    Attributes:
        node: its name.
        operator: its type.
        reason: ``asked for``, ``operator``, ``control flow``, ``type unknown``, ``shape arithmetic`` or ``range``.
        detail: one sentence.
    """

    node: str
    operator: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Selection:
    """What may be cast.

    Attributes:
        low_inputs: for each node, by index, the positions of the inputs that take the 16-bit type.
        low_outputs: likewise of the outputs that come in it.
        kept: every node that computes with floats and stays in float32 as a whole.
    """

    low_inputs: tuple[frozenset[int], ...]
    low_outputs: tuple[frozenset[int], ...]
    kept: tuple[Kept, ...]


def select(
    model: onnx.ModelProto,
    types: Mapping[str, int],
    *,
    low: str,
    keep: Iterable[str],
    out_of_range: Mapping[str, str],
) -> Selection:
    """Choose.

    Args:
        model: prepared, see :func:`convbn.export.precision.graphs.prepared`.
        types: element type of each tensor.
        low: ``float16`` or ``bfloat16``.
        keep: names of nodes that stay in float32 because the user said so.
        out_of_range: tensors whose values the type cannot hold, each with a sentence.
    """
    asked, counting = set(keep), _shape_arithmetic(model, types)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    opsets[""] = opset_of(model)
    inputs, outputs, kept = [], [], []
    for node in model.graph.node:
        low_in, low_out, why = _allowed(node, types, low, opsets)
        floats = [name for name in (*node.input, *node.output) if types.get(name) == FLOAT]
        if why is None and node.name in asked:
            why = ("asked for", "the options name it")
        if why is None and counting.issuperset(node.output) and counting.intersection(floats):
            why = ("shape arithmetic", f"it computes with sizes, which {low} would round")
        beyond = [name for name in floats if name in out_of_range]
        if why is None and beyond:
            why = ("range", out_of_range[beyond[0]])
        if why is not None:
            low_in, low_out = frozenset(), frozenset()
            # What only makes floats, like a Cast from integers, loses nothing by making them in float32.
            reads = captured(node) if any(bodies_of(node)) else node.input
            if any(types.get(name) == FLOAT for name in reads):
                kept.append(Kept(node.name, node.op_type, *why))
        inputs.append(low_in)
        outputs.append(low_out)
    return Selection(tuple(inputs), tuple(outputs), tuple(kept))


def _allowed(
    node: onnx.NodeProto, types: Mapping[str, int], low: str, opsets: Mapping[str, int]
) -> tuple[frozenset[int], frozenset[int], tuple[str, str] | None]:
    nothing: frozenset[int] = frozenset()
    if any(bodies_of(node)):
        return nothing, nothing, ("control flow", "the graphs inside it are left as they are")
    schema = _schema(node, opsets)
    if schema is None:
        cause = f"nothing is known of operator {node.domain or 'ai.onnx'}.{node.op_type}"
        return nothing, nothing, ("operator", cause)
    binds: dict[str, bool] = {}
    low_in, low_out = set(), set()
    for index, (name, formal) in enumerate(_formals(node.input, schema.inputs)):
        if not name or "tensor(float)" not in formal.types:
            continue
        if name not in types:
            return nothing, nothing, ("type unknown", f"the type of its input {name!r} cannot be inferred")
        if types[name] == FLOAT:
            binds[formal.type_str] = f"tensor({low})" in formal.types
            if binds[formal.type_str]:
                low_in.add(index)
    for index, (name, formal) in enumerate(_formals(node.output, schema.outputs)):
        if not name or types.get(name, FLOAT) != FLOAT:
            continue
        if name not in types or formal.type_str not in binds:
            # A type that follows from an attribute, or from what is inside a sequence.
            cause = f"the type of its output {name!r} does not follow from its inputs"
            return nothing, nothing, ("operator", cause)
        if binds[formal.type_str]:
            low_out.add(index)
    if binds and not low_in:
        return nothing, nothing, ("operator", f"{node.op_type} has no {low} form in opset {opsets['']}")
    return frozenset(low_in), frozenset(low_out), None


def _schema(node: onnx.NodeProto, opsets: Mapping[str, int]) -> Any:
    import onnx.defs

    if node.domain not in _DEFAULT_DOMAIN:
        return None
    try:
        return onnx.defs.get_schema(node.op_type, opsets[""], "")
    except onnx.defs.SchemaError:
        return None


def _formals(names: Iterable[str], formals: Any) -> list[tuple[str, Any]]:
    """Each actual value with its formal parameter; the last one repeats where it is variadic."""
    return (
        [(name, formals[min(index, len(formals) - 1)]) for index, name in enumerate(names)] if formals else []
    )


def _shape_arithmetic(model: onnx.ModelProto, types: Mapping[str, int]) -> set[str]:
    """Values that follow from sizes and constants alone; floats only by way of a size that was cast."""
    constants = {tensor.name for tensor in model.graph.initializer}
    sizes: set[str] = set()
    for node in model.graph.node:
        read = [name for name in node.input if name]
        if node.op_type == "Constant":
            constants.update(node.output)
        elif node.op_type in ("Shape", "Size"):
            sizes.update(node.output)
        elif all(name in sizes or name in constants for name in read):
            # A table of floats that is looked up at a size is no size.
            floats = {name for name in read if types.get(name) == FLOAT}
            if any(name in sizes for name in floats or read):
                sizes.update(node.output)
    return sizes
