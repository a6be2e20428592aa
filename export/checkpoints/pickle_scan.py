"""Which globals a pickle asks for, found without running it.

A pickle is a program: loading it imports and calls what it names. This module only reads its opcodes.
It decides what a file is called and what an error lists; what may be loaded is decided by
``torch.load(weights_only=True)`` alone.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickletools
import re
import zipfile
from collections.abc import Iterator
from typing import IO

from convbn.errors import BadInputError
from convbn.export.checkpoints.limits import ZIP_DAMAGE, Limits

__all__ = ["LEGACY_TORCH_MAGIC", "archive_globals", "code_globals"]

LEGACY_TORCH_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
# Those of state dicts have 3.2; a program of single bytes only takes time.
_BYTES_AN_OPCODE = 3
_LEGACY_TORCH_PICKLES = 5  # magic, protocol, system information, the object, the keys of its storages
# Classes that are defined inside a TorchScript archive, and what its own reader calls.
_SCRIPT_GLOBALS = re.compile(r"__torch__\..*|torch\.jit\._pickle\.\w+")

_DAMAGE = (BadInputError, OSError, *ZIP_DAMAGE)

_TENSOR_GLOBALS = re.compile(
    r"collections\.OrderedDict"
    r"|torch\._utils\._rebuild_\w+"
    r"|torch\._tensor\._rebuild_\w+"
    r"|torch\.(storage\.)?\w*Storage"
    r"|torch\.nn\.parameter\.(Parameter|Buffer)"
    r"|torch\.serialization\._get_layout"
    r"|torch\.(Size|device|Tensor|float\w*|bfloat16|half|double|u?int\d+|int|long|short|bool|complex\d+|q\w+)"
)


def code_globals(file: IO[bytes], *, max_mib: int = Limits.pickle_mib) -> list[str]:
    """Names that a pickle imports beyond those that rebuild tensors and plain containers.

    Args:
        file: a checkpoint as torch writes it, zip or legacy, or a plain pickle; at its start.
        max_mib: cap on the size of each pickle, in MiB.

    Returns:
        ``module.name``, sorted; nothing for a state dict.

    Raises:
        BadInputError: the pickle is damaged or absurdly large.
        KeyError: a zip archive without a pickle.
    """
    head = file.read(len(LEGACY_TORCH_MAGIC))
    file.seek(0)
    if head[:2] == b"PK":
        with zipfile.ZipFile(file) as archive:
            members = [name for name in archive.namelist() if name.partition("/")[2] == "data.pkl"]
            with archive.open(members[0] if members else "data.pkl") as stream:
                data = stream.read((max_mib << 20) + 1)
        if len(data) > max_mib << 20:
            raise _too_large(max_mib)
        names = list(_globals(io.BytesIO(data), 1, max_mib))
    else:
        count = _LEGACY_TORCH_PICKLES if head == LEGACY_TORCH_MAGIC else 1
        names = list(_globals(_Capped(file, max_mib), count, max_mib))
    return sorted({name for name in names if not _TENSOR_GLOBALS.fullmatch(name)})


def archive_globals(path: str | os.PathLike[str], *, max_mib: int = Limits.pickle_mib) -> list[str]:
    """What the pickles anywhere in a ``.pt2`` or TorchScript archive import beyond tensors.

    Only for what an error lists: what cannot be read is passed over.

    Args:
        path: the archive.
        max_mib: cap on the size of each pickle, in MiB.
    """
    found: set[str] = set()
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED and info.file_size > max_mib << 20:
                    continue
                # Weights may begin like a pickle by chance; they do not go on like one.
                with contextlib.suppress(*_DAMAGE), archive.open(info) as member:
                    if member.read(2)[:1] in (b"\x80", b"P"):
                        member.seek(0)
                        found.update(code_globals(member, max_mib=max_mib))
    except _DAMAGE:
        return sorted(found)
    return sorted(name for name in found if not _SCRIPT_GLOBALS.fullmatch(name))


class _Capped:
    """A stream that ends in an error where it goes on for longer than a pickle should."""

    def __init__(self, stream: IO[bytes], max_mib: int) -> None:
        self._stream = stream
        self._max_mib = max_mib
        self._left = max_mib << 20

    def read(self, size: int) -> bytes:
        self._take(size)
        return self._stream.read(size)

    def readline(self) -> bytes:
        line = self._stream.readline(self._left + 1)
        self._take(len(line))
        return line

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise _too_large(self._max_mib)


def _too_large(max_mib: int) -> BadInputError:
    return BadInputError(
        f"its pickle is larger than one of {max_mib} MiB should be",
        hint="if that is right, raise it with --max-pickle-mib",
    )


def _globals(stream: IO[bytes] | _Capped, count: int, max_mib: int) -> Iterator[str]:
    """What the next `count` pickles of a stream import, as ``module.name``."""
    left = (max_mib << 20) // _BYTES_AN_OPCODE
    for _ in range(count):
        # Protocol 4 takes module and name from the stack, where they were pushed as strings or
        # fetched from the memo.
        strings: list[str] = []
        memo: dict[int, str] = {}
        try:
            for opcode, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]  # it calls nothing else
                left -= 1
                if left < 0:
                    raise _too_large(max_mib)
                name = opcode.name
                if name in ("GLOBAL", "INST"):
                    yield str(argument).replace(" ", ".", 1)
                elif name == "STACK_GLOBAL":
                    yield ".".join(strings[-2:]) or "?"
                elif isinstance(argument, str):
                    strings.append(argument)
                elif name == "MEMOIZE":
                    memo[len(memo)] = strings[-1] if strings else ""
                elif name.endswith("BINPUT") and isinstance(argument, int):
                    memo[argument] = strings[-1] if strings else ""
                elif name.endswith("BINGET") and isinstance(argument, int) and memo.get(argument):
                    strings.append(memo[argument])
        except (ValueError, UnicodeError, IndexError, OverflowError, MemoryError) as error:
            raise BadInputError(f"holds a damaged pickle: {error}") from error
