"""Random modules against eager PyTorch: folded as module, as exported program, and as ONNX graph in onnxruntime."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from support.module_laws import (
    check_in_float32,
    check_module,
    check_program,
    check_through_onnx,
    check_traced,
)
from support.random_modules import Drawn, modules


def property_of(law: Callable[[Drawn], object], examples: int, longest: int = 9) -> Callable[[], None]:
    # Without shrinking: a smaller example costs minutes of exports, and the repr of the first one says all.
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(modules(longest))
    def holds(module: Drawn) -> None:
        law(module)

    return holds


def test_module_form() -> None:
    property_of(check_module, 35)()


def test_module_form_without_inputs() -> None:
    property_of(check_traced, 120)()


def test_graph_form() -> None:
    property_of(check_program, 40)()


def test_module_form_in_float32() -> None:
    property_of(check_in_float32, 15)()


@pytest.mark.filterwarnings("ignore")
def test_through_onnx() -> None:
    property_of(check_through_onnx, 10, 7)()
