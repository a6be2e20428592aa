"""Folded modules as safetensors: the tensors, and what the fold did to the module they belong to.

The description lies in the header under ``convbn`` (``fuse/fused-checkpoint.schema.json``). With the
architecture it gives the folded module back, without tracing or computing anything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from convbn.errors import BadInputError, ConvBNError, NotSupportedError, UsageError
from convbn.fuse.report import Report

if TYPE_CHECKING:
    import torch

    from convbn.export.checkpoints.load import Checkpoint

    Architecture: TypeAlias = str | torch.nn.Module | Callable[..., torch.nn.Module]

__all__ = ["Architecture", "architecture", "description", "load_fused", "rebuilt", "save_fused"]

FUSED_VERSION = "1"
_KEY = "convbn"
_PLACEHOLDER = "folded by convbn: load it with its load_fused"
_WRITE_ONE = "write one with `convbn fuse CHECKPOINT --arch SPEC -o OUT.safetensors`"


def save_fused(
    original: torch.nn.Module,
    folded: torch.nn.Module,
    report: Report,
    path: str | os.PathLike[str],
    *,
    arch: str | None = None,
    arch_args: tuple[str, ...] = (),
    overwrite: bool = False,
) -> None:
    """Write a folded module, so that :func:`load_fused` can give it back.

    Args:
        original: what was folded.
        folded: what the fold made of it.
        report: of the fold. What changes from run to run, such as times, is left out: the same fold gives
            the same bytes.
        path: the target.
        arch: the spec of the architecture, for whoever wonders; it is never followed.
        arch_args: its arguments, ``k=v``.
        overwrite: whether an existing file may be replaced.

    Raises:
        UsageError: ``original`` is the folded module itself.
        NotSupportedError: what the fold did cannot be described.
        BadInputError: the state dict holds something that safetensors cannot.
        FileAccessError: the target cannot be written.
    """
    from convbn.export.torch.save import save_tensors
    from convbn.fuse.frontends.torch.checkpoint.rebuild import structure_of
    from convbn.fuse.frontends.torch.materialize.weights import materialized
    from convbn.fuse.frontends.torch.modules.copies import checked

    if original is folded:
        raise UsageError(
            "the module was folded in place, so nothing says what it was", hint="give one that was not folded"
        )
    paths: tuple[str, ...] = ()
    if report.options.materialize:
        original, paths = materialized(checked(original))
    whole = report.to_dict()
    structure = structure_of(original, folded)
    placeholders = _placeholders(checked(original).state_dict(), folded.state_dict(), structure)
    document = {
        "schema_version": FUSED_VERSION,
        **{name: whole[name] for name in ("tool", "batchnorm", "folded", "kept")},
        "arch": arch,
        "arch_args": list(arch_args),
        "source_sha256": report.sha256,
        "structure": structure,
        "materialized": list(paths),
        "placeholders": list(placeholders),
    }
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    tensors = {**folded.state_dict(), **placeholders}
    save_tensors(tensors, {_KEY: text, "format": "pt"}, path, overwrite=overwrite)


def _placeholders(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], structure: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Tensors of size 0, one for each module that went and one whose name says what the file is.

    PyTorch's ``load_state_dict(strict=False)`` passes over what is missing and what it does not know, and would leave
    the original's BatchNorms over folded weights; a tensor of another shape is an error to it in either way.
    """
    import torch

    names = [_PLACEHOLDER]
    for entry in structure["modules"]:
        own = (name for name in before if name.startswith(f"{entry['path']}.") and name not in after)
        names += [name for name in own if getattr(before[name], "ndim", 0)][:1]
    return {name: torch.empty(0) for name in names}


def load_fused(
    path: str | os.PathLike[str], arch: Architecture, arguments: Mapping[str, Any]
) -> torch.nn.Module:
    """See :func:`convbn.api.load_fused`."""
    from convbn.export.checkpoints.load import load_state
    from convbn.export.files.sniff import ArtifactKind, sniff

    kind = sniff(path)
    if kind is not ArtifactKind.SAFETENSORS:
        raise BadInputError(f"is a {kind.value}, not a folded checkpoint", source=path, hint=_WRITE_ONE)
    checkpoint = load_state(path)
    document = description(checkpoint, path)
    if document is None:
        raise BadInputError("is no folded checkpoint of convbn, only weights", source=path, hint=_WRITE_ONE)
    return rebuilt(architecture(arch, arguments), checkpoint, document, path)


def description(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What convbn wrote into the header of a safetensors file; None if it did not write it.

    Raises:
        BadInputError: it is malformed.
        NotSupportedError: it is of another version.
    """
    text = checkpoint.metadata.get(_KEY)
    if text is None:
        return None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInputError("has a description of its fold that is no JSON", source=path) from error
    if not isinstance(document, dict):
        raise BadInputError("has a malformed description of its fold", source=path)
    version = document.get("schema_version")
    if version != FUSED_VERSION or "structure" not in document:
        raise NotSupportedError(
            f"has a description of its fold in version {version!r}, this convbn reads {FUSED_VERSION!r}",
            source=path,
            hint="load it with the convbn that wrote it, or fold the original again",
        )
    return document


def rebuilt(
    module: torch.nn.Module, checkpoint: Checkpoint, document: Mapping[str, Any], path: str | os.PathLike[str]
) -> torch.nn.Module:
    """A copy of ``module`` in the structure, with the tensors and the training flags of a folded checkpoint.

    Args:
        module: the architecture; wrappers that only run it are taken off.
        checkpoint: what the file holds.
        document: its description of the fold.
        path: the file, for errors.

    Raises:
        BadInputError: the architecture is another one, or tensors are missing, unexpected or misshapen.
    """
    from convbn.export.checkpoints.load import apply_state
    from convbn.fuse.frontends.torch.checkpoint.rebuild import apply_structure, finish
    from convbn.fuse.frontends.torch.modules.copies import unwrapped

    inner: Any = unwrapped(module)
    try:
        inner = _materialized(inner, document.get("materialized", []))
        structured = apply_structure(inner, document["structure"])
        apply_state(structured, _without_placeholders(checkpoint, document), as_stored=True)
        finish(inner, structured, document["structure"])
        _check_complete(structured)
    except ConvBNError as error:
        arch = document.get("arch")
        hint = f"it was folded from {arch}" if isinstance(arch, str) and arch else error.hint
        raise type(error)(error.cause, source=path, hint=hint) from error
    return structured


def _materialized(module: torch.nn.Module, paths: object) -> torch.nn.Module:
    """The architecture with parameters where the folded module had them in place of computed weights."""
    from convbn.fuse.frontends.torch.materialize.weights import materialized
    from convbn.fuse.frontends.torch.modules.copies import duplicate

    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise BadInputError("its description of the fold is malformed in 'materialized'")
    if not paths:
        return module
    made, changed = materialized(duplicate(module, share=True).eval(), paths)
    missing = sorted({*paths} - {*changed})
    if missing:
        raise BadInputError(f"the architecture computes no weight in '{missing[0]}'")
    return made


def _without_placeholders(checkpoint: Checkpoint, document: Mapping[str, Any]) -> Checkpoint:
    names = document.get("placeholders", [])
    held = checkpoint.tensors
    if not isinstance(names, list) or not all(
        isinstance(name, str) and name in held and not held[name].numel() for name in names
    ):
        raise BadInputError("its description of the fold is malformed in 'placeholders'")
    return replace(checkpoint, tensors={name: held[name] for name in held if name not in {*names}})


def architecture(
    arch: Architecture, arguments: Mapping[str, Any], *, allow_cwd: bool = False
) -> torch.nn.Module:
    """The module that an architecture is: by name, by a callable, or itself.

    Raises:
        UsageError: it is none of these, or a ready module is given arguments.
        ConvBNError: it cannot be built.
    """
    if isinstance(arch, str):
        from convbn.export.checkpoints.architectures import build_module

        return build_module(arch, arguments, allow_cwd=allow_cwd)
    import torch

    if isinstance(arch, torch.nn.Module):
        if arguments:
            raise UsageError("the architecture is a module already and takes no arguments")
        return arch
    if not callable(arch):
        raise UsageError(
            f"a {type(arch).__name__} is no architecture", hint="give a name, a callable or a module"
        )
    module = arch(**arguments)
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"the architecture gives a {type(module).__name__}, not a torch.nn.Module")
    return module


def _check_complete(module: torch.nn.Module) -> None:
    """Every tensor has numbers: a state dict does not hold the buffers that are not persistent."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise BadInputError(
                f"'{name}' is in no state dict and the architecture was built without numbers",
                hint="build it on a device",
            )
