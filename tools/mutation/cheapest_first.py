"""A pytest plugin for the mutation run: the tests that took least go first, so most mutants fall early."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

STATISTICS = Path("mutmut-stats.json")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if STATISTICS.exists():
        durations = json.loads(STATISTICS.read_text())["duration_by_test"]
        items.sort(key=lambda item: durations.get(item.nodeid, 0.0))
