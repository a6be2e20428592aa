"""A model, where it is from and what it is fed with: what every command and function starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from convbn.errors import UsageError
from convbn.export.checkpoints.limits import Limits
from convbn.export.checkpoints.names import AS_THEY_ARE, Naming

if TYPE_CHECKING:
    from onnx import ModelProto

    from convbn.export.checkpoints.fused import Architecture
    from convbn.export.engines.run.load import EngineFile
    from convbn.export.onnx_io.read import OpenModel
    from convbn.export.precision.int8.images import Preprocess
    from convbn.fuse.report import Report

__all__ = ["LoadOptions", "SourceModel"]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to make a model of a file.

    Attributes:
        arch: for checkpoints, the architecture: its spec, what builds it, or a module.
        arch_args: its arguments, ``k=v``.
        input_shapes: shapes as typed, ``x:1x3x224x224``.
        inputs: a file or folder with inputs to use.
        preprocess: of images there, as :func:`convbn.export.precision.int8.calibration.read_calibration` takes it.
        seed: of the example inputs.
        trust: run the code that a checkpoint, ``.pt2`` or TorchScript archive brings.
        allow_cwd: let ``arch`` be imported from the current folder.
        key: where in a training checkpoint the weights lie.
        naming: what becomes of the names there.
        limits: caps on what a file may make its reader hold.
    """

    arch: Architecture | None = None
    arch_args: tuple[str, ...] = ()
    input_shapes: tuple[str, ...] = ()
    inputs: str | None = None
    preprocess: Preprocess | None = None
    seed: int = 0
    trust: bool = False
    allow_cwd: bool = False
    key: str | None = None
    naming: Naming = AS_THEY_ARE
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class SourceModel:
    """A model and where it is from.

    Attributes:
        model: an ONNX model, a graphsurgeon graph, a module or an exported program; None for an engine.
        example_inputs: positional inputs of a module or program.
        input_shapes: full shapes by input name, for open dimensions.
        inputs: samples to feed it with, arrays by name; None where they are to be drawn.
        path: the file it is from.
        sha256: of that file, if it was asked for.
        notes: what was done to the file's content before it was a model.
        input_names: names for a module's inputs, if each has one.
        opened: an ONNX model with its files, if its large weights were left in them.
        engines: an engine's file, by the name of the runtime that runs it.
    """

    model: Any
    example_inputs: tuple[Any, ...] | None = None
    input_shapes: Mapping[str, tuple[int, ...]] | None = None
    inputs: Sequence[Mapping[str, Any]] | None = None
    path: str | None = None
    sha256: str | None = None
    notes: tuple[str, ...] = ()
    input_names: tuple[str, ...] | None = None
    opened: OpenModel | None = None
    engines: Mapping[str, EngineFile] = field(default_factory=dict)

    @property
    def kind(self) -> str | None:
        """As :func:`convbn.fuse.kinds.kind_of` names it; None for an engine."""
        from convbn.fuse.kinds import kind_of

        return kind_of(self.model)

    @property
    def onnx(self) -> ModelProto | None:
        """The model, if it is an ONNX model."""
        return self.model if self.kind == "onnx" else None

    @property
    def is_torch(self) -> bool:
        """Whether it is a module or an exported program."""
        return (self.kind or "").startswith("torch")

    @property
    def runnable(self) -> Any:
        """What it is compared by: an ONNX file as it lies there, whatever becomes of the model in memory."""
        if self.engines:
            return next(iter(self.engines.values()))
        return self.path if self.path is not None and self.kind == "onnx" else self.model

    def needed_inputs(self) -> tuple[Any, ...]:
        """The example inputs of a module that is to be captured.

        Raises:
            UsageError: no shapes were given to make them from.
        """
        if self.example_inputs is None:
            raise UsageError(
                "the shapes of the inputs are needed to capture the module",
                source=self.path,
                hint="give --input-shape x:1x3x224x224",
            )
        return self.example_inputs

    def as_onnx(self, *, dynamic_batch: bool = False, opset: int | None = None) -> ModelProto:
        """The ONNX model; of a module, exported exactly as it is.

        Args:
            dynamic_batch: leave dimension 0 of a module's inputs free.
            opset: version of the default operator set, of a module.
        """
        if self.onnx is not None:
            return self.onnx
        from convbn.export.torch.save import export_onnx

        return export_onnx(
            self.model,
            self.needed_inputs(),
            input_names=self.input_names,
            dynamic_batch=dynamic_batch,
            opset=opset,
        )

    def captured(self, form: str, *, dynamic_batch: bool = False, opset: int | None = None) -> Any:
        """The form that is folded and written: ``onnx``, ``program`` or ``module``, each exactly as it came.

        Args:
            form: an ONNX model has no other form than ``onnx``, and a program is no module.
            dynamic_batch, opset: see :meth:`as_onnx`.
        """
        if form == "onnx":
            return self.as_onnx(dynamic_batch=dynamic_batch, opset=opset)
        if form == "module" or self.kind != "torch.nn.Module":
            return self.model
        from convbn.export.torch.save import export_program

        return export_program(self.model, self.needed_inputs())

    def named_in(self, report: Report) -> Report:
        """A report on the model, with the file it is from."""
        return replace(report, path=self.path, sha256=self.sha256, notes=(*self.notes, *report.notes))
