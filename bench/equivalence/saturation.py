"""Outputs behind a function that saturates, chooses or rounds are judged at what that function reads.

A sigmoid is computed to some ε of 1, its largest value, wherever it stands: a map of 1e-6 everywhere then holds nothing
but rounding. Which of two values that are the same but for their rounding is the larger, or to which integer one goes,
rounding decides. What such functions read still tells two models apart; behind them both do the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from convbn.bench.equivalence.difference import Verdict
from convbn.bench.models.inputs import Array
from convbn.bench.proof.graph.dataflow import Dataflow
from convbn.common.dtypes import dtype_of

if TYPE_CHECKING:
    import onnx

__all__ = ["Saturated", "hides", "saturated_outputs"]

_SATURATING = frozenset({"Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax", "Tanh", "Clip"})
_CHOOSING = frozenset({"ArgMax", "ArgMin", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
#: Where every fold is shown by itself; elsewhere what these read may hide a wrong model beside a large number.
_ROUNDING = frozenset({"Ceil", "Equal", "Floor", "QuantizeLinear", "Round", "Sign", "TopK"})
#: BOOL, and the integers of ONNX up to 64 bits: a cast to one of them rounds.
_WHOLE = frozenset({2, 3, 4, 5, 6, 7, 9, 12, 13})
#: What may stand behind it; a candidate in another precision casts its outputs.
_PASSING = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
#: ε of 1 that a saturating function may be off by; the bound of an output is √ε.
_FEW = 16


@dataclass(frozen=True)
class Saturated:
    """An output, and a value that the function before it reads in both models.

    Attributes:
        output: its name in the reference.
        op: the function.
        reference, candidate: the names of what it reads.
    """

    output: str
    op: str
    reference: str
    candidate: str


def saturated_outputs(reference: Dataflow, candidate: Dataflow, *, rounding: bool = False) -> list[Saturated]:
    """The outputs that both models compute alike from such a function on, once for every value that it reads.

    Args:
        reference: one model.
        candidate: the other, with as many outputs.
        rounding: whether functions that only round are such functions, too.
    """
    found = []
    for a, b in zip(reference.outputs, candidate.outputs, strict=False):
        before, after = _chain(reference, a, rounding), _chain(candidate, b, rounding)
        if before and [_does(node) for node in before] == [_does(node) for node in after]:
            op = before[-1].op_type
            reads = _reads(reference, candidate, before[-1], after[-1])
            found += [Saturated(a, op, one, other) for one, other in reads]
    return found


def _chain(flow: Dataflow, name: str, rounding: bool) -> list[onnx.NodeProto]:
    """The nodes from an output up to the function, without casts of floats; none if there is no such function."""
    nodes: list[onnx.NodeProto] = []
    while name in flow.producer:
        node = flow.nodes[flow.producer[name]]
        ends = not node.domain and (node.op_type in _SATURATING | _CHOOSING or (rounding and _rounds(node)))
        if ends or node.op_type != "Cast":
            nodes.append(node)
        if ends:
            return nodes
        if node.op_type not in _PASSING or node.domain:
            break
        name = node.input[0]
    return []


def _rounds(node: onnx.NodeProto) -> bool:
    whole = any(attribute.name == "to" and attribute.i in _WHOLE for attribute in node.attribute)
    return node.op_type in _ROUNDING or (node.op_type == "Cast" and whole)


def _does(node: onnx.NodeProto) -> tuple[str, list[bytes], list[str]]:
    """What a node does, and what it reads beside its data, if that is not looked at by itself."""
    attributes = sorted(entry.SerializeToString(deterministic=True) for entry in node.attribute)
    looked_at = node.op_type in _CHOOSING | _ROUNDING
    return node.op_type, attributes, [] if looked_at else list(node.input[1:])


def _reads(a: Dataflow, b: Dataflow, one: onnx.NodeProto, other: onnx.NodeProto) -> list[tuple[str, str]]:
    """The values that both functions read; none where they do not read the same stored numbers beside them."""
    if one.op_type in _SATURATING:
        return [(one.input[0], other.input[0])]
    pairs = []
    for u, v in zip(one.input, other.input, strict=False):
        x, y = _stored(a, u), _stored(b, v)
        if x is None and y is None:
            pairs.append((u, v))
        elif x is None or y is None or not _equal(x, y):
            return []
    return pairs if len(one.input) == len(other.input) else []


def _stored(flow: Dataflow, name: str) -> Array | None:
    """The numbers of an initializer or of a Constant."""
    from onnx import numpy_helper

    if name in flow.constants:
        return flow.array(name)
    node = flow.nodes[flow.producer[name]] if name in flow.producer else None
    if node is None or node.op_type != "Constant" or not node.attribute[0].HasField("t"):
        return None
    return numpy_helper.to_array(node.attribute[0].t)


def _equal(x: Array, y: Array) -> bool:
    """Whether stored numbers are the same, in the coarser of their types."""
    return np.array_equal(x.astype(y.dtype), y) or np.array_equal(x, y.astype(x.dtype))


def hides(verdict: Verdict) -> bool:
    """Whether an output may show rounding alone: it is blind, chosen, or no further off than some ε of 1."""
    wrong = [output for output in verdict.outputs if not output.ok]
    if verdict.status == "inconclusive":
        return bool(verdict.outputs)
    chosen = [dtype_of(output.dtype).kind in "iub" for output in wrong]
    return bool(wrong) and all(
        one or output.max_abs_error <= _FEW * output.bound**2
        for one, output in zip(chosen, wrong, strict=True)
    )
