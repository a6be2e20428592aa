"""Which nodes put a model in a lower precision off, and the fewest of them that have to stay in float32."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convbn.bench.proof.node_errors import NodeError, node_errors
from convbn.export.precision.graphs import opset_of
from convbn.export.precision.half import ready_for
from convbn.export.precision.options import PrecisionOptions
from convbn.export.precision.precisions import PRECISIONS

if TYPE_CHECKING:
    import onnx

    from convbn.bench.models.inputs import Feeds
    from convbn.export.precision.convert import Converted

__all__ = ["Mending", "mended"]

_SHOWN = 5
#: Of so many at most it is tried what keeping them does: with more, little would be left of the precision.
_MOST = 16


@dataclass(frozen=True)
class Mending:
    """What is wrong with a model in a lower precision, and what would mend it.

    Attributes:
        worst: nodes by their own error, the worst first; none where they cannot be run side by side.
        keep: nodes that have to stay in float32; None where none were found with which the model passes.
        searched: whether any were looked for.
    """

    worst: tuple[NodeError, ...]
    keep: tuple[str, ...] | None
    searched: bool = True

    @property
    def blame(self) -> str:
        """The worst nodes, for a message; empty where they are not known."""
        shown = ", ".join(f"{row.operator} {row.node!r} {row.error:.2g}" for row in self.worst[:_SHOWN])
        return f"; errors of the worst nodes, each by itself: {shown}" if shown else ""

    @property
    def way(self) -> str:
        """What to do, for a message."""
        if self.keep is not None:
            return f"with --keep-fp32 {shlex.join(self.keep)} it passes"
        if self.searched and self.worst:
            return (
                f"keeping the worst {min(_MOST, len(self.worst))} in float32 does not mend it; use another "
                "precision, more or better calibration data, or a tolerance"
            )
        return "calibrate with more or better data, keep nodes in float32, or set a tolerance"


def mended(
    model: onnx.ModelProto,
    result: Converted,
    feeds: Feeds,
    options: PrecisionOptions,
    passes: Callable[[tuple[str, ...]], bool] | None,
    worst: tuple[NodeError, ...] | None = None,
) -> Mending:
    """Rank the nodes of a converted model, and find how many of the worst have to stay in float32.

    A node whose inputs are rounded too coarsely for it is kept together with those that round them.

    Args:
        model: before the conversion.
        result: of the conversion.
        feeds: one input, in the types of `model`.
        options: of the conversion.
        passes: whether the model is close enough to the original where these nodes, and no others, are kept; None for
            a comparison that says nothing of the model, which no choice of nodes changes.
        worst: the nodes, the worst first, where that is known already.
    """
    precision = result.record["precision"]
    if worst is None:
        before = ready_for(model, precision, opset_of(result.model), options)
        worst = node_errors(
            before, result.model, feeds, "max" if PRECISIONS[precision].bound is None else "rms"
        )
    if passes is None:
        return Mending(worst, None, searched=False)
    kept = [tuple(dict.fromkeys(options.keep_fp32))]
    for row in worst[:_MOST]:
        kept.append(tuple(dict.fromkeys([*kept[-1], row.node, *row.rounded_by])))
    return Mending(worst, _fewest(kept[1:], passes))


def _fewest(
    kept: Sequence[tuple[str, ...]], passes: Callable[[tuple[str, ...]], bool]
) -> tuple[str, ...] | None:
    """The first of growing sets that passes: twice as far each time, then halfway back."""
    low, high = 0, 1
    while not passes(kept[min(high, len(kept)) - 1]) if kept else True:
        if high >= len(kept):
            return None
        low, high = high, 2 * high
    high = min(high, len(kept))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(kept[middle - 1]) else (middle, high)
    return kept[high - 1]
