"""Weights from a checkpoint, without running what it may contain unless it is trusted.

A ``.pth`` is a pickle, and a pickle is a program. Only torch's restricted loader is used, which rebuilds
tensors and plain containers and refuses the rest. What runs code is in :mod:`convbn.export.checkpoints.trusted`, and is
called for a file that its user trusts and never because something else failed.
"""

from __future__ import annotations

import os
import pickle  # for the type of an error, nothing is unpickled
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from convbn.common.exclusive import without_warnings
from convbn.common.text import first_line, shape_text
from convbn.errors import BadInputError, FileAccessError, NotSupportedError
from convbn.export.checkpoints.limits import Limits, check_archive
from convbn.export.checkpoints.names import AS_THEY_ARE, Naming, fitted
from convbn.export.checkpoints.state_dicts import find_state, some
from convbn.export.checkpoints.trusted import load_pickled, load_script, refusal
from convbn.export.files.atomic import file_access
from convbn.export.files.sniff import ArtifactKind, sniff

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "apply_state", "load_state"]

_SAVE_STATE = "save torch.save(model.state_dict(), FILE) and name the architecture"


@dataclass(frozen=True)
class Checkpoint:
    """Weights by name.

    Attributes:
        tensors: on the CPU, perhaps mapped from the file.
        notes: what was done to reach them, a sentence each.
        metadata: the header's free text of a safetensors file.
    """

    tensors: Mapping[str, torch.Tensor]
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


def load_state(
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    trust: bool = False,
    limits: Limits | None = None,
) -> Checkpoint:
    """Read the weights of a checkpoint.

    Args:
        path: a state dict as torch saves it, alone or inside a training checkpoint, or safetensors.
        key: where in a training checkpoint the weights lie; by default the first of
            :data:`convbn.export.checkpoints.state_dicts.WRAPPERS` that is there.
        trust: take the weights of pickles that run code and of TorchScript archives too.
        limits: caps on what the file may make its reader hold.

    Returns:
        The weights by the names in the file, and how they were found.

    Raises:
        FileAccessError: the file cannot be read.
        BadInputError: it is damaged, holds no weights, or more than weights.
        UsageError: it has no such key.
    """
    limits = limits or Limits()
    kind = sniff(path, max_pickle_mib=limits.pickle_mib)
    if kind is ArtifactKind.SAFETENSORS:
        return _load_safetensors(path)
    notes: list[str] = []
    if kind is ArtifactKind.STATE_DICT:
        loaded = _load_pickle(path, limits)
    elif kind is ArtifactKind.PICKLED:
        loaded = load_pickled(path, trust=trust, limits=limits)
    elif kind is ArtifactKind.TORCHSCRIPT:
        loaded = load_script(path, trust=trust, limits=limits)
    else:
        raise BadInputError(f"is a {kind.value}, not a checkpoint of weights", source=path, hint=_SAVE_STATE)
    return Checkpoint(find_state(loaded, notes, key=key, source=path), tuple(notes))


def apply_state(
    module: torch.nn.Module,
    checkpoint: Checkpoint,
    *,
    naming: Naming = AS_THEY_ARE,
    as_stored: bool = False,
) -> tuple[str, ...]:
    """Load weights into a module, every one of them.

    Args:
        module: changed in place, once names and shapes are known to fit.
        checkpoint: must give every parameter and buffer, see :func:`convbn.export.checkpoints.names.fitted`.
        naming: what the user says about the names.
        as_stored: give the module tensors of the stored dtype instead of casting to its own.

    Returns:
        A sentence for each thing that was done to the names.

    Raises:
        BadInputError: names or shapes differ; the first few are listed.
        UsageError: ``naming`` makes no sense for these names.
    """
    notes: list[str] = []
    own = module.state_dict()
    given = fitted(checkpoint.tensors, own, notes, naming)
    _check_fit(given, own)
    if as_stored:
        given = {name: _on_its_device(tensor, own.get(name)) for name, tensor in given.items()}
    try:
        module.load_state_dict(given, strict=True, assign=as_stored)
    except RuntimeError as error:
        raise _misfit(str(error).splitlines()[-1].strip()) from error
    return tuple(notes)


def _check_fit(given: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Names and shapes, before anything is copied."""
    # torch itself fills in a missing num_batches_tracked, which files from before 2018 lack.
    missing = [name for name in own if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in own]
    mismatched = [
        f"{name} ({shape_text(given[name].shape)} for {shape_text(tensor.shape)})"
        for name, tensor in own.items()
        if name in given and hasattr(tensor, "shape") and given[name].shape != tensor.shape
    ]
    found = (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched))
    parts = [f"{len(names)} {label}: {some(names)}" for label, names in found if names]
    if parts:
        raise _misfit("; ".join(parts), droppable=not (missing or mismatched))


def _misfit(cause: str, *, droppable: bool = False) -> BadInputError:
    hint = "name the architecture the checkpoint was saved from"
    if droppable:
        hint += ", or leave out what it does not ask for with --drop-unexpected"
    return BadInputError(f"the checkpoint does not fit the module: {cause}", hint=hint)


def _on_its_device(tensor: torch.Tensor, own: Any) -> torch.Tensor:
    """The tensor where the module has its own one; a tensor without numbers is nowhere yet.

    A copy always: in a file tensors lie at odd addresses, for which CPU kernels take other ways and give
    other last digits.
    """
    import torch

    device = own.device if isinstance(own, torch.Tensor) and not own.is_meta else tensor.device
    return tensor.to(device, copy=True)


def _load_pickle(path: str | os.PathLike[str], limits: Limits) -> object:
    import torch

    # Only what lies in the file as it is can be mapped; a legacy file is no archive.
    mapped = zipfile.is_zipfile(path) and not check_archive(path, limits)
    try:
        with file_access(path), without_warnings():  # of pickle protocols: it either loads or it does not
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileAccessError:
        raise
    except pickle.UnpicklingError as error:
        raise refusal(path, ArtifactKind.PICKLED, limits) from error
    except Exception as error:  # torch raises whatever the damage leads to: Runtime-, Key-, EOFError, ...
        cause = f"cannot be loaded, it may be damaged: {first_line(error)}"
        raise BadInputError(cause, source=path) from error


def _load_safetensors(path: str | os.PathLike[str]) -> Checkpoint:
    try:
        import safetensors
    except ModuleNotFoundError as error:
        raise NotSupportedError("safetensors is not installed", hint="pip install safetensors") from error
    try:
        with file_access(path), safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
    except safetensors.SafetensorError as error:
        raise BadInputError(f"is a damaged safetensors file: {error}", source=path) from error
    return Checkpoint(tensors, (), metadata)
