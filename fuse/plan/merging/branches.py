"""Sums as trees, and their leaves as linear branches.

A sum is a tree of ``Add`` and ``Sub`` nodes whose inner results nobody else sees; its leaves may be added in any order.
A leaf is a branch of x where it is a convolution of x, a per-channel map of x, an average over windows of x, or x
itself, and nobody but the sum sees it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.algebra.kernels import Form, pointwise
from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.elementwise import Arithmetic, Elementwise
from convbn.fuse.operators.pool import Pool
from convbn.fuse.operators.registry import MERGES
from convbn.fuse.plan.merging.cost import multiply_adds
from convbn.fuse.refusal import Refusal
from convbn.fuse.view.dataflow import Constant, Node, Value
from convbn.fuse.view.op import BIAS, DATA, WEIGHT

__all__ = [
    "AffineOf",
    "Branch",
    "Leaf",
    "adds",
    "branch_beside",
    "conv_branch",
    "conv_layer",
    "is_inner",
    "is_sum",
    "leaves_of",
]

AffineOf = Callable[[Node], tuple[Affine, int] | Refusal]

_LARGEST = 1 << 31
"""Sizes, strides and dilations lie below; a product of two strides must fit 64 bits."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A summand: who adds it, at which slot, and with which sign in the whole sum."""

    parent: Node
    slot: int
    value: Value
    sign: float


@dataclass(frozen=True, slots=True)
class Branch:
    """A summand seen as a linear map of ``source``.

    Attributes:
        node: what computes it; None for the identity.
        rule: what it is called when a convolution takes it in.
        cost: multiply-adds per output position.
        weight: float64, broadcastable to the form's shape.
        bias: float64 ``[O]``.
    """

    leaf: Leaf
    source: Value
    node: Node | None
    form: Form
    rule: str
    cost: int
    weight: Callable[[], NDArray[np.float64]]
    bias: Callable[[], NDArray[np.float64] | None]

    @property
    def channel_axis(self) -> int | None:
        """Of a convolution, that of its output."""
        return self.node.op.channel_axis if self.node is not None and isinstance(self.node.op, Conv) else None


def is_sum(node: Node) -> bool:
    """Whether a node adds or subtracts two values that both flow."""
    return adds(node) and all(value is not None and value.constant is None for value in node.inputs)


def adds(node: Node) -> bool:
    """Whether a node adds or subtracts two values, of which one may be a constant."""
    if not isinstance(node.op, Elementwise) or len(node.inputs) != 2 or node.inputs[0] is node.inputs[1]:
        return False
    return node.op.operation in (Arithmetic.ADD, Arithmetic.SUBTRACT) and None not in node.inputs


def _is_private(value: Value) -> bool:
    return len(value.readers) == 1 and not value.observed


def is_inner(node: Node, is_sum: Callable[[Node], bool] = is_sum) -> bool:
    """Whether a sum is only a part of a larger one."""
    output = node.outputs[0]
    reader = output.readers[0].node if _is_private(output) else None
    return reader is not None and reader.scope == node.scope and is_sum(reader)


def leaves_of(root: Node, is_sum: Callable[[Node], bool] = is_sum) -> Iterator[Leaf]:
    """The summands below ``root``, from left to right; iterative, for sums of any depth."""
    waiting = _operands(root, 1.0)
    while waiting:
        leaf = waiting.pop()
        below = leaf.value.producer
        inner = below is not None and below.scope == leaf.parent.scope and is_sum(below)
        if below is not None and inner and _is_private(leaf.value):
            waiting.extend(_operands(below, leaf.sign))
        else:
            yield leaf


def _operands(node: Node, sign: float) -> list[Leaf]:
    """Both operands of a sum, the left one last."""
    minus = isinstance(node.op, Elementwise) and node.op.operation is Arithmetic.SUBTRACT
    signs = (sign, -sign if minus else sign)
    found = [
        Leaf(node, slot, value, signs[slot]) for slot, value in enumerate(node.inputs) if value is not None
    ]
    return found[::-1]


def _producer(leaf: Leaf) -> Node | None:
    """What computes a summand for this sum alone."""
    node = leaf.value.producer
    if node is None or node.scope != leaf.parent.scope or not _is_private(leaf.value):
        return None
    return node if not any(v.readers or v.observed for v in node.outputs if v is not leaf.value) else None


def conv_branch(leaf: Leaf) -> Branch | None:
    """A summand as a convolution (:func:`conv_layer`)."""
    node = _producer(leaf)
    source = None if node is None else node.input(DATA)
    layer = None if node is None else conv_layer(node)
    if source is None or source.constant is not None or layer is None:
        return None
    form, weight, bias = layer
    return Branch(
        leaf,
        source,
        node,
        form,
        MERGES[0],
        multiply_adds(form),
        weight.exact,
        lambda: None if bias is None else bias.exact(),
    )


def conv_layer(node: Node) -> tuple[Form, Constant, Constant | None] | None:
    """Form, weight and bias of a convolution with constant numbers, laid at known places."""
    if not isinstance(node.op, Conv) or node.op.window is None:
        return None
    stored, added = node.input(WEIGHT), node.input(BIAS)
    weight, bias = (None if value is None else value.constant for value in (stored, added))
    if weight is None or (added is not None and bias is None):
        return None
    fits = bias is None or bias.shape == weight.shape[:1]
    form = Form(weight.shape, node.op.groups, node.op.window)
    return (form, weight, bias) if fits and _can_run(form) else None


def _can_run(form: Form) -> bool:
    """Whether the numbers are those of a convolution: a file may state any."""
    shape, groups, window = form.shape, form.groups, form.window
    if len(shape) != 2 + len(window.strides):
        return False
    numbers = (groups, *shape, *window.strides, *window.dilations)
    return all(0 < number < _LARGEST for number in numbers) and not shape[0] % groups


def branch_beside(leaf: Leaf, host: Branch, affine_of: AffineOf) -> Branch | None:
    """A summand as the identity, an average or a per-channel map of what ``host`` reads."""
    outputs, spatial = host.form.shape[0], len(host.form.shape) - 2
    if leaf.value is host.source:
        form = pointwise(outputs, spatial)
        return Branch(leaf, host.source, None, form, MERGES[1], 0, lambda: np.ones(()), lambda: None)
    node = _producer(leaf)
    if node is None or not any(value is host.source for value in node.inputs):
        return None
    if isinstance(node.op, Pool) and node.op.kernel is not None and node.op.window is not None:
        form = Form((outputs, 1, *node.op.kernel), outputs, node.op.window)
        if not _can_run(form):
            return None
        mean = np.full((), 1 / math.prod(node.op.kernel))
        return Branch(leaf, host.source, node, form, MERGES[3], outputs, lambda: mean, lambda: None)
    if not isinstance(node.op, BatchNorm | Elementwise):
        return None
    found = affine_of(node)
    if isinstance(found, Refusal) or found[1] != host.channel_axis:
        return None
    affine = found[0]
    scale = affine.scale.reshape(-1, *[1] * (1 + spatial))
    form = pointwise(affine.channels, spatial)
    return Branch(
        leaf, host.source, node, form, MERGES[2], affine.channels, lambda: scale, lambda: affine.shift
    )
