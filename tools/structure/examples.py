"""Code that a document quotes from tests: filled in from the tests, so that what is read is what runs.

python tools/structure/examples.py docs/architecture.md

``<!-- from tests/x.py: name -->`` in the document stands above a block of Python; the block becomes what stands between
``# [name]`` and ``# [/name]`` in that file.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"(<!-- from (\S+): (\w+) -->\n+```python\n)(.*?)(```)", re.DOTALL)


def quoted(path: str, name: str) -> str:
    """The part of a file between its marks.

    Raises:
        ValueError: the marks are not there.
    """
    found = re.search(
        rf"^# \[{name}\]\n(.*?)^# \[/{name}\]$", (ROOT / path).read_text(), re.DOTALL | re.MULTILINE
    )
    if found is None:
        raise ValueError(f"{path} has no part [{name}]")
    return f"{found[1].strip()}\n"


def filled(text: str) -> str:
    """A document with every quoted block as the tests have it now."""
    return BLOCK.sub(lambda block: f"{block[1]}{quoted(block[2], block[3])}{block[5]}", text)


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(filled(document.read_text()))
