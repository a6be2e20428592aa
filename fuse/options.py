"""The options of a fold: one frozen value, written into every report so that it can be repeated."""

from __future__ import annotations

from dataclasses import dataclass

from convbn.common.encoding import JsonReady

__all__ = ["FuseOptions"]


@dataclass(frozen=True, slots=True)
class FuseOptions(JsonReady):
    """What a fold may do, and how it is checked.

    Attributes:
        only: names of rules; if any are given, no other rule is used.
        skip: names of rules that are not used.
        verify: compare the result with the original on seeded random inputs.
        seed: of those inputs.
        freeze: initializers that are graph inputs too (ONNX, IR version 4 and later) are constants, and no
            longer inputs.
        materialize: weights that a module computes from its parameters at every call (weight norm, pruning, weight
            standardisation) become parameters. Other forms of a model fold them without it.
    """

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    verify: bool = True
    seed: int = 0
    freeze: bool = False
    materialize: bool = False

    def allows(self, rule: str) -> bool:
        """Whether the rule of this name may be used."""
        return rule not in self.skip and (not self.only or rule in self.only)
