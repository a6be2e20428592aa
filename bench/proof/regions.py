"""The regions that a fold changed: nodes that hang together between values that both models share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convbn.bench.models.inputs import Array
from convbn.bench.proof.claims import Alignment, Claim
from convbn.bench.proof.graph.dataflow import Dataflow
from convbn.common.dtypes import is_float

__all__ = ["LinearLayer", "Region", "linear_layer", "regions_of", "terms_of"]

_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """What bounds the rounding of one layer ``y = W x + b``.

    Attributes:
        data: the value x.
        norms: ‖W_c‖₂ of each output channel.
        bias: b_c.
        terms: how many products a sum has.
        axis: of the channels in y.
        dtype: of the weights.
        groups: of channels, each of which reads its own share of those of x.
    """

    data: str
    norms: Array
    bias: Array
    terms: int
    axis: int
    dtype: np.dtype[np.generic]
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Region:
    """Nodes of the folded model that are judged together.

    Attributes:
        nodes: their places.
        claims: what they must give.
        loose: the float initializers that they read.
        fresh: those of them that are none of the original's.
        weights: numbers in the weights of its layers.
        layer: what it is if it is one linear layer and nothing else.
    """

    nodes: tuple[int, ...]
    claims: tuple[Claim, ...]
    loose: tuple[str, ...]
    fresh: tuple[str, ...]
    weights: int
    layer: LinearLayer | None

    def products(self, values: Mapping[str, Array]) -> int:
        """Multiplications that it takes, about."""
        pixels = [
            math.prod(values[c.original].shape[2:]) * math.prod(values[c.original].shape[:1])
            for c in self.claims
        ]
        return self.weights * max(pixels, default=1)


def regions_of(folded: Dataflow, alignment: Alignment) -> list[Region]:
    """The regions behind the claims of an alignment, in running order."""
    claims = [claim for claim in alignment.claims if claim.computed]
    nodes = folded.slice([claim.folded for claim in claims], alignment.same).nodes
    leader = {i: i for i in nodes}

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    for i in nodes:
        for name in folded.reads[i]:
            j = folded.producer.get(name)
            if j is not None and name not in alignment.same:
                leader[find(i)] = find(j)
    members: dict[int, list[int]] = {}
    for i in nodes:
        members.setdefault(find(i), []).append(i)
    owned: dict[int, list[Claim]] = {}
    for claim in claims:
        owned.setdefault(find(folded.producer[claim.folded]), []).append(claim)
    return [_region(folded, alignment, members[root], owned[root]) for root in members if root in owned]


def _region(folded: Dataflow, alignment: Alignment, nodes: Sequence[int], claims: Iterable[Claim]) -> Region:
    loose = dict.fromkeys(
        name
        for i in nodes
        for name in folded.reads[i]
        if name in folded.constants and _stores_floats(folded, name)
    )
    layer = linear_layer(folded, nodes[0]) if len(nodes) == 1 else None
    if layer is not None and layer.data not in alignment.same:
        layer = None
    weights = [
        math.prod(folded.constants[name].dims)
        for i in nodes
        if folded.nodes[i].op_type in _LINEAR
        for name in folded.nodes[i].input[1:2]
        if name in folded.constants
    ]
    fresh = tuple(name for name in loose if not alignment.kept(name))
    return Region(tuple(nodes), tuple(claims), tuple(loose), fresh, sum(weights), layer)


def _stores_floats(folded: Dataflow, name: str) -> bool:
    from onnx import helper

    return is_float(np.dtype(helper.tensor_dtype_to_np_dtype(folded.constants[name].data_type)))


def linear_layer(flow: Dataflow, place: int) -> LinearLayer | None:
    """The layer that a node is; None where it is none whose weights are stored as they are used."""
    node = flow.nodes[place]
    stored = [name in flow.constants for name in node.input]
    if node.op_type not in _LINEAR or len(stored) < 2 or stored[:2] != [False, True]:
        return None
    if not all(has or not name for has, name in zip(stored[2:], node.input[2:], strict=True)):
        return None
    weight = flow.array(node.input[1])
    wide = weight if weight.dtype in (np.float32, np.float64) else weight.astype(np.float32)
    attributes = {entry.name: entry for entry in node.attribute}
    axis, scale = 1, 1.0
    groups = attributes["group"].i if "group" in attributes else 1
    if node.op_type == "Conv":
        rows = wide.reshape(len(wide), -1)
    elif node.op_type == "ConvTranspose":
        by_group = wide.reshape(groups, len(wide) // groups, wide.shape[1], -1)
        rows = by_group.transpose(0, 2, 1, 3).reshape(groups * wide.shape[1], -1)
    elif wide.ndim != 2:
        return None
    else:
        transposed = "transB" in attributes and attributes["transB"].i == 1
        rows, axis = (wide if transposed else wide.T), -1
        scale = attributes["alpha"].f if "alpha" in attributes else 1.0
    bias = np.zeros(len(rows))
    if len(node.input) > 2 and node.input[2]:
        given = flow.array(node.input[2]).astype(np.float64)
        if given.size not in (1, len(rows)):
            return None
        factor = attributes["beta"].f if "beta" in attributes else 1.0
        bias = bias + factor * given.reshape(-1)
    # In float64, where the squares of float32 numbers neither vanish nor overflow.
    norms = abs(scale) * np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    return LinearLayer(node.input[0], norms, bias, rows.shape[1], axis, weight.dtype, groups)


def terms_of(folded: Dataflow, region: Region) -> int:
    """Products in the longest sum of a region, about: the numbers of a weight over its output channels."""
    terms = 0
    for i in region.nodes:
        for name in folded.nodes[i].input[1:2]:
            if name in folded.constants and len(folded.constants[name].dims) > 1:
                dims = folded.constants[name].dims
                terms = max(terms, math.prod(dims) // max(1, min(dims)))
    return terms
