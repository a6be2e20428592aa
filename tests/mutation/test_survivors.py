"""The list of survivors is held against the code, and what a run left is read as it should be."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from mutation.outcome import ELLIPSIS, SURVIVED, TYPES, forget_survivors, mutants, patterns, waiting
from mutation.page import page
from mutation.run import file_of, merged, part_of, summary
from mutation.stage import PARTS
from mutation.survivors import KINDS, Known, known

ROOT = Path(__file__).parents[2]


def lines_of(file: str) -> dict[str, list[str]]:
    """The lines of each function of a file, by its name with its class."""
    text = (ROOT / file).read_text()
    lines = [line.strip() for line in text.splitlines()]

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, list[str]]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                yield from walk(child, f"{child.name}.")
            elif isinstance(child, ast.FunctionDef):
                yield prefix + child.name, lines[child.lineno - 1 : child.end_lineno]

    return dict(walk(ast.parse(text), ""))


def test_what_is_listed_still_stands_in_the_code() -> None:
    files: dict[str, dict[str, list[str]]] = {}
    for key, entry in known().items():
        place, _, change = key.partition(": ")
        file, _, function = place.partition(" ")
        inside = files.setdefault(file, lines_of(file))
        assert function in inside, key
        old = change.partition(" → ")[0]
        assert all(line in inside[function] for line in old.split(ELLIPSIS) if line), key
        assert entry.kind in KINDS
        assert len(entry.why) > 20, key


def test_the_committed_run_left_nothing_without_a_reason() -> None:
    parts = json.loads((ROOT / "docs" / "mutation.json").read_text())
    assert set(parts) <= set(PARTS)
    written = set[str]()
    for name, found in parts.items():
        assert found["unexplained"] == []
        assert found["gone"] == []
        explained = {entry["mutant"] for entry in found["explained"]}
        listed = {key for key in known() if part_of(key) == name}
        # A sample meets some of them; that the others still stand in the code is another test's part.
        assert explained <= listed if "sample" in found else explained == listed
        whole = set(found.get("whole", {}))
        assert whole <= set(found["files"])
        assert {key for key in listed if file_of(key) in whole} <= explained
        for verdict, count in found["totals"].items():
            assert count == sum(counts[verdict] for counts in found["files"].values())
        written |= explained
        files = {file for folder in PARTS[name].folders for file in (ROOT / folder).rglob("*.py")}
        assert {(ROOT / file).parent for file in found["files"]} <= {file.parent for file in files}
        # All of them, or a tenth for every digit of a sample.
        assert sum(found["totals"].values()) > 200 * len(found.get("sample", "0123456789"))
    text = (ROOT / "docs" / "mutation.md").read_text()
    assert text == page(parts)
    assert set(re.findall(r"^\* `(.*)`$", text, re.MULTILINE)) == written


BODY = """\
def x_f__mutmut_orig(a, b):
    if a < b:
        return (
            a
        )
    return b
def x_f__mutmut_1(a, b):
    if a <= b:
        return (
            a
        )
    return b
class C:
    def xǁCǁg__mutmut_orig(self):
        return 1
    def xǁCǁg__mutmut_1(self):
        return 2
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    place = tmp_path / "mutants" / "src" / "convbn" / "fuse" / "rules"
    place.mkdir(parents=True)
    (place / "thing.py").write_text(BODY)
    codes = {
        "convbn.fuse.operators.thing.x_f__mutmut_1": 0,
        "convbn.fuse.operators.thing.xǁCǁg__mutmut_1": 37,
    }
    (place / "thing.py.meta").write_text(json.dumps({"exit_code_by_key": codes}))
    return tmp_path


def test_a_run_is_read(run: Path) -> None:
    first, second = mutants(run)
    assert (first.key, first.verdict) == ("fuse/rules/thing.py f: if a < b: → if a <= b:", SURVIVED)
    assert (second.key, second.verdict) == ("fuse/rules/thing.py C.g: return 1 → return 2", TYPES)


def test_a_mutant_that_was_not_run_is_no_kill(run: Path) -> None:
    place = run / "mutants" / "src" / "convbn" / "fuse" / "rules" / "thing.py.meta"
    for code in (None, 2, 34, 99):
        place.write_text(
            json.dumps({"exit_code_by_key": {"convbn.fuse.operators.thing.x_f__mutmut_1": code}})
        )
        with pytest.raises(ValueError, match="was not run to its end"):
            mutants(run)


def test_a_sample_is_of_every_function_and_the_rest_is_left(run: Path) -> None:
    place = run / "mutants" / "src" / "convbn" / "fuse" / "rules" / "thing.py.meta"
    names = {digit: f"convbn.fuse.operators.thing.x_f__mutmut_{digit}" for digit in (1, 2, 11)}
    place.write_text(json.dumps({"exit_code_by_key": {names[2]: None, names[11]: None, names[1]: 1}}))
    assert waiting(run, patterns(digits="1")) == [names[11]]
    assert waiting(run, patterns()) == [names[2], names[11]]
    place.write_text(json.dumps({"exit_code_by_key": {names[2]: None, names[1]: 1}}))
    assert [mutant.verdict for mutant in mutants(run, patterns(digits="71"))] == ["killed"]
    with pytest.raises(ValueError, match="was not run to its end"):
        mutants(run, patterns(digits="2"))


def test_all_changes_of_a_file_or_a_folder_and_no_others(run: Path) -> None:
    place = run / "mutants" / "src" / "convbn" / "fuse" / "rules" / "thing.py.meta"
    names = [
        f"convbn.fuse.{module}.x_f__mutmut_1" for module in ("rules.thing", "rules.things", "algebra.thing")
    ]
    place.write_text(json.dumps({"exit_code_by_key": dict.fromkeys(names)}))
    assert waiting(run, patterns(["fuse/rules/thing.py"])) == names[:1]
    assert waiting(run, patterns(["fuse/rules"])) == names[:2]
    assert waiting(run, patterns(["fuse/rules/", "fuse/algebra/thing.py"])) == names
    place.write_text(json.dumps({"exit_code_by_key": dict.fromkeys(names, 0)}))
    forget_survivors(run, patterns(["fuse/rules/thing.py"]))
    left = json.loads(place.read_text())["exit_code_by_key"]
    assert left == dict.fromkeys(names, 0) | {names[0]: None}


def counted(*verdicts: str) -> dict[str, int]:
    """How often each verdict was given, as it stands in the JSON."""
    return {name: verdicts.count(name) for name in ("types", "killed", "timeout", "survived", "no test")}


def test_files_that_were_tried_whole_stand_beside_a_sample_of_the_others() -> None:
    def survivor(file: str) -> dict[str, str]:
        return {"mutant": f"{file} f: a → b", "kind": "same", "why": "because"}

    host = {"date": "2026-11-01", "processor": "CPU", "cores": 2, "python": "3.11", "mutmut": "3"}
    before = {
        "totals": counted("killed", "survived", "killed", "survived"),
        "files": {"fuse/a.py": counted("killed", "survived"), "fuse/z.py": counted("killed", "survived")},
        "explained": [survivor("fuse/a.py"), survivor("fuse/z.py")],
        "unexplained": ["fuse/a.py f: c → d", "fuse/z.py f: c → d"],
        "gone": ["fuse/a.py f: e → g"],
        "sample": "7",
        "machine": host,
        "minutes": None,
    }
    whole = {
        "totals": counted("types", "killed", "killed"),
        "files": {"fuse/a.py": counted("types", "killed", "killed")},
        "explained": [],
        "unexplained": ["fuse/a.py f: h → i"],
        "gone": [],
        "machine": host | {"date": "2026-11-02"},
        "minutes": 5.0,
    }
    found = merged(before, whole)
    assert found["files"] == {
        "fuse/a.py": counted("types", "killed", "killed"),
        "fuse/z.py": counted("killed", "survived"),
    }
    assert found["totals"] == counted("types", "killed", "killed", "killed", "survived")
    assert found["explained"] == [survivor("fuse/z.py")]
    assert found["unexplained"] == ["fuse/z.py f: c → d", "fuse/a.py f: h → i"]
    assert (found["gone"], found["sample"], found["machine"]) == ([], "7", host)
    assert found["whole"] == {"fuse/a.py": "2026-11-02"}
    text = page({"fold": found})
    assert "| fuse/a.py | all | 3 | 1 | 2 | 0 | 0 |" in text
    assert "| fuse/z.py | sample | 2 | 0 | 1 | 0 | 1 |" in text
    assert "Of the files with *all* below, every change instead, on 2026-11-02." in text


def test_only_what_no_test_noticed_is_tried_again(run: Path) -> None:
    place = run / "mutants" / "src" / "convbn" / "fuse" / "rules" / "thing.py.meta"
    codes = {"killed": 1, "types": 37, "slow": -24, "survived": 0, "untested": 33, "skipped": 34, "new": None}
    place.write_text(json.dumps({"exit_code_by_key": codes, "durations_by_key": {}}))
    forget_survivors(run)
    left = json.loads(place.read_text())["exit_code_by_key"]
    assert left == codes | dict.fromkeys(("survived", "untested", "skipped"))


def test_survivors_are_told_from_those_that_are_known(run: Path) -> None:
    ended = mutants(run)
    assert summary(ended, {})["unexplained"] == [ended[0].key]
    listed = {ended[0].key: Known("same", "because"), "rules/gone.py f: a → b": Known("same", "because")}
    found = summary(ended, listed)
    assert found["unexplained"] == []
    assert found["explained"] == [{"mutant": ended[0].key, "kind": "same", "why": "because"}]
    assert found["gone"] == ["rules/gone.py f: a → b"]
    assert summary(ended, listed, sample=True)["gone"] == []
    killed = {ended[1].key: Known("same", "because")}
    assert summary(ended, killed, sample=True)["gone"] == [ended[1].key]
    assert found["totals"] == {"types": 1, "killed": 0, "timeout": 0, "survived": 1, "no test": 0}
