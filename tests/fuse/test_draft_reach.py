"""How far one attempt to move a map goes: other readers, limits, and what it looked at."""

from __future__ import annotations

import numpy as np
import pytest
from support.views import Graph, node_of, numbers, of

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.activation import Activation
from convbn.fuse.operators.concat import Concat
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.elementwise import Arithmetic, Elementwise
from convbn.fuse.plan.attempts import Footprint
from convbn.fuse.refusal import Reason
from convbn.fuse.view.dataflow import Constant, Value
from convbn.fuse.view.op import Other, Window

SCALE = Affine.scale_by(np.array([0.5, 2, 3, 4]))
SIGNS = Affine(np.array([1.0, -1, 1, -1]), np.array([1.0, 2, 3, 4]))
WHOLE = Affine(SCALE.scale, SIGNS.shift)
IDENTITY = Affine.scale_by(np.ones(4))
RELU = Activation("Relu")


@pytest.fixture
def graph() -> Graph:
    return Graph()


# --- compensation ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("affine", "axis", "pure", "mover", "goes"),
    [
        (SCALE, 1, True, "bn", True),
        (SIGNS, 1, True, "bn", True),
        (WHOLE, 1, True, "bn", False),
        (SCALE, 1, False, "bn", False),
        (SCALE, 1, True, "product", False),
        (SCALE, (1, 2), True, "bn", False),
        (Affine.scale_by(np.array([0.0, 1, 1, 1])), 1, True, "bn", False),
    ],
)
def test_other_readers_are_compensated(
    graph: Graph, affine: Affine, axis: int | tuple[int, int], pure: bool, mover: str, goes: bool
) -> None:
    c = graph.conv("c", graph.x)
    out = graph.bn(c) if mover == "bn" else graph.add("m", Elementwise(Arithmetic.MULTIPLY), c, numbers(1))
    unpadded = Conv(1, window=Window((1, 1), (1, 1), (0, 0), (0, 0)))
    reader = node_of(graph.add("d", unpadded, c, numbers(4, 4, 1, 1)))
    draft = graph.draft(out, pure=pure)
    refusal = draft.produce(c, affine, axis, reader=node_of(out))
    if goes:
        assert refusal is None
        assert draft.into == ("d", "c")
        weight = draft.constant(reader, 1)
        assert isinstance(weight, Constant)
        np.testing.assert_allclose(weight.array()[0, :, 0, 0], 1 / affine.scale)
    else:
        of(
            refusal,
            Reason.SEVERAL_READERS,
            "the output of Conv 'c' is also read by Conv 'd', which must not see",
        )
        assert draft.edits == ()


def test_a_reader_that_cannot_be_compensated_says_why(graph: Graph) -> None:
    c = graph.conv("c", graph.x)
    out = graph.bn(c)
    graph.add("o", Other("Tanh"), c)
    refusal = graph.draft(out).produce(c, SCALE, 1, reader=node_of(out))
    of(refusal, Reason.SEVERAL_READERS, "must not see it changed: Tanh 'o' cannot take a scale")


@pytest.mark.parametrize(("readers", "says"), [(4, "Tanh 'o3', which"), (5, "Tanh 'o3', …, which")])
def test_four_readers_are_named(graph: Graph, readers: int, says: str) -> None:
    c = graph.conv("c", graph.x)
    out = graph.bn(c)
    for i in reversed(range(readers)):
        graph.add(f"o{i}", Other("Tanh"), c)
    refusal = graph.draft(out).produce(c, WHOLE, 1, reader=node_of(out))
    of(refusal, Reason.SEVERAL_READERS, "read by Tanh 'o0', Tanh 'o1', Tanh 'o2', " + says)


# --- how far -----------------------------------------------------------------------------------------


def row(graph: Graph, name: str, source: Value, length: int) -> Value:
    for i in range(length):
        source = graph.add(f"{name}{i}", RELU, source)
    return source


@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_sixty_operators_in_a_row_and_no_more(graph: Graph, direction: str) -> None:
    """All with one draft: a way that failed, or went, leaves the next one as much room and no more."""
    lengths = (61, 60, 60, 61)
    ends = [row(graph, f"a{i}", graph.conv(f"c{i}", graph.x), n) for i, n in enumerate(lengths)]
    out = graph.bn(graph.x)
    starts = [graph.add(f"s{i}", RELU, graph.x) for i in range(4)]
    for i, (start, n) in enumerate(zip(starts, lengths, strict=True)):
        graph.conv(f"d{i}", row(graph, f"b{i}", start, n))
    draft = graph.draft(out)
    for start, end, n in zip(starts, ends, lengths, strict=True):
        if direction == "backward":
            refusal = draft.produce(end, SCALE, 1, reader=node_of(out))
        else:
            refusal = draft.consume(start, SCALE, 1)
        if n == 61:
            of(refusal, Reason.TOO_FAR, "more than 60 operators")
        else:
            assert refusal is None


@pytest.mark.parametrize(("branches", "goes"), [(399, True), (400, False)])
def test_four_hundred_values_and_no_more(graph: Graph, branches: int, goes: bool) -> None:
    parts = [graph.conv(f"c{i}", graph.x) for i in range(branches)]
    for part in parts:
        part.shape = (1, 4, 3, 3)
    joined = graph.add("j", Concat(1), *parts)
    out = graph.bn(joined)
    affine = Affine.scale_by(np.full(4 * branches, 2.0))
    draft = graph.draft(out)
    refusal = draft.produce(joined, affine, 1, reader=node_of(out))
    if goes:
        assert refusal is None
        assert len(draft.edits) == 2 * branches
    else:
        of(refusal, Reason.TOO_FAR)


def test_a_way_that_comes_back_has_no_end(graph: Graph) -> None:
    out = graph.bn(graph.x)
    graph.conv("d", out)
    draft = graph.draft(out)
    assert draft.consume(out, SCALE, 1) is None
    of(draft.consume(out, SCALE, 1), Reason.SEVERAL_READERS, "comes back to 'bn'")


# --- what was looked at ------------------------------------------------------------------------------


def names(seen: Footprint) -> list[str]:
    assert all(id(node) == key for key, node in seen.items())
    return sorted(node.name for node in seen.values())


def test_backward_looks_at_what_gives_and_reads_each_value(graph: Graph) -> None:
    c = graph.conv("c", graph.x)
    r = graph.add("r", RELU, c)
    out = graph.bn(r)
    graph.add("o", Other("Tanh"), r)
    graph.add("p", Other("Tanh"), out)
    seen: Footprint = {}
    graph.draft(out, seen=seen).produce(r, WHOLE, 1, reader=node_of(out))
    assert names(seen) == ["bn", "o", "r"]
    seen = {}
    graph.draft(out, seen=seen).produce(graph.x, WHOLE, 1, reader=node_of(c))
    assert names(seen) == ["c"]


def test_forward_looks_at_what_gives_and_reads_each_value(graph: Graph) -> None:
    out = graph.bn(graph.conv("c", graph.x))
    graph.conv("d", graph.add("r", RELU, out))
    graph.conv("e", out)
    seen: Footprint = {}
    assert graph.draft(out, seen=seen).consume(out, SCALE, 1) is None
    assert names(seen) == ["bn", "d", "e", "r"]
    out.observed, seen = "an output", {}
    of(graph.draft(out, seen=seen).consume(out, SCALE, 1), Reason.OBSERVED)
    assert names(seen) == ["bn", "e", "r"]
