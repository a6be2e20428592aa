"""Random graphs: whatever is folded is equal, whatever stays has a reason, and a second run changes nothing.

Two judges say what is equal: onnxruntime without its optimisations, and onnx's reference evaluator in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.graph_laws import check, check_in_float64, check_judges, check_outlined
from support.random_graphs import graphs


def property_of(
    law: Callable[..., None], examples: int, strategy: st.SearchStrategy[onnx.ModelProto], *more: Any
) -> Callable[[], None]:
    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def holds(built: onnx.ModelProto) -> None:
        law(built, *more)

    return holds


def test_float32() -> None:
    property_of(check, 240, graphs(), "float32")()


@pytest.mark.parametrize(
    ("kind", "statistics"),
    [("float16", None), ("float16", "float32"), ("bfloat16", None), ("float64", None)],
    ids=["float16", "float16 with float32 statistics", "bfloat16", "float64"],
)
def test_other_dtypes(kind: str, statistics: str | None) -> None:
    property_of(check, 40, graphs(kind, statistics, longest=7), kind)()


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(graphs(longest=8), st.integers(0, 20), st.integers(1, 20))
def test_functions(built: onnx.ModelProto, first: int, length: int) -> None:
    check_outlined(built, first, length)


@pytest.mark.parametrize(("kind", "examples"), [("float64", 100), ("float32", 80), ("float16", 30)])
def test_in_the_reference_evaluator(kind: str, examples: int) -> None:
    property_of(check_in_float64, examples, graphs(kind, longest=8), kind)()


def test_the_judges_agree() -> None:
    reasons: list[str | None] = []
    property_of(lambda built: reasons.append(check_judges(built)), 80, graphs(longest=8))()
    # Which graphs are drawn depends on the modules that are loaded: Hypothesis takes constants out of them.
    assert len([reason for reason in reasons if reason]) < len(reasons) / 2
