"""Which kind of pair two models are."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from convbn.bench.equivalence.pairs.converted import ConvertedPair
from convbn.bench.equivalence.pairs.folded import (
    ExportedPair,
    FoldedModules,
    FoldedPair,
    FoldedPrograms,
)
from convbn.bench.equivalence.pairs.pair import Pair
from convbn.bench.equivalence.tolerance import Tolerance
from convbn.bench.models.inputs import is_onnx
from convbn.bench.proof.prove import FoldPlan

if TYPE_CHECKING:
    import torch

    from convbn.bench.equivalence.reference_run import Model

__all__ = ["pair_of"]


def pair_of(
    reference: Model,
    candidate: Model,
    tolerance: Tolerance | None,
    runtime: str | None,
    plan: FoldPlan | None,
) -> Pair:
    """The two as they are to be compared.

    Args:
        reference: the one that the other is held against.
        candidate: the other.
        tolerance: where the candidate is of another precision.
        runtime: what runs both; None for what runs each as it stands.
        plan: of the fold that made the candidate; None where it is of another origin.
    """
    if plan is not None and is_onnx(reference) and is_onnx(candidate):
        return FoldedPair(reference, candidate, plan)
    if plan is not None and plan.exported is not None and is_onnx(candidate):
        return ExportedPair(cast("torch.nn.Module", reference), candidate, plan)
    if plan is not None and not is_onnx(reference) and not is_onnx(candidate):
        import torch

        if isinstance(reference, torch.nn.Module) and isinstance(candidate, torch.nn.Module):
            return FoldedModules(reference, candidate, plan)
        programs = torch.export.ExportedProgram
        if isinstance(reference, programs) and isinstance(candidate, programs):
            return FoldedPrograms(reference, candidate, plan)
    if tolerance is not None:
        return ConvertedPair(reference, candidate, tolerance, runtime)
    return Pair(reference, candidate, runtime)
