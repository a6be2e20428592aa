"""docs/tensorrt.md is held against the code it speaks of."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from convbn.export.engines import errors
from convbn.export.engines.backends.registry import backend_named
from convbn.export.engines.build.options import EngineOptions

TEXT = (Path(__file__).parents[2] / "docs" / "tensorrt.md").read_text()


def rows(pattern: str) -> list[tuple[str, ...]]:
    lines = [line for line in TEXT.splitlines() if re.match(pattern, line)]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]


def test_every_option_has_a_row_that_is_true() -> None:
    table = {row[1].strip("`"): row[2:] for row in rows(r"\| `--[a-z-]+.*` \| `[a-z_]+` \|")}
    assert list(table) == [field.name for field in fields(EngineOptions)]
    for column, name in enumerate(("tensorrt", "tensorrt-rtx")):
        backend = backend_named(name)
        for option, cells in table.items():
            assert cells[column].startswith("no: ") == (option in backend.unhonoured), (name, option)
            assert (cells[column] == "where a GPU is") == (option in backend.gpu_only), (name, option)


def test_every_error_has_a_row_that_is_true() -> None:
    table = {row[0].strip("`"): int(row[1]) for row in rows(r"\| `\w+Error` \|")}
    assert set(table) == set(errors.__all__)
    for name, code in table.items():
        assert getattr(errors, name).exit_code == code
