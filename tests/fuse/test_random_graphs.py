"""Random graphs: whatever is folded is equal, whatever stays has a reason, and a second run changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.random_graphs import difference, graphs, outlined

from convbn.fuse.fold import fold


def batchnorms(built: onnx.ModelProto) -> int:
    count, waiting = 0, [built.graph]
    while waiting:
        graph = waiting.pop()
        count += sum(node.op_type == "BatchNormalization" for node in graph.node)
        waiting += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return count


def check(built: onnx.ModelProto, kind: str) -> None:
    before = built.SerializeToString(deterministic=True)
    result = fold(built)
    assert built.SerializeToString(deterministic=True) == before
    report = result.report
    assert report.batchnorm.before == batchnorms(built)
    assert report.batchnorm.after == batchnorms(result.model)
    names = [entry.name for entry in (*report.folded, *report.kept)]
    assert len(names) == len(set(names)) == report.batchnorm.before
    assert all(entry.detail for entry in report.kept)
    assert report.nodes.after <= report.nodes.before
    onnx.checker.check_model(result.model, full_check=True)
    error, allowed = difference(built, result.model, kind)
    assert error < allowed
    again = fold(result.model)
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(
        deterministic=True
    )


def property_of(
    examples: int, kind: str, statistics: str | None = None, longest: int = 12
) -> Callable[[], None]:
    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(graphs(kind, statistics, longest))
    def holds(built: onnx.ModelProto) -> None:
        check(built, kind)

    return holds


def test_float32() -> None:
    property_of(240, "float32")()


@pytest.mark.parametrize(
    ("kind", "statistics"),
    [("float16", None), ("float16", "float32"), ("bfloat16", None), ("float64", None)],
    ids=["float16", "float16 with float32 statistics", "bfloat16", "float64"],
)
def test_other_dtypes(kind: str, statistics: str | None) -> None:
    property_of(40, kind, statistics, longest=7)()


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(graphs(longest=8), st.integers(0, 20), st.integers(1, 20))
def test_functions(built: onnx.ModelProto, first: int, length: int) -> None:
    """Whatever stands in a function of its own folds as if it did not."""
    check_outlined(built, first, length)


def check_outlined(built: onnx.ModelProto, first: int, length: int) -> None:
    count = len(built.graph.node)
    model = outlined(built, first % count, min(first % count + length, count))
    before = model.SerializeToString(deterministic=True)
    result, plain = fold(model), fold(built)
    assert model.SerializeToString(deterministic=True) == before
    assert len(result.report.folded) == len(plain.report.folded)
    assert [str(kept.reason) for kept in result.report.kept] == [
        str(kept.reason) for kept in plain.report.kept
    ]
    onnx.checker.check_model(result.model, full_check=True)
    error, allowed = difference(built, result.model, "float32")
    assert error < allowed
    again = fold(result.model)
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(
        deterministic=True
    )
