"""Run a model as it stands, with nothing folded or fused behind its back, or in a runtime that is asked for.

ONNX graphs run in onnxruntime on the CPU with its optimisations off, and in onnx's reference evaluator
where onnxruntime has no kernel (float64 or bfloat16 convolutions). PyTorch runs eagerly on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from convbn.bench.models.errors import KernelMissingError, SessionError
from convbn.bench.models.inputs import Array, Feeds, is_onnx
from convbn.bench.runtimes.base import Variant
from convbn.bench.runtimes.registry import open_session
from convbn.export.engines.run.load import EngineFile, read_header

if TYPE_CHECKING:
    import onnx
    import torch

    Model: TypeAlias = (
        onnx.ModelProto | str | Path | torch.nn.Module | torch.export.ExportedProgram | EngineFile
    )

__all__ = ["Execution", "execute"]


@dataclass(frozen=True)
class Execution:
    """Outputs by sample, then in order of ``names``; ``runtime`` says what computed them.

    ``computed_in`` is the coarsest float type that it may have rounded to by itself.
    """

    names: tuple[str, ...]
    outputs: list[list[Array]]
    runtime: str
    computed_in: str | None = None


def execute(model: Model, role: str, feeds: Sequence[Feeds], runtime: str | None = None) -> Execution:
    """Run a model on the CPU as it stands, or in another runtime.

    Args:
        model: ONNX model, path of an ONNX file, PyTorch module, exported program, or an engine, which runs in its
            TensorRT on a GPU.
        role: what errors call it.
        feeds: arrays by input name, one mapping a sample.
        runtime: its name (:mod:`convbn.bench.runtimes.registry`); no other takes its place.

    Returns:
        The outputs of every sample.

    Raises:
        SessionError: the model cannot be run.
        NotSupportedError: onnxruntime or torch is missing.
    """
    if isinstance(model, EngineFile):
        name = read_header(model.path).runs_in
        side = Variant(role, engines={name: model})
    elif is_onnx(model):
        name, side = "onnxruntime-cpu@off", Variant(role, onnx=model)
    else:
        module = cast("torch.nn.Module | torch.export.ExportedProgram", model)
        name, side = "torch-cpu", Variant(role, module=module)
    try:
        with open_session(runtime or name, side) as session:
            outputs = [session.run(sample) for sample in feeds]
            return Execution(session.output_names, outputs, runtime or name, session.compute_dtype)
    except KernelMissingError:
        if runtime is not None:
            raise
        return _evaluate(model, role, feeds)


def _evaluate(model: Any, role: str, feeds: Sequence[Feeds]) -> Execution:
    from onnx.reference import ReferenceEvaluator

    try:
        with np.errstate(all="ignore"):
            evaluator = ReferenceEvaluator(str(model) if isinstance(model, Path) else model)
            known = set(evaluator.input_names)
            inputs = [{key: array for key, array in sample.items() if key in known} for sample in feeds]
            outputs = [[np.asarray(array) for array in evaluator.run(None, sample)] for sample in inputs]
    except Exception as error:  # the evaluator raises whatever its numpy code meets
        text = " ".join(str(error).split())[:300]
        raise SessionError(
            f"neither onnxruntime nor onnx's reference evaluator can run the model ({text})", source=role
        ) from error
    return Execution(tuple(str(name) for name in evaluator.output_names), outputs, "onnx reference evaluator")
