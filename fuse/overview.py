"""What a model consists of, in short: the normalisations that are no BatchNorm, and its graph for a picture.

A LayerNorm or RMSNorm that is written out, ``(x − E[x]) / √(E[(x − E[x])²] + ε)`` or ``x / √(E[x²] + ε)``, is
recognised by its square root: what it is of comes from a mean of squares, and it divides what that was a mean of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

from convbn.fuse.operators.mean import Mean
from convbn.fuse.operators.normalization import Normalization
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.view import View

__all__ = ["MOST_NODES", "OWN_STATISTICS", "graph_of", "other_normalisations"]

MOST_NODES = 500
"""A picture of more nodes shows nothing."""

OWN_STATISTICS = "they normalise by each sample's own statistics, which are known only when the model runs"
"""Why a normalisation that is no BatchNorm stays."""

_ROOTS = ("sqrt", "rsqrt")
_REDUCTIONS = ("mean", "var", "reducemean", "reducel2")
_STEPS = 4
"""Operators between a mean of squares and its root, or behind the root: an added ε, a clip, a reciprocal, a cast."""


def other_normalisations(view: View) -> dict[str, int]:
    """The normalisations by a sample's own statistics: kinds, the most frequent first, with how many there are."""
    found: Counter[str] = Counter()
    for node in view.nodes:
        if isinstance(node.op, Normalization):
            found[node.op.label.replace("Normalization", "Norm")] += 1
        elif _operator(node) in _ROOTS and (kind := _written_out(node)) is not None:
            found[f"{kind} (written out)"] += 1
    return dict(found.most_common())


def graph_of(view: View) -> dict[str, Any] | None:
    """Names, operators and edges of a model's nodes in running order; None where there are too many.

    Returns:
        ``nodes``, each ``[name, operator]``, and ``edges``, each a pair of places in that list.
    """
    nodes = [node for node in view.nodes if node.inputs]  # constants are no part of the picture
    if not 0 < len(nodes) <= MOST_NODES:
        return None
    place = {id(node): index for index, node in enumerate(nodes)}
    edges = {
        (place[id(value.producer)], index)
        for index, node in enumerate(nodes)
        for value in node.inputs
        if value is not None and id(value.producer) in place
    }
    return {
        "nodes": [[node.name, node.op.describe()] for node in nodes],
        "edges": [list(edge) for edge in sorted(edges)],
    }


def _written_out(root: Node) -> str | None:
    """LayerNorm, InstanceNorm or RMSNorm, if a square root belongs to one."""
    reduction = next((node for node in _behind(root) if _operator(node) in _REDUCTIONS), None)
    if reduction is None or not reduction.inputs or reduction.inputs[0] is None:
        return None
    data, centred = reduction.inputs[0], _operator(reduction) == "var"
    if not centred and _operator(reduction) != "reducel2":
        squared = data.producer
        if squared is None or not _is_square(squared):
            return None
        data = cast(Value, squared.inputs[0])
        centred = data.producer is not None and _operator(data.producer) == "sub"
    if not any(_operator(node) in ("div", "mul") for node in _ahead(root)):
        return None
    if not centred:
        return "RMSNorm"
    op = reduction.op
    positions = isinstance(op, Mean) and op.rank > 3 and op.axes == tuple(range(2, op.rank))
    return "InstanceNorm" if positions else "LayerNorm"


def _is_square(node: Node) -> bool:
    name, inputs = _operator(node), node.inputs
    if not inputs or inputs[0] is None:
        return False
    return name in ("pow", "square") or (name == "mul" and len(inputs) > 1 and inputs[0] is inputs[1])


def _behind(node: Node) -> Iterator[Node]:
    """What a node's computed inputs come from, a few operators up."""
    waiting = [node]
    for _ in range(_STEPS):
        values = [
            value for one in waiting for value in one.inputs if value is not None and value.constant is None
        ]
        waiting = [value.producer for value in values if value.producer is not None]
        yield from waiting


def _ahead(node: Node) -> Iterator[Node]:
    """What reads a node's result, a few operators down."""
    waiting = [node]
    for _ in range(_STEPS):
        waiting = [reader.node for one in waiting for out in one.outputs for reader in out.readers]
        yield from waiting


def _operator(node: Node) -> str:
    """The plain name of an operator, whatever framework it is of."""
    operation = getattr(node.op, "operation", None)
    name = node.op.describe() if operation is None else str(operation)
    return name.rpartition(".")[2].rstrip("_").lower()
