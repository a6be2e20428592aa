"""Checkpoints, programs and names of a hub, opened as models."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from convbn.errors import BadInputError, NotSupportedError, UsageError
from convbn.export.checkpoints.fused import architecture, description, rebuilt
from convbn.export.loading.source_model import LoadOptions, SourceModel

if TYPE_CHECKING:
    import torch

    from convbn.export.checkpoints.load import Checkpoint
    from convbn.export.files.sniff import ArtifactKind

__all__ = ["open_checkpoint", "open_hub", "open_program"]

_NO_ARCHITECTURE = (
    "name it with --arch torchvision:NAME, timm:NAME, hf-hub:ORG/NAME or package.module:callable"
)


def open_checkpoint(path: str, kind: ArtifactKind, options: LoadOptions) -> SourceModel:
    """A module from weights and an architecture; from a trusted pickle that holds one, that one.

    Raises:
        ConvBNError: the file is refused, or does not fit the architecture.
    """
    from convbn.export.checkpoints.load import load_state
    from convbn.export.files.sniff import ArtifactKind

    if options.arch is None:
        if kind is ArtifactKind.PICKLED:
            return _pickled_module(path, options)
        if kind is ArtifactKind.TORCHSCRIPT:
            _refuse_script(path, options)
        raise UsageError(
            "is a checkpoint, which holds weights and no architecture", source=path, hint=_NO_ARCHITECTURE
        )
    if options.allow_cwd and kind is ArtifactKind.PICKLED and options.trust:
        _allow_cwd()
    checkpoint = load_state(path, key=options.key, trust=options.trust, limits=options.limits)
    module, notes = _fitted(path, checkpoint, options)
    return _module_source(path, module, (*checkpoint.notes, *notes), options)


def open_hub(name: str, options: LoadOptions) -> SourceModel:
    """The weights of a repository, in the architecture it names unless another is given.

    Raises:
        ConvBNError: they cannot be fetched, are refused, or do not fit the architecture.
    """
    from convbn.export.checkpoints.hub import HUB, fetch_weights
    from convbn.export.files.sniff import sniff

    path = str(fetch_weights(name.removeprefix(HUB)))
    options = options if options.arch is not None else replace(options, arch=name)
    kind = sniff(path, max_pickle_mib=options.limits.pickle_mib)
    return replace(open_checkpoint(path, kind, options), path=name)


def open_program(path: str, options: LoadOptions) -> SourceModel:
    """The program in a ``.pt2`` archive, if the archive is trusted.

    Raises:
        ConvBNError: the file is refused or damaged.
    """
    from convbn.export.checkpoints.trusted import load_program

    if options.arch is not None:
        raise UsageError("--arch is for checkpoints, and this is a torch.export archive", source=path)
    program = load_program(path, trust=options.trust, limits=options.limits)
    examples = _examples(options)
    if examples is None and program.example_inputs is not None:
        args, kwargs = program.example_inputs
        examples = None if kwargs else tuple(args)
    return _source(path, program, examples, options)


def _fitted(
    path: str, checkpoint: Checkpoint, options: LoadOptions
) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """The architecture with the weights in it; folded, if that is what they are."""
    from convbn.export.checkpoints.architectures import parse_arguments
    from convbn.export.checkpoints.load import apply_state

    document = description(checkpoint, path)
    if options.arch is None:
        raise TypeError("an architecture was checked for")
    module = architecture(options.arch, parse_arguments(options.arch_args), allow_cwd=options.allow_cwd)
    if document is not None:
        return rebuilt(module, checkpoint, document, path), ("Rebuilt what an earlier fold made.",)
    try:
        return module.eval(), apply_state(module, checkpoint, naming=options.naming)
    except (BadInputError, UsageError) as error:
        raise type(error)(error.cause, source=path, hint=error.hint) from error


def _pickled_module(path: str, options: LoadOptions) -> SourceModel:
    from collections.abc import Mapping

    import torch

    from convbn.export.checkpoints.state_dicts import WRAPPERS, taken
    from convbn.export.checkpoints.trusted import load_pickled

    if options.allow_cwd and options.trust:
        _allow_cwd()
    loaded: Any = load_pickled(path, trust=options.trust, limits=options.limits)
    notes: tuple[str, ...] = ()
    if isinstance(loaded, Mapping):
        keys = (options.key,) if options.key is not None else WRAPPERS
        found = next((key for key in keys if isinstance(loaded.get(key), torch.nn.Module)), None)
        if found is not None:
            loaded, notes = loaded[found], (taken("module", found, loaded),)
    if not isinstance(loaded, torch.nn.Module):
        raise UsageError(f"holds a {type(loaded).__name__} and no module", source=path, hint=_NO_ARCHITECTURE)
    return _module_source(path, loaded, notes, options)


def _refuse_script(path: str, options: LoadOptions) -> None:
    from convbn.export.checkpoints.trusted import refusal
    from convbn.export.files.sniff import ArtifactKind

    if not options.trust:
        raise refusal(path, ArtifactKind.TORCHSCRIPT, options.limits)
    raise NotSupportedError(
        "is a TorchScript archive, whose code cannot be edited",
        source=path,
        hint="name the architecture with --arch, and its weights are taken from here",
    )


def _module_source(
    path: str, module: torch.nn.Module, notes: tuple[str, ...], options: LoadOptions
) -> SourceModel:
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    return replace(_source(path, module.eval(), _examples(options, dtype), options), notes=notes)


def _source(path: str, model: Any, examples: tuple[Any, ...] | None, options: LoadOptions) -> SourceModel:
    from convbn.export.files.atomic import sha256_file

    names = _input_names(options)
    return SourceModel(model, examples, path=path, sha256=sha256_file(path), input_names=names)


def _allow_cwd() -> None:
    import os
    import sys

    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _examples(options: LoadOptions, dtype: torch.dtype | None = None) -> tuple[Any, ...] | None:
    """Seeded normal inputs of the given shapes, in the order they were given."""
    if not options.input_shapes:
        return None
    import torch

    from convbn.export.shapes import parse_shape

    generator = torch.Generator().manual_seed(options.seed)
    shapes = [parse_shape(text)[1] for text in options.input_shapes]
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def _input_names(options: LoadOptions) -> tuple[str, ...] | None:
    from convbn.export.shapes import parse_shape

    names = [parse_shape(text)[0] for text in options.input_shapes]
    return tuple(name for name in names if name is not None) if names and None not in names else None
