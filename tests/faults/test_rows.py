"""Every row of the table of faults names tests that exist, and so does the page that is made of it."""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest
from robustness.fault_table import ROWS

ROOT = Path(__file__).parents[2]


@cache
def functions(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_there_are_28_rows() -> None:
    assert list(ROWS) == list(range(1, 29))


@pytest.mark.parametrize("number", ROWS)
def test_every_test_of_a_row_exists(number: int) -> None:
    tests = ROWS[number].tests
    assert len(tests) > 1
    assert len(set(tests)) == len(tests)
    missing = [test for test in tests if test.split("::")[1] not in functions(test.split("::")[0])]
    assert missing == []


def test_the_page_names_the_tests_of_the_table() -> None:
    table = {number: set(row.tests) for number, row in ROWS.items()}
    stored = json.loads((ROOT / "docs" / "robustness.json").read_text())["rows"]
    assert {row["number"]: set(row["tests"]) for row in stored} == table
    page = (ROOT / "docs" / "robustness.md").read_text()
    listed = set(re.findall(r"^\* `(tests/\S+)`", page, re.MULTILINE))
    assert listed == {test for tests in table.values() for test in tests}
