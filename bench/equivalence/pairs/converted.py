"""A model and the same in another precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from convbn.bench.equivalence.difference import Moved
from convbn.bench.equivalence.half_emulation import rounded_graph
from convbn.bench.equivalence.noise import moved_by_rounding, weights_moved
from convbn.bench.equivalence.pairs.pair import Pair
from convbn.bench.equivalence.reference_run import Execution, execute
from convbn.bench.equivalence.tolerance import Tolerance, coarsest_float
from convbn.bench.models.arguments import alike
from convbn.bench.models.errors import SessionError
from convbn.bench.models.inputs import Feeds, input_specs, is_onnx
from convbn.common.dtypes import dtype_of, is_float

if TYPE_CHECKING:
    from convbn.bench.equivalence.reference_run import Model

__all__ = ["ConvertedPair"]

#: Draws of weights that are moved by their rounding.
_DRAWS = 2


class ConvertedPair(Pair):
    """A model and the same in another precision.

    Args:
        reference: the model before.
        candidate: the model after.
        tolerance: how far it may be off.
        runtime: what runs both; None for what runs each as it stands.
    """

    def __init__(self, reference: Model, candidate: Model, tolerance: Tolerance, runtime: str | None) -> None:
        super().__init__(reference, candidate, runtime)
        self.unit = tolerance.unit
        self._exact: Model = candidate

    def candidate(self, feeds: Sequence[Feeds]) -> Execution:
        """The candidate's outputs, with every rounding that the CPU provider would leave out (see :class:`Pair`)."""
        fitted = [self._fed(sample) for sample in feeds]
        low = coarsest_float(self._candidate) if self._runtime is None and is_onnx(self._candidate) else None
        rounded = None
        if low in ("float16", "bfloat16") and is_onnx(self._candidate):
            import onnx

            given = self._candidate
            rounded = rounded_graph(onnx.load(str(given)) if isinstance(given, str | Path) else given)
        # The provider has no bfloat16 convolution to run.
        if rounded is None or low == "float16":
            actual = execute(self._candidate, "candidate", fitted, self._runtime)
            if low != "float16":
                return actual
            if rounded is None:
                return replace(actual, runtime=f"{actual.runtime}, which computes float16 in float32")
        self._exact = rounded
        exact = execute(rounded, "candidate", fitted)
        return replace(exact, runtime=f"{exact.runtime}, rounded to {low} after every node")

    def noise(self, feeds: Sequence[Feeds]) -> list[Moved]:
        """What one unit of the candidate's type in the first input moves (see :class:`Pair`)."""
        return [] if self.unit is None else super().noise(feeds)

    def more_noise(self, feeds: Sequence[Feeds]) -> list[Moved]:
        """What one unit of that type moves in the other inputs, and what rounding to it moves in the weights."""
        return [] if self.unit is None else super().more_noise(feeds)

    def _rewritten(self, feeds: Sequence[Feeds]) -> list[Moved]:
        made: list[Moved] = []
        for seed in range(_DRAWS):
            model = None if self.unit is None else weights_moved(self._reference, self.unit / 2, seed)
            if model is None:
                continue
            moved = [moved_by_rounding(sample, self.unit) or sample for sample in feeds]
            try:
                made += enumerate(execute(model, "reference", moved).outputs)
            except SessionError:  # a number that was a shape
                continue
        return made

    def _compared(self) -> Model:
        return self._exact

    def _fed(self, feeds: Feeds) -> Feeds:
        return _fitted(self._candidate, feeds)


def _fitted(model: Model, feeds: Feeds) -> Feeds:
    """The feeds with floats in the type that the model takes."""
    if not is_onnx(model):
        return feeds
    dtypes = {spec.name: dtype_of(spec.dtype) for spec in input_specs(model)}
    return alike(
        feeds,
        {
            name: array.astype(dtypes[name])
            if name in dtypes and is_float(array.dtype) and is_float(dtypes[name])
            else array
            for name, array in feeds.items()
        },
    )
