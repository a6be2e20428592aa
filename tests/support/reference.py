"""The second judge of random graphs: onnx's reference evaluator, in float64 so that no runtime's rounding counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_conv_transpose import ConvTranspose as _ConvTranspose
from onnx.reference.ops.op_max_pool import MaxPool as _MaxPool

from support.graphs import random, relative_error, run
from support.random_graphs import ELEMENT, in_float32, in_one_type, shape_of

SHAKE = 2.0**-24
"""How much of itself every stored number is changed by, to see what a model makes of rounding."""

ROUNDOFF = {kind: 16 * roundoff for kind, (_, _, roundoff) in ELEMENT.items()} | {"float64": 2.0**-46}
"""What a fold may change, times what the model makes of it. In float64 more than its own 2⁻⁵³: the evaluator
rounds as well, and a shared weight lets its rounding cancel."""


class ConvTranspose(_ConvTranspose):
    """In groups, as the standard has it: onnx 1.23 knows groups of one channel, and adds B[0] to every one."""

    def _run(self, X: Any, W: Any, B: Any = None, group: int = 1, **attributes: Any) -> tuple[Any]:  # noqa: N803 - onnx passes them by name
        biases = [None] * group if B is None else np.split(B, group)
        parts = zip(np.split(X, group, axis=1), np.split(W, group), biases, strict=True)
        outputs = [_ConvTranspose._run(self, *part, group=1, **attributes)[0] for part in parts]
        return (np.concatenate(outputs, axis=1),)


class MaxPool(_MaxPool):
    """By the code that onnx 1.23 has for strides, which pads every number of axes; its other pads two."""

    def _run(self, x: Any, **attributes: Any) -> tuple[Any, ...]:
        pooled: tuple[Any, ...] = self._max_pool(x, **attributes)
        return pooled


class GlobalMaxPool(OpRun):
    """Over all axes behind the channels: onnx 1.23 takes the right ones in two dimensions only."""

    def _run(self, x: Any) -> tuple[Any]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


def evaluate(built: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    """The outputs of a model, computed in the types that it holds."""
    evaluator = ReferenceEvaluator(built, new_ops=[ConvTranspose, MaxPool, GlobalMaxPool])
    with np.errstate(all="ignore"):
        return [np.asarray(array) for array in evaluator.run(None, {"x": x})]


def in_float64(built: onnx.ModelProto, jitter: float = 0.0) -> list[np.ndarray]:
    """The outputs of a model with every float widened."""
    return evaluate(in_one_type(built, TensorProto.DOUBLE, jitter), _input(built).astype(np.float64))


def fold_error(built: onnx.ModelProto, folded: onnx.ModelProto, kind: str) -> tuple[float, float]:
    """The relative error between a model and its fold, and how much of it the fold's own rounding may explain."""
    before, after = in_float64(built), in_float64(folded)
    # The folded one as well: where two layers shared a weight, each may have its own now, and be rounded apart.
    return _error(before, after, ROUNDOFF[kind], (built, before), (folded, after))


def read_apart(built: onnx.ModelProto) -> str | None:
    """Why onnxruntime is known to compute other numbers than the standard, None where it is not."""
    made = {name: node.op_type for node in built.graph.node for name in node.output}
    if any(node.op_type == "Div" and made.get(node.input[1]) == "Sigmoid" for node in built.graph.node):
        return "onnxruntime's Sigmoid is right to 2⁻²⁴ of 1, not of itself: what divides by it is not"
    return None


def judges_error(built: onnx.ModelProto) -> tuple[float, float]:
    """The relative error between the two judges of one model, and what float32 may explain of it."""
    before = in_float64(built)
    return _error(before, run(in_float32(built), {"x": _input(built)}), 1e-4, (built, before))


def _input(built: onnx.ModelProto) -> np.ndarray:
    return random(*shape_of(built), seed=1)


def _error(
    before: list[np.ndarray],
    other: list[np.ndarray],
    allowed: float,
    *models: tuple[onnx.ModelProto, list[np.ndarray]],
) -> tuple[float, float]:
    """``max|a − b| / max|a|`` and the bound, which grows by what the models make of a change of their numbers."""
    assert [array.shape for array in before] == [array.shape for array in other]
    seen = [i for i, a in enumerate(before) if np.isfinite(a).all() and np.abs(a).max() > 0]
    # Beyond float32 a runtime has infinities where float64 has numbers; a fold in float64 has none.
    seen = [i for i in seen if other[i].dtype == np.float64 or np.isfinite(other[i]).all()]
    if not seen:
        return 0.0, allowed
    error = relative_error([before[i] for i in seen], [other[i] for i in seen])
    if not error < allowed:
        moved = [_moved(*model, seen) for model in models]
        allowed *= max(1.0, *(one / SHAKE for one in moved))
    return error, allowed


def _moved(built: onnx.ModelProto, outputs: list[np.ndarray], seen: list[int]) -> float:
    shaken = in_float64(built, SHAKE)
    return relative_error([outputs[i] for i in seen], [shaken[i] for i in seen])
