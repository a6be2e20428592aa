"""Numbers wait until a map has found its way; where they then cannot be stored, it is asked with them at once."""

from __future__ import annotations

import numpy as np
import pytest
from support.views import Graph, node_of, numbers, of

from convbn.fuse.algebra.affine import Affine
from convbn.fuse.operators.elementwise import Arithmetic, Elementwise
from convbn.fuse.options import FuseOptions
from convbn.fuse.plan.draft import Draft
from convbn.fuse.plan.drafting.changes import UnfitError
from convbn.fuse.plan.planner import make_plan
from convbn.fuse.refusal import Reason
from convbn.fuse.view.dataflow import Constant, Value
from convbn.fuse.view.op import Other
from convbn.fuse.view.view import View

HUGE = Affine.scale_by(np.full(4, 1e300))
SCALE = Affine.scale_by(np.array([0.5, 2, 3, 4]))


def unread() -> np.ndarray:
    raise AssertionError("nobody has to read it")


def lazy(graph: Graph, mover: Value) -> Draft:
    return Draft(View(graph.nodes, pure=True), FuseOptions(), node_of(mover), {}, eager=False)


def weight_unread(graph: Graph, source: Value) -> Value:
    value = graph.conv("c", source)
    weight = node_of(value).inputs[1]
    assert weight is not None
    weight.constant = Constant((4, 4, 1, 1), unread, dtype=np.dtype("f4"))
    return value


def test_a_way_that_ends_is_left_without_a_number() -> None:
    graph = Graph()
    c = weight_unread(graph, graph.x)
    total = graph.add("s", Elementwise(Arithmetic.ADD), c, graph.add("o", Other("Tanh"), graph.x))
    out = graph.bn(total)
    refusal = lazy(graph, out).produce(total, SCALE, 1, reader=node_of(out))
    of(refusal, Reason.PRODUCER_NOT_LINEAR, "Tanh")
    with pytest.raises(AssertionError, match="nobody has to read"):
        graph.draft(out).produce(total, SCALE, 1, reader=node_of(out))


def test_numbers_come_with_the_edits() -> None:
    graph = Graph()
    c = weight_unread(graph, graph.x)
    out = graph.bn(c)
    draft = lazy(graph, out)
    assert draft.produce(c, SCALE, 1, reader=node_of(out)) is None
    assert draft.into == ("c",)
    with pytest.raises(AssertionError, match="nobody has to read"):
        _ = draft.edits


def test_what_is_read_on_the_way_is_computed() -> None:
    """The second map goes into a weight that the first one has changed already."""
    graph = Graph()
    c = graph.conv("c", graph.x)
    draft = lazy(graph, graph.bn(c))
    reader = c.readers[0].node
    assert draft.produce(c, SCALE, 1, reader=reader) is None
    weight = draft.constant(node_of(c), 1)
    assert isinstance(weight, Constant)
    np.testing.assert_array_equal(weight.array()[:, 0, 0, 0], SCALE.scale)


def test_numbers_that_cannot_be_stored() -> None:
    graph = Graph()
    c = graph.conv("c", graph.x)
    out = graph.bn(c)
    draft = lazy(graph, out)
    assert draft.produce(c, HUGE, 1, reader=node_of(out)) is None
    with pytest.raises(UnfitError):
        _ = draft.edits
    of(graph.draft(out).produce(c, HUGE, 1, reader=node_of(out)), Reason.OUT_OF_RANGE, "folded weights")


def test_another_way_is_taken_where_the_first_one_has_no_numbers() -> None:
    """A product takes a scale at either factor: the first layer's weight would overflow, the second one's does not."""
    graph = Graph()
    first, second = graph.conv("first", graph.x), graph.conv("second", graph.x)
    weight = node_of(first).inputs[1]
    assert weight is not None
    weight.constant = numbers(4, 4, 1, 1, fill=1e38)
    product = graph.add("m", Elementwise(Arithmetic.MULTIPLY), first, second)
    out = graph.bn(product)
    node_of(out).inputs[1:5] = [
        Value(str(i), (4,), constant=numbers(4, fill=fill)) for i, fill in enumerate((100.0, 0.0, 0.0, 1.0))
    ]
    out.observed = "an output"
    plan = make_plan(View(graph.nodes, pure=True), FuseOptions())
    assert [folded.into for folded in plan.folded] == [("second",)]
