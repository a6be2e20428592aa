"""A dataflow view built by hand, node by node, for what no frontend would show or no rule would ask."""

from __future__ import annotations

from typing import Any

import numpy as np

from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.conv import Conv
from convbn.fuse.options import FuseOptions
from convbn.fuse.plan.attempts import Footprint
from convbn.fuse.plan.draft import Draft
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Reader, Value
from convbn.fuse.view.op import Op
from convbn.fuse.view.view import View

SHAPE = (1, 4, 3, 3)


def numbers(*shape: int, fill: float = 1) -> Constant:
    return Constant.of(np.full(shape, fill, "f4"))


class Graph:
    """Nodes as they are added; ``x`` is the input."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.x = Value("x", SHAPE)

    def add(
        self, name: str, op: Op, *inputs: Value | Constant | None, scope: str = "", outputs: int = 1
    ) -> Value:
        """The (first) output of a new node, called as the node is."""
        values = [
            Value(f"{name}.{slot}", operand.shape, constant=operand)
            if isinstance(operand, Constant)
            else operand
            for slot, operand in enumerate(inputs)
        ]
        node = Node(name, op, values, [], scope)
        for slot, value in enumerate(values):
            if value is not None:
                value.readers.append(Reader(node, slot))
        node.outputs += [Value(name, SHAPE, producer=node) for _ in range(outputs)]
        self.nodes.append(node)
        return node.outputs[0]

    def conv(self, name: str, source: Value, **more: Any) -> Value:
        return self.add(name, Conv(1), source, numbers(4, 4, 1, 1), **more)

    def bn(self, source: Value, **more: Any) -> Value:
        return self.add("bn", BatchNorm(1e-5), source, *(numbers(4) for _ in range(4)), **more)

    def draft(
        self,
        mover: Value,
        *,
        pure: bool = True,
        replaceable: bool = True,
        seen: Footprint | None = None,
        **options: Any,
    ) -> Draft:
        view = View(self.nodes, pure=pure, replaceable=replaceable)
        return Draft(view, FuseOptions(**options), node_of(mover), {} if seen is None else seen)


def node_of(value: Value) -> Node:
    assert value.producer is not None
    return value.producer


def of(refusal: Refusal | None, reason: Reason, *says: str) -> None:
    assert refusal is not None
    assert refusal.reason is reason, refusal
    for text in says:
        assert text in refusal.detail
