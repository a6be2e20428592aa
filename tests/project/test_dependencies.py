"""Data walks fuse → export → bench, so imports walk fuse ← export ← bench ← the door, and never in a circle."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from structure.imports import ROOT, Import, circles, imports, modules

FLOOR = ("errors", "common")
"""What every room may import; it imports no room."""

ROOMS = ("fuse", "export", "bench")
"""Each may import itself and those before it."""


@cache
def known() -> tuple[Import, ...]:
    return tuple(imports(modules()))


def floor_of(module: str) -> int:
    """0 for the ground floor, 1 to 3 for the rooms, 4 for the door."""
    first = f"{module}.".split(".")[1]
    return 0 if first in FLOOR else ROOMS.index(first) + 1 if first in ROOMS else len(ROOMS) + 1


def test_imports_go_one_way() -> None:
    assert [str(one) for one in known() if floor_of(one.target) > floor_of(one.source)] == []


def test_no_module_waits_for_itself_while_it_is_loaded() -> None:
    assert circles((one.source, one.target) for one in known() if one.kind == "load") == []


def test_no_circles() -> None:
    """Imports inside functions, for annotations, and names in tables of lazy imports among them."""
    assert circles((one.source, one.target) for one in known()) == []


def test_folders_of_fuse_are_in_an_order() -> None:
    """Each inner room of ``fuse/`` can be read before those that use it."""
    files = modules()

    def folder(name: str) -> str:
        return name if files[name].name == "__init__.py" else name.rpartition(".")[0]

    edges = {(folder(one.source), folder(one.target)) for one in known() if floor_of(one.source) == 1}
    assert circles((a, b) for a, b in edges if a != b and "convbn.fuse" not in (a, b)) == []


def test_rules_never_mention_a_framework() -> None:
    for name, path in modules().items():
        if re.match(r"convbn\.fuse\.(algebra|operators|view|plan)\b", name):
            for line in path.read_text().splitlines():
                if line.lstrip().startswith(("import ", "from ")):
                    assert not any(word in line for word in ("torch", "onnx", "frontends")), f"{path}: {line}"


@pytest.fixture
def product(tmp_path: Path) -> dict[str, Path]:
    """A small package with every kind of import."""
    texts = {
        "convbn": "from convbn.fuse import a\n",
        "convbn.fuse": "",
        "convbn.fuse.a": '"""Knows convbn.bench.c in words alone."""\nfrom . import b\n',
        "convbn.fuse.b": (
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from convbn.bench.c import C\n"
            "def f():\n    import convbn.fuse.a\n"
        ),
        "convbn.bench": 'TABLE = {"c": "convbn.bench.c:C"}\n',
        "convbn.bench.c": "from ..fuse.a import anything\ndef g(name):\n    return f'convbn.bench.{name}'\n",
    }
    files = {}
    for name, text in texts.items():
        has_modules = any(other.startswith(f"{name}.") for other in texts)
        place = tmp_path.joinpath(*name.split("."), *(["__init__"] if has_modules else []))
        files[name] = place.with_name(f"{place.name}.py")
        files[name].parent.mkdir(parents=True, exist_ok=True)
        files[name].write_text(text)
    return files


def test_every_kind_of_import_is_seen(product: dict[str, Path]) -> None:
    assert {str(one) for one in imports(product)} == {
        "convbn:1 → convbn.fuse.a (load)",
        "convbn.fuse.a:2 → convbn.fuse.b (load)",
        "convbn.fuse.b:3 → convbn.bench.c (type)",
        "convbn.fuse.b:5 → convbn.fuse.a (call)",
        "convbn.bench:1 → convbn.bench.c (text)",
        "convbn.bench.c:1 → convbn.fuse.a (load)",
        "convbn.bench.c:3 → convbn.bench (text)",
    }


def test_circles() -> None:
    edges = [("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("d", "e"), ("e", "d"), ("f", "a"), ("g", "g")]
    assert circles(edges) == [["d", "e"], ["a", "b", "c"], ["g"]]


def test_the_whole_product_is_read() -> None:
    found = modules()
    assert found["convbn.fuse.view.dataflow"] == ROOT / "fuse" / "view" / "dataflow.py"
    assert found["convbn.commands.fuse"] == ROOT / "src" / "convbn" / "commands" / "fuse.py"
    assert found["convbn"] == ROOT / "src" / "convbn" / "__init__.py"
    links = [
        name
        for name in found
        if name.count("fuse") > 1 and "commands" not in name and "fuse.frontends" in name
    ]
    assert links == []
    assert {one.kind for one in known()} == {"load", "call", "type", "text"}
