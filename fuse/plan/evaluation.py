"""A BatchNorm over constants is a constant: weight standardisation, for one.

It goes together with whatever else computes the constant, and the numbers are stored where something that is no
constant reads them.
"""

from __future__ import annotations

from convbn.fuse.algebra.rounding import round_sum, round_vector
from convbn.fuse.operators.registry import OF_CONSTANTS
from convbn.fuse.options import FuseOptions
from convbn.fuse.plan.ways import Fold
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Value
from convbn.fuse.view.edits import Evaluate
from convbn.fuse.view.view import View

__all__ = ["evaluate"]


def evaluate(view: View, node: Node, options: FuseOptions) -> Fold | Refusal:
    """The edits that store what a BatchNorm over constants gives, or why it stays.

    Args:
        view: not changed.
        node: a BatchNorm whose output is a constant.
        options: which rules may be used.
    """
    if not options.allows(OF_CONSTANTS):
        return Refusal(Reason.SKIPPED, f"the rule {OF_CONSTANTS} is switched off")
    if node not in view:
        return Fold((), OF_CONSTANTS, ())  # gone with another one, whose result it computed a part of
    used = [output.name for output in node.outputs[1:] if output.readers or output.observed]
    if used:
        return Refusal(Reason.EXTRA_OUTPUTS, f"its further outputs are used: {', '.join(used)}")
    edits: list[Evaluate] = []
    into: list[str] = []
    waiting, seen = [node.outputs[0]], set[int]()
    while waiting:
        value = waiting.pop()
        producer, constant = value.producer, value.constant
        if id(value) in seen or producer is None or constant is None:
            continue
        seen.add(id(value))
        if value.observed:
            return Refusal(
                Reason.OBSERVED, f"'{value.name}', a constant that it computes, is {value.observed}"
            )
        outside = [reader.node for reader in value.readers if not _gives_a_constant(reader.node)]
        waiting += [reader.node.outputs[0] for reader in value.readers if reader.node not in outside]
        if not outside:
            continue
        refusal = _unfit(value, constant) or view.check(edit := Evaluate(producer, constant))
        if refusal is not None:
            return refusal
        edits.append(edit)
        into += [reader.name for reader in outside]
    if not edits:
        return Refusal(Reason.NO_PRODUCER, "its data is a constant, and nothing reads what it makes of it")
    return Fold(tuple(dict.fromkeys(into)), OF_CONSTANTS, tuple(edits))


def _gives_a_constant(node: Node) -> bool:
    return len(node.outputs) == 1 and node.outputs[0].constant is not None


def _unfit(value: Value, constant: Constant) -> Refusal | None:
    """The refusal where the numbers cannot be stored within the bound."""
    store = round_sum if len(constant.shape) > 1 else round_vector
    rounded = store(constant.exact(), constant.dtype)
    if isinstance(rounded, Refusal):
        return Refusal(rounded.reason, f"'{value.name}', a constant that it computes: {rounded.detail}")
    return None
