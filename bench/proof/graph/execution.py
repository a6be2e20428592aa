"""Models and parts of models run for the judge: in onnxruntime as they stand, or in float64 by onnx's evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convbn.bench.models.errors import KernelMissingError, SessionError
from convbn.bench.models.inputs import Array
from convbn.bench.runtimes.onnxruntime_session import load_session
from convbn.common.dtypes import is_float
from convbn.common.text import one_line

if TYPE_CHECKING:
    import onnx

__all__ = ["Runner", "in_float64", "widened"]

_FLOATS = (1, 10, 16)  # FLOAT, FLOAT16, BFLOAT16
_DOUBLE = 11


class Runner:
    """One model, ready to be run several times; onnx's evaluator takes over where onnxruntime has no kernel.

    Args:
        model: a model, or one in serialized form.
        role: what errors call it.
        folder: where a serialized model's external data lies.
        optimised: let onnxruntime rewrite the graph as it likes.

    Attributes:
        runtime: what runs it.
    """

    def __init__(
        self,
        model: onnx.ModelProto | bytes,
        role: str,
        *,
        folder: Path | None = None,
        optimised: bool = False,
    ) -> None:
        self.runtime = "onnxruntime-cpu" if optimised else "onnxruntime-cpu@off"
        self._role = role
        self._evaluator: Any = None
        self._model, self._folder = model, folder
        try:
            self._session = load_session(model, role, folder=folder, level="all" if optimised else "off")
        except KernelMissingError:
            self._evaluate()

    def run(self, feeds: Mapping[str, Array], only: Sequence[str] | None = None) -> dict[str, Array]:
        """The outputs by name, or some of them.

        Raises:
            SessionError: the model cannot be run.
        """
        if self._evaluator is None:
            try:
                names = only or self._session.output_names
                return dict(zip(names, self._session.run(feeds, only), strict=True))
            except KernelMissingError:
                self._evaluate()
        names = list(only or self._evaluator.output_names)
        return dict(zip(names, _evaluated(self._evaluator, names, feeds, self._role), strict=True))

    def _evaluate(self) -> None:
        self._evaluator = _evaluator(self._model, self._folder)
        self.runtime = "onnx reference evaluator"


def in_float64(
    model: onnx.ModelProto, samples: Sequence[Mapping[str, Array]]
) -> list[dict[str, Array]] | None:
    """What a model gives where every float is a float64; None where onnx's evaluator cannot tell.

    Args:
        model: is not changed.
        samples: inputs by name.
    """
    wide = widened(model)
    names = [value.name for value in model.graph.output]
    try:
        evaluator = _evaluator(wide)
        return [
            dict(
                zip(
                    names,
                    _evaluated(evaluator, names, {k: _wide(array) for k, array in feeds.items()}, "float64"),
                    strict=True,
                )
            )
            for feeds in samples
        ]
    except SessionError:
        return None


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with float64 in the place of every coarser float."""
    from onnx import numpy_helper

    wide = type(model)()
    wide.CopyFrom(model)
    bodies: list[Any] = [wide.graph, *wide.functions]
    while bodies:
        body = bodies.pop()
        for tensor in getattr(body, "initializer", ()):
            if tensor.data_type in _FLOATS:
                tensor.CopyFrom(numpy_helper.from_array(_wide(numpy_helper.to_array(tensor)), tensor.name))
        for node in body.node:
            for attribute in node.attribute:
                bodies.extend(attribute.graphs)
                if attribute.HasField("g"):
                    bodies.append(attribute.g)
                if attribute.HasField("t") and attribute.t.data_type in _FLOATS:
                    exact = _wide(numpy_helper.to_array(attribute.t))
                    attribute.t.CopyFrom(numpy_helper.from_array(exact))
                if attribute.name in ("to", "dtype") and attribute.i in _FLOATS:
                    attribute.i = _DOUBLE
    return wide


def _wide(array: Array) -> Array:
    return array.astype(np.float64) if isinstance(array, np.ndarray) and is_float(array.dtype) else array


def _evaluator(model: onnx.ModelProto | bytes, folder: Path | None = None) -> Any:
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    class BatchNormalization(OpRun):
        """Below opset 14 onnx's own normalises by the batch at hand; a model for inference never does."""

        op_domain = ""

        def _run(self, x: Array, *parameters: Array, **attributes: Any) -> tuple[Array]:
            gamma, beta, mean, variance = (p.reshape(-1, *[1] * (x.ndim - 2)) for p in parameters)
            epsilon = attributes.get("epsilon")
            deviation = np.sqrt(variance + (1e-5 if epsilon is None else epsilon))
            return ((gamma * ((x - mean) / deviation) + beta).astype(x.dtype),)

    import onnx

    try:
        if isinstance(model, bytes):
            model = onnx.load_from_string(model)
        if folder is not None:
            onnx.load_external_data_for_model(model, str(folder))
        old = any(entry.domain == "" and entry.version < 14 for entry in model.opset_import)
        return ReferenceEvaluator(model, new_ops=[BatchNormalization] if old else None)
    except Exception as error:  # it raises whatever its numpy code meets
        raise SessionError(_text(error)) from error


def _evaluated(evaluator: Any, names: list[str], feeds: Mapping[str, Array], role: str) -> list[Any]:
    known = set(evaluator.input_names)
    try:
        with np.errstate(all="ignore"):
            given = {name: array for name, array in feeds.items() if name in known}
            return [np.asarray(array) for array in evaluator.run(names, given)]
    except Exception as error:  # it raises whatever its numpy code meets
        raise SessionError(_text(error), source=role) from error


def _text(error: Exception) -> str:
    return f"neither onnxruntime nor onnx's reference evaluator can run the model ({one_line(error, 300)})"
