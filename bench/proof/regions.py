"""The regions that a fold changed: nodes that hang together between values that both models share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from convbn.bench.models.inputs import Array
from convbn.bench.proof.claims import Alignment, Claim
from convbn.bench.proof.graph.dataflow import Dataflow
from convbn.common.dtypes import is_float

if TYPE_CHECKING:
    import onnx

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
        channels: of each layer, the axis of its output channels and how many there are.
    """

    nodes: tuple[int, ...]
    claims: tuple[Claim, ...]
    loose: tuple[str, ...]
    fresh: tuple[str, ...]
    weights: int
    layer: LinearLayer | None
    channels: frozenset[tuple[int, int]] = frozenset()

    def products(self, values: Mapping[str, Array]) -> int:
        """Multiplications that it takes, about: each weight at each position."""
        shapes = [shape for shape in (values[c.original].shape for c in self.claims) if len(shape) > 1]
        known = [n for shape in shapes if (n := self._positions(shape)) is not None]
        # Heads that a reshape made are channels of no layer.
        return self.weights * max(known or (_numbers_to_each(shape, 1) for shape in shapes), default=1)

    def _positions(self, shape: tuple[int, ...]) -> int | None:
        """Numbers of a value to each channel of a layer; None where it has none."""
        own = (axis for axis, width in self.channels if shape[axis] == width)
        return min((_numbers_to_each(shape, axis) for axis in own), default=None)


def _numbers_to_each(shape: tuple[int, ...], axis: int) -> int:
    return math.prod(shape) // max(shape[axis], 1)


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
    weighted = [
        (folded.nodes[i], tuple(folded.constants[name].dims))
        for i in nodes
        if folded.nodes[i].op_type in _LINEAR
        for name in folded.nodes[i].input[1:2]
        if name in folded.constants
    ]
    fresh = tuple(name for name in loose if not alignment.kept(name))
    weights = sum(math.prod(dims) for _, dims in weighted)
    channels = frozenset(_channels(node, dims) for node, dims in weighted if len(dims) > 1)
    return Region(tuple(nodes), tuple(claims), tuple(loose), fresh, weights, layer, channels)


def _channels(node: onnx.NodeProto, dims: Sequence[int]) -> tuple[int, int]:
    """The axis of a layer's output channels, and how many it has."""
    numbers = {entry.name: entry.i for entry in node.attribute}
    if node.op_type == "Conv":
        return 1, dims[0]
    if node.op_type == "ConvTranspose":
        return 1, dims[1] * numbers.get("group", 1)
    return -1, dims[0] if numbers.get("transB") else dims[-1]


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
