"""Every operator there is, and the names of all rules: what ``--only`` and ``--skip`` may say.

An operator of one's own is added by :func:`register`; nothing else has to know of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import _lru_cache_wrapper, cache
from typing import Any, ParamSpec, TypeVar
from typing import cast as typed

from convbn.errors import UsageError
from convbn.fuse.operators import (
    activation,
    batch_norm,
    cast,
    channelwise_identity,
    concat,
    contraction,
    conv,
    conv_transpose,
    depth_to_space,
    dequantize,
    elementwise,
    function,
    gather,
    linear,
    mean,
    negation,
    normalization,
    pad,
    pool,
    quantize,
    recurrent,
    reduction,
    registered_conv,
    repeat,
    reshape,
    scatter,
    shape_only,
    slice,
    softmax,
    split,
    sum,
    transpose,
    weighted_mean,
    zeros,
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
    "PIECES",
    "WAYS",
    "aten_rows",
    "evaluator_of",
    "known_names",
    "onnx_readers",
    "passes_maps",
    "register",
    "rule_for",
    "rules",
    "unregister",
    "until_change",
]

P = ParamSpec("P")
R = TypeVar("R")

WAYS = ("batchnorm-forward", "batchnorm-apart", "batchnorm-to-add", "batchnorm-beside")
"""How a map leaves its node (:mod:`convbn.fuse.plan.ways`, the last in :mod:`convbn.fuse.plan.merging.beside`);
backward, it is named after the rule that takes it.
"""

OF_CONSTANTS = "batchnorm-of-constants"
"""A BatchNorm over constants is one (:mod:`convbn.fuse.plan.evaluation`)."""

MERGES = ("merge-parallel-convs", "merge-identity", "merge-affine", "merge-average-pool")
"""By what a convolution takes in beside it (:mod:`convbn.fuse.plan.merging.branches`)."""

PIECES = "merge-split-convs"
"""Convolutions of the pieces of a split (:mod:`convbn.fuse.plan.merging.pieces`)."""

CHAIN = "merge-chain"
"""Linear layers in a row (:mod:`convbn.fuse.plan.merging.chains`)."""

_FILES = (
    *(
        conv,
        conv_transpose,
        softmax,
        weighted_mean,
        contraction,
        linear,
        batch_norm,
        normalization,
        dequantize,
        quantize,
        elementwise,
    ),
    *(concat, split, slice, pool, pad, activation, transpose, reshape, mean, channelwise_identity),
    gather,
    scatter,
    zeros,
    repeat,
    depth_to_space,
    reduction,
    *(cast, negation, recurrent, function, sum),
    shape_only,
    registered_conv,
)
_OPERATORS: list[Operator] = [file.OPERATOR for file in _FILES]
"""Where several read the same call, the one that stands first answers first."""


_answers: list[_lru_cache_wrapper[Any]] = []


def until_change(answer: Callable[P, R]) -> Callable[P, R]:
    """Keep what a function answers until an operator is added or taken out."""
    _answers.append(cache(answer))
    return typed(Callable[P, R], _answers[-1])


def register(operator: Operator) -> None:
    """Add an operator, behind those that there are.

    Raises:
        UsageError: its class has a rule already, or its rule's name is taken.
    """
    if operator.rule is not None:
        if any(rule.operator is operator.kind for rule in rules()):
            raise UsageError(f"the operator {operator.kind.__name__} has a rule already")
        if operator.rule.full_name in known_names():
            raise UsageError(f"there is a rule '{operator.rule.full_name}' already")
    _OPERATORS.append(operator)
    _forget()


def unregister(operator: Operator) -> None:
    """Take an operator out again."""
    _OPERATORS.remove(operator)
    _forget()


def rules() -> tuple[Rule, ...]:
    """All rules, in the order in which documents show them."""
    return tuple(operator.rule for operator in _OPERATORS if operator.rule is not None)


def known_names() -> tuple[str, ...]:
    """The names of all rules and merges."""
    names = (rule.full_name for rule in rules())
    return (*names, *WAYS, OF_CONSTANTS, *MERGES, PIECES, CHAIN)


def rule_for(operator: Op) -> Rule | None:
    """The rule for an operator, if there is one."""
    return _rule(type(operator))


@until_change
def _rule(kind: type[Op]) -> Rule | None:
    return next((rule for rule in rules() if rule.operator is kind), None)


def evaluator_of(operator: Op) -> Callable[[Any, Sequence[Constant | None]], Evaluated | None] | None:
    """What computes an operator over constants, if anything does."""
    return next((known.evaluate for known in _OPERATORS if known.kind is type(operator)), None)


@until_change
def onnx_readers(name: str) -> tuple[OnnxReader, ...]:
    """What may read an ONNX operator, by its name or its domain's and its own."""
    return tuple(operator.onnx[name] for operator in _OPERATORS if name in operator.onnx)


def passes_maps(name: str) -> bool:
    """Whether an ONNX operator is read as one that a map may pass or go into."""
    return any(operator.rule is not None and name in operator.onnx for operator in _OPERATORS)


@until_change
def aten_rows(name: str | None = None) -> tuple[Aten, ...]:
    """What is known of an ATen operator, by its name without namespace; of all of them without one."""
    rows = (row for operator in _OPERATORS for row in operator.aten)
    return tuple(row for row in rows if name is None or name in row.names)


def _forget() -> None:
    for answer in _answers:
        answer.cache_clear()
