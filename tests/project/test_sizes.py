"""Files and folders stay as large as one can take in, and each module says first what it is."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

from structure.count_lines import code_lines, counted
from structure.imports import ROOT, modules

LONGEST = 350
"""Lines of a file, all of them."""

MOST = 9
"""Modules of a folder, its ``__init__.py`` not among them."""

ONE_KIND = {
    "fuse/operators": "an operator a file",
    "src/convbn/commands": "a verb a file",
}
"""Folders that may hold more, and what each file in them is."""


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_file_is_long() -> None:
    files = modules().values()
    assert [place(path) for path in files if len(path.read_text().splitlines()) > LONGEST] == []


def test_no_folder_is_full() -> None:
    held = Counter(place(path.parent) for path in modules().values() if path.name != "__init__.py")
    full = {folder for folder, count in held.items() if count > MOST}
    assert full == set(ONE_KIND)


def test_a_module_says_first_what_it_is() -> None:
    unsaid = []
    for name, path in modules().items():
        first = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
        if not re.search(r"\S[.?:](\s|$)", first):
            unsaid.append(f"{name}: {first!r}")
    assert unsaid == []


def test_code_lines() -> None:
    text = '"""Says\nit."""\nx = """a\nb"""\n# no\n\ndef f():  # yes\n    """No."""\n    return (\n        1\n    )\n'
    assert code_lines(text) == 2 + 1 + 3


def test_links_are_not_counted_twice() -> None:
    found = counted(ROOT / "src" / "convbn")
    assert ROOT / "src" / "convbn" / "cli.py" in found
    assert not any("operators" in path.parts for path in found)
