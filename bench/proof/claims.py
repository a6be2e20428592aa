"""Matches values of the folded model to values of the original.

A node that reads the same and does the same gives the same; where a node differs, its output has to be shown equal to
what the original's readers read in that place. What a fold changed on purpose lies between the BatchNorm and the nodes
that took it in, and nowhere else: there nothing is claimed, though a value that proves to be the original's may serve.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from convbn.bench.proof.graph.dataflow import Dataflow

if TYPE_CHECKING:
    import onnx

__all__ = ["Alignment", "Claim", "align", "changed_values", "named_alike", "open_pairs"]


@dataclass(frozen=True)
class Claim:
    """A value of the folded model that must equal one of the original's.

    Attributes:
        original, folded: their names.
        binding: whether the fold has no say in it. Another claim may fail; then the value has changed on purpose.
        computed: whether the folded model computes it otherwise than the original computes a value of its own.
    """

    original: str
    folded: str
    binding: bool
    computed: bool = True


@dataclass
class Alignment:
    """What is the same in both models.

    Attributes:
        same: a folded value's original; where the models may be cut.
        claims: what has to be shown for that; all else follows from nodes that are the same.
        kept: whether an initializer of the folded model is the original's.
    """

    kept: Callable[[str], bool]
    same: dict[str, str] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)


def changed_values(
    original: Dataflow, moved: Iterable[str], merges: Iterable[Iterable[str]]
) -> set[str] | None:
    """Values that may have changed on purpose.

    Args:
        original: the model before.
        moved: what the folds say that they changed.
        merges: of each merge, the names of the nodes that it edits: what lies on the ways between them has changed.

    Returns:
        Names; None where a node is not found, so that any value may have changed.
    """
    places = original.report_names()
    before = original.strict_ancestors()
    after: list[int] = [0] * len(before)
    for i in reversed(range(len(before))):
        for name in original.nodes[i].output:
            for reader, _ in original.readers.get(name, ()):
                after[i] |= after[reader] | 1 << reader
    changed = 0
    for names in merges:
        up = down = members = 0
        for name in names:
            if name not in places:
                return None
            i = places[name]
            members |= 1 << i
            up |= before[i]
            down |= after[i]
        changed |= up & (down | members)
    between = {
        name for i, node in enumerate(original.nodes) if changed >> i & 1 for name in node.output if name
    }
    return (between | set(moved)) - set(original.outputs)


def align(
    original: Dataflow, folded: Dataflow, changed: Collection[str] | None, given_up: Collection[str] = ()
) -> Alignment:
    """Walk the folded model and find what its values stand for.

    Args:
        original: the model before.
        folded: the model after.
        changed: what :func:`changed_values` gives.
        given_up: folded values whose claims failed though nothing says that they must hold.
    """
    stored = _Constants(original, folded)
    made = Alignment(
        lambda name: stored.equal(name, name),
        {name: name for name in folded.inputs if name in original.inputs},
    )
    for name in folded.inputs:
        _other_names(original, folded, name, changed, made)
    for i, node in enumerate(folded.nodes):
        twin = _twin(original, folded, i)
        if twin is not None and _same(original, folded, twin, i, made.same, stored):
            made.same.update(zip(node.output, original.nodes[twin].output, strict=False))
            for name in node.output:
                _other_names(original, folded, name, changed, made)
            continue
        if _gives_on(original, folded, node, made):
            made.same[node.output[0]] = made.same[node.input[0]]
            _other_names(original, folded, node.output[0], changed, made)
            continue
        for name in node.output:
            if name:
                _claim(original, folded, name, changed, given_up, made)
    return made


def _gives_on(original: Dataflow, folded: Dataflow, node: onnx.NodeProto, made: Alignment) -> bool:
    """Whether a node gives what it reads another name, that of the value which the original has there."""
    if node.op_type != "Identity" or node.domain or node.input[0] not in made.same:
        return False
    return made.same[node.input[0]] in _candidates(original, folded, node.output[0])


def open_pairs(
    original: Dataflow, folded: Dataflow, changed: Collection[str] | None
) -> list[tuple[str, str]]:
    """Values of both models that may be the same, though the fold may have changed them on purpose.

    Returns:
        Names, the original's first.
    """
    pairs = []
    for name in folded.producer:
        candidates = _candidates(original, folded, name)
        if candidates and not any(_unchanged(original, z, changed) for z in candidates):
            pairs.append((candidates[0], name))
    return pairs


def named_alike(original: Dataflow, folded: Dataflow) -> list[tuple[str, str]]:
    """Values that the nodes of both models give, by name or else by who reads them; in the second one's order."""
    found = []
    for name in (output for node in folded.nodes for output in node.output if output):
        candidates = [z for z in _candidates(original, folded, name) if z in original.producer]
        if candidates:
            found.append((name if name in candidates and name in folded.outputs else candidates[0], name))
    return found


def _candidates(original: Dataflow, folded: Dataflow, name: str) -> list[str]:
    found = _read_as(original, folded, name)
    if name in original.producer:
        found.setdefault(name)
    return list(found)


def _claim(
    original: Dataflow,
    folded: Dataflow,
    name: str,
    changed: Collection[str] | None,
    given_up: Collection[str],
    made: Alignment,
) -> None:
    candidates = _candidates(original, folded, name)
    binding = [z for z in candidates if _unchanged(original, z, changed)]
    if binding:
        made.claims.extend(Claim(z, name, True) for z in binding)
        made.same[name] = binding[0]
    elif candidates and name not in given_up:
        made.claims.append(Claim(candidates[0], name, False))
        made.same[name] = candidates[0]


def _other_names(
    original: Dataflow, folded: Dataflow, name: str, changed: Collection[str] | None, made: Alignment
) -> None:
    """What is the same by its node, and is read in the place of another value: of a BatchNorm that did nothing."""
    for z in _read_as(original, folded, name):
        if z != made.same.get(name) and _unchanged(original, z, changed):
            made.claims.append(Claim(z, name, True, computed=False))


def _unchanged(original: Dataflow, name: str, changed: Collection[str] | None) -> bool:
    return name in original.outputs or (changed is not None and name not in changed)


def _read_as(original: Dataflow, folded: Dataflow, name: str) -> dict[str, None]:
    """What the readers of a folded value read in the same place of the original."""
    found: dict[str, None] = {}
    for reader, slot in folded.readers.get(name, ()):
        twin = _twin(original, folded, reader)
        if twin is None or slot >= len(original.nodes[twin].input):
            continue
        read = original.nodes[twin].input[slot]
        if _is_value(original, read):
            found[read] = None
    return found


def _is_value(original: Dataflow, name: str) -> bool:
    """Whether a name stands for more than a stored number, of which a fold may make another, or a value."""
    place = original.producer.get(name)
    return name in original.inputs if place is None else original.nodes[place].op_type != "Constant"


def _twin(original: Dataflow, folded: Dataflow, i: int) -> int | None:
    """The original's node of the same kind that gives the value of the same name."""
    node = folded.nodes[i]
    place = original.producer.get(node.output[0]) if node.output else None
    if place is None:
        return None
    twin = original.nodes[place]
    alike = (twin.op_type, twin.domain, twin.output[0]) == (node.op_type, node.domain, node.output[0])
    return place if alike else None


def _same(
    original: Dataflow,
    folded: Dataflow,
    twin: int,
    i: int,
    same: Mapping[str, str],
    stored: _Constants,
) -> bool:
    a, b = original.nodes[twin], folded.nodes[i]
    here, there = folded.reads[i], original.reads[twin]
    if len(here) != len(there) or _attributes(a) != _attributes(b):
        return False
    return all(
        same[v] == u if v in same else (v == u == "" or stored.equal(u, v))
        for u, v in zip(there, here, strict=True)
    )


def _attributes(node: onnx.NodeProto) -> list[bytes]:
    return sorted(attribute.SerializeToString() for attribute in node.attribute)


class _Constants:
    """Compares initializers, each pair once."""

    def __init__(self, original: Dataflow, folded: Dataflow) -> None:
        self._original, self._folded = original, folded
        self._known: dict[tuple[str, str], bool] = {}

    def equal(self, u: str, v: str) -> bool:
        if (u, v) not in self._known:
            self._known[u, v] = self._compare(u, v)
        return self._known[u, v]

    def _compare(self, u: str, v: str) -> bool:
        import numpy as np

        a, b = self._original.constants.get(u), self._folded.constants.get(v)
        if a is None or b is None or a.data_type != b.data_type or a.dims != b.dims:
            return False
        if a.HasField("raw_data") and b.HasField("raw_data"):
            return bool(a.raw_data == b.raw_data)
        x, y = self._original.array(u), self._folded.array(v)
        return x.tobytes() == y.tobytes() if x.dtype != np.dtype(object) else bool((x == y).all())
