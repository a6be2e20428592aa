"""The rules there are, by name; the order is the one reports and ``--help`` show them in."""

from __future__ import annotations

from convbn.fuse.rules import batch_norm, conv, conv_transpose, linear
from convbn.fuse.rules.rule import Rule
from convbn.fuse.view.ops import Op

__all__ = ["RULES", "rule_for"]

RULES: tuple[Rule, ...] = (conv.RULE, conv_transpose.RULE, linear.RULE, batch_norm.RULE)

_BY_OPERATOR = {rule.operator: rule for rule in RULES}


def rule_for(operator: Op) -> Rule | None:
    """The rule that lets ``operator`` take in an affine map, if there is one."""
    return _BY_OPERATOR.get(type(operator))
