"""Stored results: read back, compared, shown as a history."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support import bench_results
from support.bench_results import HOSTILE
from support.chromium import find_chromium, open_browser

from convbn.bench.report import changes, trend
from convbn.bench.results.compare import Change, MachineDiffersError, check_machines, compare
from convbn.bench.results.history import read_history
from convbn.bench.results.read import ResultFormatError, read_result
from convbn.errors import BadInputError, FileAccessError

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "bench" / "bench-result.schema.json").read_text())

#: Drawings that reach below their cell, into the text that follows.
STICKING_OUT = """
[...document.querySelectorAll('svg.spark')].filter(e =>
  e.getBoundingClientRect().bottom > e.parentElement.getBoundingClientRect().bottom + 1).length
"""


def stored(path: Path, result: object) -> Path:
    path.write_text(json.dumps(result), encoding="utf-8")
    return path


def test_a_result_comes_back_as_it_was(tmp_path: Path) -> None:
    for made in (bench_results.one(), bench_results.many()):
        assert read_result(stored(tmp_path / "r.json", made)) == made


def test_an_old_result_names_its_version_and_the_way_out(tmp_path: Path) -> None:
    path = stored(tmp_path / "old.json", {"schema_version": "1", "models": [], "rows": []})
    with pytest.raises(ResultFormatError, match="schema version 1, and this convbn reads version 2; measure"):
        read_result(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"a": NaN}', "[" * 100_000, '"x"', "{}"])
def test_what_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ResultFormatError, match="not a result of convbn bench"):
        read_result(tmp_path / "r.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(ResultFormatError, match="it is not JSON"):
        read_result(stored(tmp_path / "r.json", bench_results.one() | {"seconds": value}))


def test_bytes_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(ResultFormatError, match="UTF-8"):
        read_result(tmp_path / "r.json")
    for path in (tmp_path, tmp_path / "missing.json"):
        with pytest.raises(FileAccessError):
            read_result(path)


def broken() -> Iterator[tuple[str, Callable[[dict[str, Any]], object]]]:
    yield "created is missing", lambda r: r.pop("created")
    yield "cases", lambda r: r.update(cases=[])
    yield "cases", lambda r: r.update(cases=3)
    yield "seconds", lambda r: r.update(seconds=-1)
    yield "seconds", lambda r: r.update(seconds=True)
    yield "extra", lambda r: r.update(extra=[{"label": "x"}])
    yield "what is not known", lambda r: r.update({"what": 1})
    yield "cases[0].id", lambda r: r["cases"][0].update(id="A B")
    yield "cases[0].rows[1].ratio", lambda r: r["cases"][0]["rows"][1].update(ratio={"median": 1})
    yield "cases[0].rows[0].verdict", lambda r: r["cases"][0]["rows"][0].update(verdict="great")
    yield "latency_seconds", lambda r: r["cases"][0]["rows"][0].update(latency_seconds=None)
    yield "block_seconds", lambda r: r["cases"][0]["rows"][0].update(block_seconds=[])
    yield "fold", lambda r: r["cases"][0].update(fold={"batchnorm": {}})


@pytest.mark.parametrize(("where", "damage"), list(broken()))
def test_a_damaged_result_says_where(
    tmp_path: Path, where: str, damage: Callable[[dict[str, Any]], object]
) -> None:
    result = bench_results.one()
    damage(result)
    with pytest.raises(jsonschema.ValidationError):  # the full validator agrees
        jsonschema.validate(result, SCHEMA)
    with pytest.raises(ResultFormatError) as found:
        read_result(stored(tmp_path / "r.json", result))
    assert where in found.value.cause


def pair() -> tuple[dict[str, Any], dict[str, Any]]:
    old, new = bench_results.many(), bench_results.many()
    del old["cases"][4:], new["cases"][4:]
    return old, new


def scaled(result: dict[str, Any], factor: float, *, case: int, side: str) -> None:
    for row in result["cases"][case]["rows"]:
        if row["side"] == side and row["runtime"] == "torch-cpu":
            row["block_seconds"] = [value * factor for value in row["block_seconds"]]


def found(old: dict[str, Any], new: dict[str, Any], case: str, side: str) -> Change:
    changes = compare(old, new).changes
    return next(c for c in changes if (c.case, c.runtime, c.side) == (case, "torch-cpu", side))


def test_the_same_result_shows_no_difference() -> None:
    compared = compare(*pair())
    assert {change.verdict for change in compared.changes} == {"no difference detected"}
    assert compared.machine == compared.software == ()
    for change in compared.changes:
        assert change.ratio is not None
        assert change.ratio.low <= 1 <= change.ratio.high


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.1, "slower"), (0.9, "faster"), (1.01, "no difference detected")]
)
def test_a_side_that_changed_is_found(factor: float, verdict: str) -> None:
    old, new = pair()
    scaled(new, factor, case=2, side="folded")
    change = found(old, new, "vgg16-bn", "folded")
    assert change.verdict == verdict
    assert change.basis == "time ratio"
    assert change.ratio is not None
    assert change.ratio.median == pytest.approx(factor, rel=1e-6)
    assert found(old, new, "resnet18", "folded").verdict == "no difference detected"


def test_a_machine_that_drifted_is_not_a_side_that_changed() -> None:
    old, new = pair()
    for side in ("original", "folded"):
        scaled(new, 1.2, case=2, side=side)
    assert found(old, new, "vgg16-bn", "folded").verdict == "no difference detected"
    yardstick = found(old, new, "vgg16-bn", "original")
    assert yardstick.is_reference
    assert yardstick.verdict == "slower"
    text = changes.terminal(compare(old, new))
    assert "20.0 % more time than before: that much the machine" in " ".join(text.split())


@pytest.mark.parametrize("sha", [None, "1" * 64])
def test_without_the_same_baseline_times_are_compared_as_they_are(sha: str | None) -> None:
    old, new = pair()
    new["cases"][2]["sides"][0]["sha256"] = sha
    for side in ("original", "folded"):
        scaled(new, 1.2, case=2, side=side)
    change = found(old, new, "vgg16-bn", "folded")
    assert (change.basis, change.verdict, change.is_reference) == ("time", "slower", False)
    assert "drift of the machine is not in these intervals" in " ".join(
        changes.terminal(compare(old, new)).split()
    )


def test_what_only_one_of_them_has_is_said() -> None:
    old, new = pair()
    new["cases"].pop(0)
    new["cases"][0]["rows"][0] = bench_results.row("torch-cpu", "original", None)
    new["cases"][0]["rows"][1] = bench_results.row("torch-cpu", "folded", None)
    verdicts = [change.verdict for change in compare(old, new).changes]
    assert verdicts.count("only before") == 6
    assert [change.verdict for change in compare(new, old).changes].count("only after") == 6
    assert "Only the old result has times for 6 rows" in changes.terminal(compare(old, new))


@pytest.mark.parametrize(
    ("key", "value"), [("cpu", "Xeon"), ("cores", 64), ("gpus", [{"name": "NVIDIA H100", "driver": "1"}])]
)
def test_other_machines_are_refused(key: str, value: object) -> None:
    old, new = pair()
    check_machines(old["environment"], new["environment"], source="old.json", way="--any-machine")
    new["environment"][key] = value
    with pytest.raises(MachineDiffersError, match=r"old\.json: measured on another machine .*--any-machine"):
        check_machines(old["environment"], new["environment"], source="old.json", way="--any-machine")
    assert "different machines" in changes.terminal(compare(old, new))


def test_another_version_is_no_other_machine_but_is_said() -> None:
    old, new = pair()
    new["environment"]["libraries"] = {"onnxruntime": "2.0", "new": "1"}
    compared = compare(old, new)
    assert compared.machine == ()
    assert "onnxruntime 1.32.0 → 2.0" in compared.software
    assert "new none → 1" in compared.software
    assert "torch 2.13.0 → none" in compared.software


@pytest.mark.parametrize("name", HOSTILE)
def test_changes_survive_hostile_names(name: str) -> None:
    old, new = (bench_results.hostile(made, name) for made in pair())
    old["environment"]["libraries"] = {}
    compared = compare(old, new)
    text, table = changes.terminal(compared), changes.markdown(compared)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", text + table)
    assert "<" not in table
    assert "](" not in table
    assert "`" not in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1


def folder(tmp_path: Path, count: int = 5) -> Path:
    for index in range(count):
        result = bench_results.many(index)
        result["cases"] = result["cases"][:3]
        result["created"] = f"2026-11-{10 + index}T01:00:00+00:00"
        stored(tmp_path / f"run{index}.json", result)
    return tmp_path


def test_a_history_has_a_series_a_side_and_keeps_machines_apart(tmp_path: Path) -> None:
    place = folder(tmp_path)
    other = bench_results.many()
    other["cases"] = other["cases"][:3]
    other["environment"]["cpu"], other["created"] = "Xeon", "2026-11-01T00:00:00+00:00"
    stored(place / "other.json", other)
    stored(place / "notes.json", {"a": 1})
    (place / "readme.txt").write_text("not JSON")
    history = read_history(place)
    assert [len(machine.runs) for machine in history.machines] == [5, 1]
    assert [run.name for run in history.machines[0].runs] == [f"run{i}.json" for i in range(5)]
    assert len(history.machines[0].series) == 3 * 4
    assert history.left_out == (("notes.json", "not a result of convbn bench: schema_version is missing"),)
    series = history.machines[0].series[1]
    assert len([point for point in series.ratios if point]) == 5
    assert series.last is not None
    page = trend.render(history)
    assert page.count('class="spark"') == 2 * (3 * 2 + 3 * 4)
    assert "notes.json" in page


def test_a_run_without_a_side_leaves_a_gap(tmp_path: Path) -> None:
    place = folder(tmp_path, 3)
    result = json.loads((place / "run1.json").read_text())
    result["cases"] = result["cases"][1:]
    stored(place / "run1.json", result)
    machine = read_history(place).machines[0]
    series = next(s for s in machine.series if s.name == "resnet18" and s.side == "folded")
    assert [point is None for point in series.ratios] == [False, True, False]
    assert series.last is not None  # between the two runs that have it
    assert "<path" in trend.render(read_history(place))


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="holds no result"):
        read_history(tmp_path)
    with pytest.raises(FileAccessError):
        read_history(tmp_path / "missing")
    stored(tmp_path / "x.json", {})
    with pytest.raises(BadInputError, match="holds no result"):
        read_history(tmp_path)


@pytest.mark.parametrize("name", HOSTILE)
def test_the_history_page_survives_hostile_names(tmp_path: Path, name: str) -> None:
    for index in range(2):
        result = bench_results.hostile(copy.deepcopy(bench_results.one()), name)
        result["created"] = f"2026-11-2{index}T01:00:00+00:00"
        stored(tmp_path / f"run{index}.json", result)
    page = trend.render(read_history(tmp_path))
    assert not re.search(r"<(script|img|iframe|link|a|object)\b", page)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\ud800-\udfff]", page)
    assert not re.search(r'\s(on\w+|src|href)="', page)
    assert len(page.encode()) < trend.MOST_BYTES


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1180, "dark")])
def test_the_history_page_in_a_browser(tmp_path: Path, width: int, scheme: str) -> None:
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no Chromium is installed")
    (tmp_path / "runs").mkdir()
    page = tmp_path / "history.html"
    page.write_text(trend.render(read_history(folder(tmp_path / "runs"))), encoding="utf-8")
    shots = ROOT / "build" / "screenshots"
    shots.mkdir(parents=True, exist_ok=True)
    with open_browser(chromium, tmp_path / "profile") as browser:
        browser.show(page, width=width, scheme=scheme)
        assert browser.ask("document.documentElement.scrollWidth") == width
        assert browser.requests == [page.as_uri()]
        assert browser.ask(STICKING_OUT) == 0
        browser.screenshot(shots / f"history-{width}-{scheme}.png")
