"""What a command's IN is: an ONNX file, or a checkpoint together with the architecture it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convbn.errors import BadInputError, NotSupportedError, UsageError

if TYPE_CHECKING:
    import onnx
    import torch

__all__ = ["Source", "SourceOptions", "open_source"]

_NO_ARCHITECTURE = "name the architecture with --arch torchvision:NAME, timm:NAME or package.module:callable"


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How to make a model of a checkpoint.

    Attributes:
        arch: the architecture's spec, for checkpoints.
        arch_args: its arguments, ``k=v``.
        input_shapes: shapes as typed, ``x:1x3x224x224``.
        seed: of the example inputs.
    """

    arch: str | None = None
    arch_args: tuple[str, ...] = ()
    input_shapes: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """An opened input.

    Attributes:
        path: the file.
        sha256: of the file.
        onnx: the model, if it is an ONNX file.
        module: the module, if it is a checkpoint.
        example_inputs: of the module, by the given shapes.
        shapes: the given shapes by input name.
        notes: what was done to the checkpoint before it fitted.
        input_names: names given to a module's inputs, if each has one.
    """

    path: str
    sha256: str
    onnx: onnx.ModelProto | None = None
    module: torch.nn.Module | None = None
    example_inputs: tuple[Any, ...] | None = None
    shapes: Mapping[str, tuple[int, ...]] | None = None
    notes: tuple[str, ...] = ()
    input_names: tuple[str, ...] | None = None

    @property
    def model(self) -> Any:
        """The module or the ONNX model, whichever it is."""
        return self.module if self.onnx is None else self.onnx

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


def open_source(path: str, options: SourceOptions) -> Source:
    """Open ``path``, telling its kind by its content.

    Raises:
        ConvBNError: it cannot be read, is of a kind that is not supported here, or options are missing.
    """
    from convbn.export.kinds import ArtifactKind, sniff

    kind = sniff(path)
    if kind is ArtifactKind.ONNX:
        return _open_onnx(path, options)
    if kind in (ArtifactKind.STATE_DICT, ArtifactKind.SAFETENSORS, ArtifactKind.PICKLED):
        return _open_checkpoint(path, options)
    if kind is ArtifactKind.ENGINE:
        raise NotSupportedError("is a TensorRT engine, which cannot be read back into a model", source=path)
    raise NotSupportedError(
        f"is a {kind.value} file, whose loading runs code, and loading it with trust is not built yet",
        source=path,
        hint="save the state dict instead and name the architecture with --arch",
    )


def _open_onnx(path: str, options: SourceOptions) -> Source:
    from convbn.export.onnx_files import read_model

    if options.arch is not None:
        raise UsageError("--arch is for checkpoints, and this is an ONNX file", source=path)
    loaded = read_model(path)
    inputs = [v.name for v in loaded.model.graph.input]
    stored = {t.name for t in loaded.model.graph.initializer}
    shapes = _named_shapes(options, [name for name in inputs if name not in stored])
    return Source(path, loaded.sha256, onnx=loaded.model, shapes=shapes or None)


def _open_checkpoint(path: str, options: SourceOptions) -> Source:
    if options.arch is None:
        raise UsageError(
            "is a checkpoint, which holds weights and no architecture", source=path, hint=_NO_ARCHITECTURE
        )
    from convbn.export.architectures import build_module, parse_arguments
    from convbn.export.checkpoints import apply_state, load_state
    from convbn.export.files import sha256_file

    checkpoint = load_state(path)
    module = build_module(options.arch, parse_arguments(options.arch_args))
    try:
        apply_state(module, checkpoint)
    except BadInputError as error:
        raise BadInputError(error.cause, source=path, hint=error.hint) from error
    module.eval()
    return Source(
        path,
        sha256_file(path),
        module=module,
        example_inputs=_examples(options),
        notes=checkpoint.notes,
        input_names=_input_names(options),
    )


def _examples(options: SourceOptions) -> tuple[Any, ...] | None:
    """Seeded normal inputs of the given shapes, in the order they were given."""
    if not options.input_shapes:
        return None
    import torch

    from convbn.export.shapes import parse_shape

    generator = torch.Generator().manual_seed(options.seed)
    return tuple(torch.randn(parse_shape(text)[1], generator=generator) for text in options.input_shapes)


def _input_names(options: SourceOptions) -> tuple[str, ...] | None:
    from convbn.export.shapes import parse_shape

    names = [parse_shape(text)[0] for text in options.input_shapes]
    return tuple(name for name in names if name is not None) if names and None not in names else None


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
