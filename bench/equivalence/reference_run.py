"""Run a model as it stands, with nothing folded or fused behind its back, or in a runtime that is asked for.

ONNX graphs run in onnxruntime on the CPU with its optimisations off, and in onnx's reference evaluator
where onnxruntime has no kernel (float64 or bfloat16 convolutions). PyTorch runs eagerly on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from convbn.bench.models.inputs import Array, Feeds, is_onnx
from convbn.bench.proof.graph.whole import Whole
from convbn.bench.runtimes.base import Variant
from convbn.bench.runtimes.onnxruntime_session import OnnxRuntimeSession
from convbn.bench.runtimes.registry import open_session
from convbn.export.engines.run.load import EngineFile, read_header
from convbn.export.packages.package import LoadedPackage

if TYPE_CHECKING:
    import onnx
    import torch

    Model: TypeAlias = (
        onnx.ModelProto
        | str
        | Path
        | torch.nn.Module
        | torch.export.ExportedProgram
        | EngineFile
        | LoadedPackage
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
        model: ONNX model, path of an ONNX file, PyTorch module, exported program, an engine, which runs in its
            TensorRT on a GPU, or a package that was loaded back.
        role: what errors call it.
        feeds: arrays by input name, one mapping a sample.
        runtime: its name (:mod:`convbn.bench.runtimes.registry`); no other takes its place.

    Returns:
        The outputs of every sample.

    Raises:
        SessionError: the model cannot be run.
        NotSupportedError: onnxruntime or torch is missing.
    """
    if isinstance(model, LoadedPackage):
        return _loaded(model, role, feeds)
    name = runtime or "torch-cpu"
    if isinstance(model, EngineFile):
        name = read_header(model.path).runs_in
        side = Variant(role, engines={name: model})
    elif is_onnx(model):
        if runtime is None:
            return _as_it_stands(model, role, feeds)
        side = Variant(role, onnx=model)
    else:
        side = Variant(role, module=cast("torch.nn.Module | torch.export.ExportedProgram", model))
    with open_session(name, side) as session:
        outputs = [session.run(sample) for sample in feeds]
        return Execution(session.output_names, outputs, name, session.compute_dtype)


def _loaded(package: LoadedPackage, role: str, feeds: Sequence[Feeds]) -> Execution:
    if package.session is None:
        session = open_session("torch-cpu", Variant(role, module=package.module))
    else:
        session = OnnxRuntimeSession(package.session, role, None)
    with session:
        outputs = [session.run(sample) for sample in feeds]
        return Execution(session.output_names, outputs, package.runtime)


def _as_it_stands(model: onnx.ModelProto | str | Path, role: str, feeds: Sequence[Feeds]) -> Execution:
    with Whole(model, role) as whole:
        outputs = [whole.outputs_for(sample) for sample in feeds]
        return Execution(tuple(whole.outputs), outputs, whole.runtime)
