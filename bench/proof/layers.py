"""``convbn verify --layers``: compares all values that two ONNX models share by name; finds the first that differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convbn.bench.equivalence.tolerance import bound_of
from convbn.bench.models.inputs import Array, Feeds
from convbn.bench.proof.claims import named_alike
from convbn.bench.proof.gaps import relative_gap
from convbn.bench.proof.graph.dataflow import Dataflow
from convbn.bench.proof.graph.whole import Whole
from convbn.common.dtypes import is_float
from convbn.common.encoding import JsonReady

__all__ = ["LayerDifference", "Layers", "compare_layers"]

#: As for outputs: so many times what the reference itself moves by is let through.
_NOISE_MULTIPLE = 16.0


@dataclass(frozen=True)
class LayerDifference(JsonReady):
    """One value of both models.

    Attributes:
        value: its name in the reference.
        candidate: its name in the candidate.
        op: the operator that gives it there.
        error: max |a − b| / max |a|.
        bound: what that may be: √ε, or a multiple of what the reference moves by where its inputs move by a unit in
            the last place.
        same: within the bound.
    """

    value: str
    candidate: str
    op: str
    error: float
    bound: float
    same: bool


@dataclass(frozen=True)
class Layers(JsonReady):
    """All values that stand in both models.

    Attributes:
        rows: in the candidate's running order.
        first: the first value from which a difference reaches an output. A value that differs and whose readers
            agree again was changed on purpose.
    """

    rows: tuple[LayerDifference, ...]
    first: LayerDifference | None


def compare_layers(reference: Whole, candidate: Whole, feeds: Feeds, moved: Feeds | None) -> Layers:
    """Run both from end to end and compare every value that they have in common.

    Args:
        reference: an ONNX model.
        candidate: another; values are found by their names, and by who reads them.
        feeds: the input.
        moved: the same, moved by a unit in the last place.

    Raises:
        SessionError: one of them cannot be run, or a value is no tensor.
    """
    a, b = reference.flow, candidate.flow
    pairs = named_alike(a, b)
    wanted = [name for name, _ in pairs]
    reference.offer(wanted)
    candidate.offer(name for _, name in pairs)
    noise: Mapping[str, Array] = {} if moved is None else dict(reference.values(moved, wanted))
    before = reference.values(feeds, wanted)
    after = candidate.values(feeds, [name for _, name in pairs])
    rows = [_row(b, x, y, before[x], after[y], noise.get(x)) for x, y in pairs]
    return Layers(tuple(rows), _first(b, rows))


def _row(b: Dataflow, x: str, y: str, before: Array, after: Array, moved: Array | None) -> LayerDifference:
    error = relative_gap(before, after)
    bound = bound_of(before.dtype.name) if is_float(before.dtype) else 0.0
    if moved is not None:
        bound = max(bound, _NOISE_MULTIPLE * relative_gap(before, moved))
    return LayerDifference(x, y, b.nodes[b.producer[y]].op_type, error, bound, error <= bound)


def _first(b: Dataflow, rows: Sequence[LayerDifference]) -> LayerDifference | None:
    """Walk back from the outputs through what differs, or has no counterpart, to where it begins."""
    by_name = {row.candidate: row for row in rows}
    waiting = [name for name in b.outputs if name in by_name and not by_name[name].same]
    reached = set(waiting)
    while waiting:
        for name in b.reads[b.producer[waiting.pop()]]:
            known = by_name.get(name)
            if name in b.producer and name not in reached and not (known is not None and known.same):
                reached.add(name)
                waiting.append(name)
    return next((row for row in rows if row.candidate in reached), None)
