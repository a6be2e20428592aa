"""What workers call: a verb of the command line, run in this process."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from convbn.common.text import printable

__all__ = ["Result", "verb"]


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a piece of work.

    Attributes:
        report: JSON-ready.
        error: why it did not succeed, if so.
        exit_code: as of the command line.
        outputs: paths of files that it made outside of the store.
    """

    report: Mapping[str, Any] | None = None
    error: str | None = None
    exit_code: int = 0
    outputs: tuple[str, ...] = field(default=())


def verb(
    arguments: list[str],
    *,
    report: bool = True,
    outputs: list[str] | None = None,
    given: Mapping[str, Any] | None = None,
) -> Result:
    """Run the command line and keep what it says.

    Args:
        arguments: as typed after ``convbn``, without ``--json``.
        report: ask it for its JSON; a command that has none must not be asked.
        outputs: files that it writes if it succeeds.
        given: options, by their names, that are set whatever was typed.

    Returns:
        Its JSON, which is there whenever the verb wrote one, and the sentence it ended with.
    """
    from convbn.cli import main

    said, errors = StringIO(), StringIO()
    with tempfile.TemporaryDirectory(prefix="convbn-") as folder:
        json_file = Path(folder, "report.json")
        asked = {"json": str(json_file) if report else None} if report or given else {}
        with redirect_stdout(said), redirect_stderr(errors):
            try:
                code = main(arguments, {**asked, **(given or {})})
            except SystemExit as error:  # argparse: it says why before it ends
                code = error.code if isinstance(error.code, int) else 2
        found = json.loads(json_file.read_text(encoding="utf-8")) if json_file.exists() else None
    text = None
    if code != 0:
        lines = [line for line in (errors.getvalue() or said.getvalue()).splitlines() if line.strip()]
        text = printable(lines[-1].removeprefix("convbn: ")) if lines else f"convbn ended with {code}"
    made = [path for path in outputs or () if Path(path).exists()] if code == 0 else []
    return Result(found, text, code, tuple(made))
