"""The rules there are; the order is the one reports and documents show them in."""

from __future__ import annotations

from convbn.fuse.rules import (
    activation,
    batch_norm,
    concat,
    conv,
    conv_transpose,
    dequantize,
    elementwise,
    linear,
    mixture,
    normalization,
    pad,
    pool,
    rearrangement,
    split,
)
from convbn.fuse.rules.rule import Rule
from convbn.fuse.view.ops import Op

__all__ = ["RULES", "rule_for"]

RULES: tuple[Rule, ...] = (
    conv.RULE,
    conv_transpose.RULE,
    linear.RULE,
    batch_norm.RULE,
    normalization.RULE,
    dequantize.RULE,
    elementwise.RULE,
    concat.RULE,
    *split.RULES,
    pool.RULE,
    pad.RULE,
    mixture.RULE,
    activation.RULE,
    *rearrangement.RULES,
)

_BY_OPERATOR = {rule.operator: rule for rule in RULES}


def rule_for(operator: Op) -> Rule | None:
    """The rule for an operator, if there is one."""
    return _BY_OPERATOR.get(type(operator))
