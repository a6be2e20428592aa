"""Documents are held against the code they speak of."""

from __future__ import annotations

import json
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from structure.data_path import BEGIN
from structure.examples import BLOCK, filled
from structure.imports import modules

from convbn.bench.runtimes.registry import RUNTIMES
from convbn.fuse.operators.registry import known_names
from convbn.fuse.refusal import Reason

ROOT = Path(__file__).parents[2]
_WRITE = spec_from_file_location("tour_write", ROOT / "examples" / "tour" / "write.py")
assert _WRITE is not None
assert _WRITE.loader is not None
tour = module_from_spec(_WRITE)
_WRITE.loader.exec_module(tour)


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


def test_functions_that_were_measured_are_there() -> None:
    """`make architecture` lists anew what a model passes."""
    measured = (ROOT / "docs" / "architecture.md").read_text().partition(BEGIN)[2]
    lines = re.findall(r"^\d+\. `([\w/.-]+\.py)`: (.*)", measured, re.MULTILINE)
    listed = [(path, name) for path, names in lines for name in re.findall(r"`([\w.]+)`", names)]
    assert len(listed) > 100

    def stands(path: str, name: str) -> bool:
        text = (ROOT / path).read_text()
        return all(re.search(rf"^\s*(?:def|class) {part}\b", text, re.MULTILINE) for part in name.split("."))

    assert [f"{path}: {name}" for path, name in listed if not stands(path, name)] == []


def test_every_document_is_on_the_site() -> None:
    """`make docs` is strict about it, too, but takes an environment of its own."""
    listed = set(re.findall(r"([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(there - listed) == []
    generated = {name for name in listed if name.startswith(("gallery/", "reference/"))}
    assert [name for name in sorted(listed - generated) if not (ROOT / name).exists()] == []


def test_both_languages_show_what_was_measured() -> None:
    found = json.loads((ROOT / "docs" / "tour.json").read_text(encoding="utf-8"))
    for name in tour.PAGES:
        page = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert page == tour.filled(page, found, chinese=name.endswith("zh-CN.md")), (
            f"`make tour` writes docs/{name} anew"
        )


def test_both_languages_have_the_same_commands_pictures_and_links() -> None:
    for english, chinese in (("README.md", "README.zh-CN.md"), ("docs/tour.md", "docs/tour.zh-CN.md")):
        first, second = ((ROOT / name).read_text(encoding="utf-8") for name in (english, chinese))
        assert commands_of(first) == commands_of(second)
        assert numbers_of(first) == numbers_of(second)


def commands_of(page: str) -> list[str]:
    """The lines of all fenced blocks without their comments."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [line.split("#")[0].rstrip() for block in blocks for line in block.splitlines()]


def numbers_of(page: str) -> list[str]:
    """Every figure outside fenced blocks that has a decimal point or a percent sign, in order of size."""
    prose = re.sub(r"^```\w*\n.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    return sorted(re.findall(r"\d+\.\d+(?: ?%)?|\d+ ?%|\d{1,3}(?:,\d{3})+", prose))
