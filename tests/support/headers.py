"""The description in the header of a folded checkpoint, as somebody else may have written it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

__all__ = ["edit_header"]


def edit_header(path: Path, change: Any) -> None:
    """The file with ``change(description)`` in the place of the description."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    new = change(json.loads(header["__metadata__"]["convbn"]))
    header["__metadata__"]["convbn"] = new if isinstance(new, str) else json.dumps(new)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
