"""What the measuring programs share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from performance.compiled import compiled_once


@pytest.mark.parametrize("given", [None, "1"], ids=["variables unset", "variables set"])
def test_children_keep_compiled_modules(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
    for name in names:
        monkeypatch.delenv(name, raising=False)
        if given is not None:
            monkeypatch.setenv(name, given)
    with compiled_once():
        folder = Path(os.environ["PYTHONPYCACHEPREFIX"])
        subprocess.run([sys.executable, "-c", "import convbn.errors"], check=True)
        assert [path.name.partition(".")[0] for path in folder.rglob("errors.*.pyc")] == ["errors"]
    assert not folder.exists()
    assert [os.environ.get(name) for name in names] == [given, given]
