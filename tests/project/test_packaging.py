"""The layout's promises: every folder is packaged, every room has one name, the wheel holds just that."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import convbn

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = ("fuse", "export", "bench")


def folders() -> set[str]:
    """Every folder that holds modules, as the package it must be."""
    door = [path.parent.relative_to(ROOT / "src").parts for path in (ROOT / "src").rglob("*.py")]
    found = {".".join(parts) for parts in door if not set(parts[1:2]) & set(ROOMS)}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            found.add(".".join(("convbn", *path.parent.relative_to(ROOT).parts)))
    return found


def test_every_folder_is_a_listed_package() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders()


def test_the_version_is_the_same_wherever_it_stands() -> None:
    version = PROJECT["project"]["version"]
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == version  # type: ignore[index]
    released = re.findall(r"^## \[(\d.*?)\] - (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    dated = re.search(r"^date-released: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert dated is not None
    assert released[0] == (version, dated[1])
    assert convbn.__version__ == version


def test_every_package_has_an_init() -> None:
    for package in folders():
        parts = package.split(".")[1:]
        place = (
            ROOT.joinpath(*parts) if parts and parts[0] in ROOMS else ROOT.joinpath("src", "convbn", *parts)
        )
        assert (place / "__init__.py").is_file(), package


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_one_name(room: str) -> None:
    """From the repository's root `import fuse` would find the folder and make a second copy."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {room}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f"ImportError: this folder is the package convbn.{room}, not {room}" in result.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_type_checkers_see_the_same_tree(room: str) -> None:
    link = ROOT / "src" / "convbn" / room
    assert link.is_symlink()
    assert link.resolve() == (ROOT / room).resolve()
