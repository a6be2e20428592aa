"""Documents are held against the code they speak of."""

from __future__ import annotations

import re
from pathlib import Path

from structure.data_path import BEGIN
from structure.examples import BLOCK, filled
from structure.imports import modules

from convbn.bench.runtimes.registry import RUNTIMES
from convbn.fuse.operators.registry import known_names
from convbn.fuse.refusal import Reason

ROOT = Path(__file__).parents[2]


def test_every_reason_is_explained() -> None:
    headings = re.findall(r"^### `([a-z-]+)`$", (ROOT / "docs" / "reasons.md").read_text(), re.MULTILINE)
    assert headings == [str(reason) for reason in Reason]
    assert all(reason.explanation for reason in Reason)


def test_every_rule_is_listed() -> None:
    text = (ROOT / "docs" / "algebra.md").read_text()
    for name in known_names():
        assert f"`{name}`" in text, name


def test_the_table_of_runtimes_is_the_registry() -> None:
    rows = ["| runtime | levels | what it runs | what it does by itself |", "|---|---|---|---|"]
    for one in RUNTIMES.values():
        levels = ", ".join("/".join(f"`{level}`" for level in group) for group in one.levels)
        rows.append(f"| `{one.name}` | {levels} | {one.runs} | {one.folds or ''} |")
    table = "\n".join(rows)
    assert table in (ROOT / "docs" / "benchmarks.md").read_text(), (
        f"docs/benchmarks.md needs this table:\n{table}"
    )


def test_every_decision_is_linked() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for path in sorted((ROOT / "docs" / "decisions").glob("*.md")):
        assert f"decisions/{path.name}" in index


def test_links_lead_somewhere() -> None:
    for document in [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "examples/README.md",
    ]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document}: {target}"


def test_worked_examples_are_those_of_the_tests() -> None:
    """`make architecture` brings them up to date."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    examples = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/project/test_examples_*.py")}
    assert {path for _, path, *_ in BLOCK.findall(text)} == examples
    assert text.count("```python") == len(BLOCK.findall(text)) > 0
    assert filled(text) == text


def test_files_that_are_spoken_of_are_there() -> None:
    """In documents between backticks, in product files anywhere; what `make architecture` measures is left out."""
    path = r"(?:fuse|export|bench|src|tests|tools|docs|examples)/[\w./-]*\w\.\w+"
    spoken = [
        (document, name)
        for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
        for name in re.findall(rf"`({path})`", document.read_text().partition(BEGIN)[0])
    ]
    spoken += [
        (file, name)
        for file in modules().values()
        for name in re.findall(rf"(?<![\w/.]){path}", file.read_text())
    ]
    assert len(spoken) > 20
    assert [f"{place}: {name}" for place, name in spoken if not (ROOT / name).exists()] == []
