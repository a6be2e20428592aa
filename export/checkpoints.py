"""Weights from a checkpoint, without running what it may contain.

A ``.pth`` is a pickle, and a pickle is a program. Only torch's restricted loader is used, which rebuilds
tensors and plain containers and refuses the rest.
"""

from __future__ import annotations

import os
import pickle  # for the type of an error, nothing is unpickled
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from convbn.errors import BadInputError, FileAccessError, NotSupportedError
from convbn.export.files import reason
from convbn.export.kinds import ArtifactKind, sniff
from convbn.export.pickles import code_globals

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "apply_state", "load_state"]

_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_ema", "ema")
_PREFIXES = {"module.": "DataParallel", "_orig_mod.": "torch.compile"}
_SHOWN = 4
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


def load_state(path: str | os.PathLike[str], *, trust: bool = False) -> Checkpoint:
    """Read the weights of a checkpoint.

    Args:
        path: a state dict as torch saves it, alone or inside a training checkpoint, or safetensors.
        trust: would allow pickles that run code; that is not built yet.

    Returns:
        The weights, with wrappers (``state_dict``, ``model``, ...) and prefixes (``module.``,
        ``_orig_mod.``) removed, each removal noted.

    Raises:
        FileAccessError: the file cannot be read.
        BadInputError: it is damaged, holds no weights, or more than weights.
        NotSupportedError: `trust` was asked for.
    """
    if trust:
        raise NotSupportedError("loading pickles that run code is not built yet", hint=_SAVE_STATE)
    kind = sniff(path)
    if kind is ArtifactKind.SAFETENSORS:
        return _load_safetensors(path)
    if kind is ArtifactKind.STATE_DICT:
        notes: list[str] = []
        state = _unprefixed(_unwrapped(path, _load_pickle(path), notes), notes)
        return Checkpoint(state, tuple(notes))
    if kind is ArtifactKind.PICKLED:
        raise _unsafe(path)
    raise BadInputError(f"is a {kind.value}, not a checkpoint of weights", source=path, hint=_SAVE_STATE)


def apply_state(module: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Load weights into a module, every one of them.

    Args:
        module: changed in place; after an error its weights are a mixture and it must be dropped.
        checkpoint: must name exactly the module's parameters and buffers.

    Raises:
        BadInputError: names or shapes differ; the first few are listed.
    """
    try:
        module.load_state_dict(dict(checkpoint.tensors), strict=True)
    except RuntimeError as error:
        own, given = module.state_dict(), checkpoint.tensors
        # torch itself fills in a missing num_batches_tracked, which files from before 2018 lack.
        missing = [key for key in own if key not in given and not key.endswith("num_batches_tracked")]
        unexpected = [key for key in given if key not in own]
        mismatched = [
            f"{key} ({_dims(given[key])} for {_dims(own[key])})"
            for key in own
            if key in given and given[key].shape != own[key].shape
        ]
        found = (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched))
        parts = [f"{len(keys)} {label}: {_some(keys)}" for label, keys in found if keys]
        cause = "; ".join(parts) or str(error).splitlines()[-1].strip()
        hint = "name the architecture the checkpoint was saved from"
        raise BadInputError(f"the checkpoint does not fit the module: {cause}", hint=hint) from error


def _load_pickle(path: str | os.PathLike[str]) -> object:
    import torch

    mapped = zipfile.is_zipfile(path)
    if mapped:
        # torch stores, it never compresses; a compressed member is a bomb or a foreign tool.
        with zipfile.ZipFile(path) as archive:
            packed = [
                info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED
            ]
        if packed:
            raise BadInputError(
                f"has compressed members ({_some(packed)}), which torch never writes", source=path
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: it either loads or it does not
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as error:
        raise FileAccessError(f"cannot be read: {reason(error)}", source=path) from error
    except pickle.UnpicklingError as error:
        raise _unsafe(path) from error
    except Exception as error:  # torch raises whatever the damage leads to: Runtime-, Key-, EOFError, ...
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInputError(f"cannot be loaded, it may be damaged: {line}", source=path) from error


def _load_safetensors(path: str | os.PathLike[str]) -> Checkpoint:
    try:
        import safetensors
    except ModuleNotFoundError as error:
        raise NotSupportedError("safetensors is not installed", hint="pip install safetensors") from error
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
    except OSError as error:
        raise FileAccessError(f"cannot be read: {reason(error)}", source=path) from error
    except safetensors.SafetensorError as error:
        raise BadInputError(f"is a damaged safetensors file: {error}", source=path) from error
    notes: list[str] = []
    return Checkpoint(_unprefixed(tensors, notes), tuple(notes), metadata)


def _unwrapped(path: str | os.PathLike[str], loaded: object, notes: list[str]) -> dict[str, torch.Tensor]:
    import torch

    current: Any = loaded
    while isinstance(current, Mapping):
        wrappers = [key for key in _WRAPPERS if isinstance(current.get(key), Mapping)]
        if not wrappers:
            break
        others = f", not {_some(wrappers[1:])}" if wrappers[1:] else ""
        notes.append(f"Took the weights under {wrappers[0]!r}{others}.")
        current = current[wrappers[0]]
    if not isinstance(current, Mapping):
        raise BadInputError(
            f"holds a {type(current).__name__}, not a state dict", source=path, hint=_SAVE_STATE
        )
    tensors = {str(key): value for key, value in current.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        keys = _some([str(key) for key in current]) or "nothing"
        raise BadInputError(f"holds no weights, only {keys}", source=path, hint=_SAVE_STATE)
    dropped = [str(key) for key in current if str(key) not in tensors]
    if dropped:
        notes.append(f"Left out what is no tensor: {_some(dropped)}.")
    return tensors


def _unprefixed(tensors: dict[str, torch.Tensor], notes: list[str]) -> dict[str, torch.Tensor]:
    while True:
        for prefix, origin in _PREFIXES.items():
            if tensors and all(key.startswith(prefix) and key != prefix for key in tensors):
                notes.append(f"Removed the prefix {prefix!r} of {origin} from every name.")
                tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
                break
        else:
            return tensors


def _unsafe(path: str | os.PathLike[str]) -> BadInputError:
    import torch

    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # it knows torch's zip format only
        try:
            with open(path, "rb") as file:
                names = code_globals(file)
        except (BadInputError, OSError):
            names = []
    if not names:
        return BadInputError(
            "is a pickle that torch did not write, or damaged", source=path, hint=_SAVE_STATE
        )
    return BadInputError(
        f"would run code when loaded: it needs {_some(sorted(names))}", source=path, hint=_SAVE_STATE
    )


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    rest = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _dims(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
