"""Outputs behind a function that saturates, or that chooses, are judged at what that function reads.

A sigmoid is computed to some ε of 1, its largest value, wherever it stands: a map of 1e-6 everywhere then holds nothing
but rounding. Which of two values that are the same but for their rounding is the larger, rounding decides. What such
functions read still tells two models apart; behind them both do the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from convbn.bench.equivalence.difference import Verdict
from convbn.bench.proof.graph.dataflow import Dataflow
from convbn.common.dtypes import dtype_of

if TYPE_CHECKING:
    import onnx

__all__ = ["Saturated", "hides", "saturated_outputs"]

_SATURATING = frozenset({"Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax", "Tanh", "Clip"})
_CHOOSING = frozenset({"ArgMax", "ArgMin", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
#: What may stand behind it; a candidate in another precision casts its outputs.
_PASSING = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
#: ε of 1 that a saturating function may be off by; the bound of an output is √ε.
_FEW = 16


@dataclass(frozen=True)
class Saturated:
    """An output, and what the saturating function before it reads in both models.

    Attributes:
        output: its name in the reference.
        op: the function.
        reference, candidate: the names of what it reads.
    """

    output: str
    op: str
    reference: str
    candidate: str


def saturated_outputs(reference: Dataflow, candidate: Dataflow) -> list[Saturated]:
    """The outputs that both models compute alike from a saturating function on.

    Args:
        reference: one model.
        candidate: the other, with as many outputs.
    """
    found = []
    for a, b in zip(reference.outputs, candidate.outputs, strict=False):
        before, after = _chain(reference, a), _chain(candidate, b)
        if before and [_does(node) for node in before] == [_does(node) for node in after]:
            found.append(Saturated(a, before[-1].op_type, before[-1].input[0], after[-1].input[0]))
    return found


def _chain(flow: Dataflow, name: str) -> list[onnx.NodeProto]:
    """The nodes from an output up to the saturating function, without casts; none if there is no such function."""
    nodes: list[onnx.NodeProto] = []
    while name in flow.producer:
        node = flow.nodes[flow.producer[name]]
        if node.op_type != "Cast":
            nodes.append(node)
        if node.op_type in _SATURATING | _CHOOSING and not node.domain:
            return nodes
        if node.op_type not in _PASSING or node.domain:
            break
        name = node.input[0]
    return []


def _does(node: onnx.NodeProto) -> tuple[str, list[bytes], list[str]]:
    """What a node does, and what it reads beside its data."""
    attributes = sorted(entry.SerializeToString(deterministic=True) for entry in node.attribute)
    return node.op_type, attributes, list(node.input[1:])


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
