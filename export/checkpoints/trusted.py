"""Files whose loading runs code: only for a file that its user says to trust.

Each loader refuses first, naming what the file would call, and loads second; there is no other way in.
"""

from __future__ import annotations

import contextlib
import os
import pickle  # for the type of an error, nothing is unpickled here
import zipfile
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from convbn.common.exclusive import quiet
from convbn.common.text import first_line
from convbn.errors import BadInputError, FileAccessError
from convbn.export.checkpoints.limits import Limits, check_archive
from convbn.export.checkpoints.pickle_scan import archive_globals, code_globals
from convbn.export.checkpoints.state_dicts import some
from convbn.export.files.atomic import reason
from convbn.export.files.sniff import ArtifactKind

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

__all__ = ["load_pickled", "load_program", "load_script", "refusal"]

_WHY = {
    ArtifactKind.PT2: "is a torch.export archive, whose pickles torch loads without restriction",
    ArtifactKind.TORCHSCRIPT: "is a TorchScript archive, which brings code of its own",
}
_HINT = {
    ArtifactKind.PT2: "if you trust where it comes from, say --trust-checkpoint (trust=True)",
    ArtifactKind.TORCHSCRIPT: (
        "if you trust where it comes from, say --trust-checkpoint (trust=True) and name the architecture"
    ),
    ArtifactKind.PICKLED: (
        "save torch.save(model.state_dict(), FILE) and name the architecture; or, if you trust where it "
        "comes from, say --trust-checkpoint (trust=True)"
    ),
}


def load_pickled(path: str | os.PathLike[str], *, trust: bool, limits: Limits) -> Any:
    """What a pickle holds: often a module. Loading it runs what it names.

    Raises:
        BadInputError: the file is not trusted (with what it would run), or damaged.
        FileAccessError: it cannot be read.
    """
    import torch

    return _loaded(
        path, ArtifactKind.PICKLED, trust, limits, partial(torch.load, map_location="cpu", weights_only=False)
    )


def load_program(
    path: str | os.PathLike[str], *, trust: bool, limits: Limits
) -> torch.export.ExportedProgram:
    """The program in a ``.pt2`` archive. Loading it runs what its pickles name.

    Raises:
        BadInputError: the file is not trusted (with what it would run), or damaged.
        FileAccessError: it cannot be read.
    """
    import torch

    program: ExportedProgram = _loaded(path, ArtifactKind.PT2, trust, limits, torch.export.load)
    return program


def load_script(path: str | os.PathLike[str], *, trust: bool, limits: Limits) -> torch.jit.ScriptModule:
    """The module in a TorchScript archive.

    Loading one compiles its code and runs the ``__setstate__`` of its classes, whose operators can open
    files (``torch.from_file``). So it needs trust like any other code, if less of it.

    Raises:
        BadInputError: the file is not trusted, or damaged.
        FileAccessError: it cannot be read.
    """
    import torch

    load = partial(torch.jit.load, map_location="cpu")
    script: torch.jit.ScriptModule = _loaded(path, ArtifactKind.TORCHSCRIPT, trust, limits, load)
    return script


def _loaded(
    path: str | os.PathLike[str],
    kind: ArtifactKind,
    trust: bool,
    limits: Limits,
    load: Callable[[Any], Any],
) -> Any:
    if not trust:
        raise refusal(path, kind, limits)
    if kind is not ArtifactKind.PICKLED or zipfile.is_zipfile(path):
        check_archive(path, limits)
    try:
        with contextlib.nullcontext() if kind is ArtifactKind.PICKLED else quiet():
            return load(path)
    except Exception as error:  # whatever the code in the file raises
        raise _failed(path, error) from error


def refusal(path: str | os.PathLike[str], kind: ArtifactKind, limits: Limits) -> BadInputError:
    """Why a file of a kind that runs code is not loaded, with the names of what it would run."""
    import torch

    names: list[str] = []
    if kind is not ArtifactKind.PICKLED:
        names = archive_globals(path, max_mib=limits.pickle_mib)
        needs = f"; it needs {some(names)}" if names else ""
        return BadInputError(f"{_WHY[kind]}: loading it may run code{needs}", source=path, hint=_HINT[kind])
    with contextlib.suppress(BadInputError, OSError), open(path, "rb") as file:
        names = code_globals(file, max_mib=limits.pickle_mib)
    if not names:
        # The loader refused what looked harmless here; torch's own list says why, for its zip format.
        with contextlib.suppress(Exception):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if not names:
        return BadInputError(
            "is a pickle that torch did not write, or damaged",
            source=path,
            hint=_HINT[kind].partition(";")[0],
        )
    return BadInputError(
        f"would run code when loaded: it needs {some(sorted(names))}", source=path, hint=_HINT[kind]
    )


def _failed(path: str | os.PathLike[str], error: Exception) -> Exception:
    if isinstance(error, ModuleNotFoundError):
        return BadInputError(
            f"needs the module {error.name!r}, which is not installed", source=path, hint="install it"
        )
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return FileAccessError(f"cannot be read: {reason(error)}", source=path)
    kind = "" if isinstance(error, pickle.UnpicklingError) else f"{type(error).__name__}: "
    return BadInputError(f"cannot be loaded, it may be damaged: {kind}{first_line(error)}", source=path)
