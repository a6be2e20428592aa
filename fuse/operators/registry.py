"""Every operator there is, and the names of all rules: what ``--only`` and ``--skip`` may say.

An operator of one's own is added by :func:`register`; nothing else has to know of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from convbn.errors import UsageError
from convbn.fuse.operators import (
    activation,
    batch_norm,
    channelwise_identity,
    concat,
    conv,
    conv_transpose,
    dequantize,
    elementwise,
    linear,
    mean,
    normalization,
    pad,
    pool,
    reshape,
    slice,
    split,
    transpose,
    weighted_mean,
)
from convbn.fuse.operators.calls import Aten, OnnxReader
from convbn.fuse.operators.operator import Evaluated, Operator
from convbn.fuse.operators.rule import Rule
from convbn.fuse.view.dataflow import Constant
from convbn.fuse.view.op import Op

__all__ = [
    "CHAIN",
    "MERGES",
    "OF_CONSTANTS",
    "WAYS",
    "all_aten_rows",
    "aten_rows",
    "evaluator_of",
    "known_names",
    "onnx_readers",
    "passes_maps",
    "register",
    "rule_for",
    "rules",
    "unregister",
]

WAYS = ("batchnorm-forward", "batchnorm-apart", "batchnorm-to-add")
"""How a map leaves its node (:mod:`convbn.fuse.plan.ways`); backward, it is named after the rule that takes it."""

OF_CONSTANTS = "batchnorm-of-constants"
"""A BatchNorm over constants is one (:mod:`convbn.fuse.plan.evaluation`)."""

MERGES = ("merge-parallel-convs", "merge-identity", "merge-affine", "merge-average-pool")
"""By what a convolution takes in beside it (:mod:`convbn.fuse.plan.branches`)."""

CHAIN = "merge-chain"
"""Linear layers in a row (:mod:`convbn.fuse.plan.chains`)."""

_OPERATORS: list[Operator] = []


def register(operator: Operator) -> None:
    """Add an operator; where several read the same call, the one that was added first answers first.

    Raises:
        UsageError: its class has a rule already, or its rule's name is taken.
    """
    if operator.rule is not None:
        if operator.kind in _rules:
            raise UsageError(f"the operator {operator.kind.__name__} has a rule already")
        if operator.rule.full_name in known_names():
            raise UsageError(f"there is a rule '{operator.rule.full_name}' already")
    _OPERATORS.append(operator)
    _index()


def unregister(operator: Operator) -> None:
    """Take an operator out again."""
    _OPERATORS.remove(operator)
    _index()


def rules() -> tuple[Rule, ...]:
    """All rules, in the order in which documents show them."""
    return tuple(operator.rule for operator in _OPERATORS if operator.rule is not None)


def known_names() -> tuple[str, ...]:
    """The names of all rules and merges."""
    names = (rule.full_name for rule in rules())
    return (*names, *WAYS, OF_CONSTANTS, *MERGES, CHAIN)


def rule_for(operator: Op) -> Rule | None:
    """The rule for an operator, if there is one."""
    return _rules.get(type(operator))


def evaluator_of(operator: Op) -> Callable[[Any, Sequence[Constant | None]], Evaluated | None] | None:
    """What computes an operator over constants, if anything does."""
    return _evaluators.get(type(operator))


def onnx_readers(name: str) -> Sequence[OnnxReader]:
    """What may read an ONNX operator, by its name or its domain's and its own."""
    return _onnx.get(name, ())


def passes_maps(name: str) -> bool:
    """Whether an ONNX operator is read as one that a map may pass or go into."""
    return any(operator.rule is not None and name in operator.onnx for operator in _OPERATORS)


def aten_rows(name: str) -> Sequence[Aten]:
    """What is known of an ATen operator, by its name without namespace."""
    return _aten.get(name, ())


def all_aten_rows() -> Sequence[Aten]:
    """What is known of all ATen operators."""
    return _rows


_rows: list[Aten] = []
_rules: dict[type[Op], Rule] = {}
_evaluators: dict[type[Op], Callable[[Any, Sequence[Constant | None]], Evaluated | None]] = {}
_onnx: dict[str, list[OnnxReader]] = {}
_aten: dict[str, list[Aten]] = {}


def _index() -> None:
    _rows[:] = [row for operator in _OPERATORS for row in operator.aten]
    for table in (_rules, _evaluators, _onnx, _aten):
        table.clear()
    for operator in _OPERATORS:
        if operator.rule is not None:
            _rules[operator.kind] = operator.rule
        if operator.evaluate is not None:
            _evaluators[operator.kind] = operator.evaluate
        for name, reader in operator.onnx.items():
            _onnx.setdefault(name, []).append(reader)
        for row in operator.aten:
            for name in row.names:
                _aten.setdefault(name, []).append(row)


for _operator in (
    conv.OPERATOR,
    conv_transpose.OPERATOR,
    weighted_mean.SOFTMAX,
    weighted_mean.OPERATOR,
    linear.OPERATOR,
    batch_norm.OPERATOR,
    normalization.OPERATOR,
    dequantize.OPERATOR,
    elementwise.OPERATOR,
    concat.OPERATOR,
    split.OPERATOR,
    slice.OPERATOR,
    pool.OPERATOR,
    pad.OPERATOR,
    activation.OPERATOR,
    transpose.OPERATOR,
    reshape.OPERATOR,
    mean.OPERATOR,
    channelwise_identity.OPERATOR,
):
    register(_operator)
