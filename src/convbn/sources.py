"""What a command's IN is: an ONNX file, a program, or a checkpoint with the architecture it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from convbn.errors import NotSupportedError, UsageError
from convbn.export.checkpoints.limits import Limits

if TYPE_CHECKING:
    import onnx
    import torch

    from convbn.export.onnx_io.read import OpenModel
    from convbn.fused_files import Architecture

__all__ = ["Source", "SourceOptions", "open_source"]


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How to make a model of a file.

    Attributes:
        arch: for checkpoints, the architecture: its spec, what builds it, or a module.
        arch_args: its arguments, ``k=v``.
        input_shapes: shapes as typed, ``x:1x3x224x224``.
        seed: of the example inputs.
        trust: run the code that a checkpoint, ``.pt2`` or TorchScript archive brings.
        allow_cwd: let ``arch`` be imported from the current folder.
        key: where in a training checkpoint the weights lie.
        limits: caps on what a file may make its reader hold.
    """

    arch: Architecture | None = None
    arch_args: tuple[str, ...] = ()
    input_shapes: tuple[str, ...] = ()
    seed: int = 0
    trust: bool = False
    allow_cwd: bool = False
    key: str | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Source:
    """An opened input.

    Attributes:
        path: the file.
        sha256: of the file, if it was asked for.
        onnx: the model, if it is an ONNX file.
        opened: the same with its files, if its weights were left in them.
        module: the module, if it is a checkpoint.
        program: the program, if it is a ``.pt2`` archive.
        example_inputs: of the module or program, by the given shapes.
        shapes: the given shapes by input name.
        notes: what was done to the checkpoint before it fitted.
        input_names: names given to a module's inputs, if each has one.
    """

    path: str
    sha256: str | None
    onnx: onnx.ModelProto | None = None
    opened: OpenModel | None = None
    module: torch.nn.Module | None = None
    program: torch.export.ExportedProgram | None = None
    example_inputs: tuple[Any, ...] | None = None
    shapes: Mapping[str, tuple[int, ...]] | None = None
    notes: tuple[str, ...] = ()
    input_names: tuple[str, ...] | None = None

    @property
    def model(self) -> Any:
        """The module, program or ONNX model, whichever it is."""
        return next((form for form in (self.onnx, self.program) if form is not None), self.module)

    @property
    def runnable(self) -> Any:
        """What can be run: the model, or its path if the weights were left in files."""
        return self.model if self.opened is None else self.path

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


def open_source(path: str, options: SourceOptions, *, light: bool = False, hashed: bool = True) -> Source:
    """Open ``path``, telling its kind by its content; ``hf-hub:ORG/NAME`` is opened as its weights.

    Args:
        path: the file.
        options: how to make a model of it.
        light: leave an ONNX model's large weights in the files they lie in.
        hashed: hash the file; only a light ONNX model can go without.

    Raises:
        ConvBNError: it cannot be read, is of a kind that is not supported here, or options are missing.
    """
    from convbn import checkpoint_sources as checkpoints
    from convbn.export.checkpoints.hub import HUB
    from convbn.export.files.sniff import ArtifactKind, sniff

    if path.startswith(HUB):
        return checkpoints.open_hub(path, options)
    kind = sniff(path, max_pickle_mib=options.limits.pickle_mib)
    if kind is ArtifactKind.ONNX:
        return _open_onnx(path, options, light=light, hashed=hashed)
    if kind is ArtifactKind.PT2:
        return checkpoints.open_program(path, options)
    if kind is ArtifactKind.ENGINE:
        raise NotSupportedError("is a TensorRT engine, which cannot be read back into a model", source=path)
    return checkpoints.open_checkpoint(path, kind, options)


def _open_onnx(path: str, options: SourceOptions, *, light: bool, hashed: bool) -> Source:
    from convbn.export.onnx_io.read import OpenModel, open_model, read_model

    if options.arch is not None:
        raise UsageError("--arch is for checkpoints, and this is an ONNX file", source=path)
    loaded = open_model(path, hashed=hashed) if light else read_model(path)
    inputs = [v.name for v in loaded.model.graph.input]
    stored = {t.name for t in loaded.model.graph.initializer}
    shapes = _named_shapes(options, [name for name in inputs if name not in stored])
    opened = loaded if isinstance(loaded, OpenModel) else None
    return Source(path, loaded.sha256, onnx=loaded.model, opened=opened, shapes=shapes or None)


def _named_shapes(options: SourceOptions, inputs: list[str]) -> dict[str, tuple[int, ...]]:
    from convbn.export.shapes import parse_shape

    shapes: dict[str, tuple[int, ...]] = {}
    for text in options.input_shapes:
        name, shape = parse_shape(text)
        if name is None:
            if len(inputs) != 1:
                raise UsageError(
                    f"--input-shape {text} names no input", hint=f"the inputs are {', '.join(inputs)}"
                )
            name = inputs[0]
        if name not in inputs:
            raise UsageError(f"there is no input '{name}'", hint=f"the inputs are {', '.join(inputs)}")
        shapes[name] = shape
    return shapes
