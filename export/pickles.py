"""Which globals a pickle asks for, found without running it.

A pickle is a program: loading it imports and calls what it names. This module only reads its opcodes.
It decides what a file is called and what an error lists; what may be loaded is decided by
``torch.load(weights_only=True)`` alone.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

from convbn.errors import BadInputError

__all__ = ["LEGACY_TORCH_MAGIC", "code_globals"]

# The pickle of a checkpoint holds names and sizes, not weights: 20,000 tensors take about 4 MB.
_MAX_PICKLE_BYTES = 64 << 20
LEGACY_TORCH_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
_LEGACY_TORCH_PICKLES = 4  # magic, protocol, system information, the object

_TENSOR_GLOBALS = re.compile(
    r"collections\.OrderedDict"
    r"|torch\._utils\._rebuild_\w+"
    r"|torch\._tensor\._rebuild_\w+"
    r"|torch\.(storage\.)?\w*Storage"
    r"|torch\.nn\.parameter\.(Parameter|Buffer)"
    r"|torch\.serialization\._get_layout"
    r"|torch\.(Size|device|Tensor|float\w*|bfloat16|half|double|u?int\d+|int|long|short|bool|complex\d+|q\w+)"
)


def code_globals(file: BinaryIO) -> list[str]:
    """Names that a pickle imports beyond those that rebuild tensors and plain containers.

    Args:
        file: a checkpoint as torch writes it, zip or legacy, or a plain pickle; at its start.

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
                data = stream.read(_MAX_PICKLE_BYTES + 1)
        if len(data) > _MAX_PICKLE_BYTES:
            raise BadInputError(f"its pickle is larger than {_MAX_PICKLE_BYTES >> 20} MiB")
        names = _globals(io.BytesIO(data), 1)
    else:
        names = _globals(file, _LEGACY_TORCH_PICKLES if head == LEGACY_TORCH_MAGIC else 1)
    return sorted({name for name in names if not _TENSOR_GLOBALS.fullmatch(name)})


def _globals(stream: BinaryIO, count: int) -> Iterator[str]:
    """What the next `count` pickles of a stream import, as ``module.name``."""
    for _ in range(count):
        # Protocol 4 takes module and name from the stack, where they were pushed as strings or
        # fetched from the memo.
        strings: list[str] = []
        memo: dict[int, str] = {}
        try:
            for opcode, argument, _ in pickletools.genops(stream):
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
