"""Terminal, Markdown, JUnit and tracking reports: of one model and of twelve, with names that are not kind."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
from support import bench_results
from support.bench_results import HOSTILE

from convbn.bench.measure import protocol
from convbn.bench.report import facts, html, junit, markdown, terminal, tracking
from convbn.bench.report.facts import sentences, title_of
from convbn.bench.results.comparisons import case_label, comparisons, geometric_mean, summaries
from convbn.common.text import bytes_text, clean, seconds_text

SCHEMA = json.loads((Path(str(protocol.__file__)).parents[1] / "bench-result.schema.json").read_text())
Render = Callable[[dict[str, Any]], str]
RENDERS: list[Render] = [html.render, markdown.render, terminal.render]
NOT_TEXT = r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"


@pytest.fixture
def result() -> dict[str, Any]:
    return bench_results.one()


@pytest.mark.parametrize("made", [bench_results.one, bench_results.many])
def test_the_made_up_results_are_valid(made: Callable[[], dict[str, Any]]) -> None:
    jsonschema.validate(made(), SCHEMA)


@pytest.mark.parametrize("made", [bench_results.one, bench_results.many])
@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_survives_hostile_names(made: Callable[[], dict[str, Any]], name: str) -> None:
    text = markdown.render(bench_results.hostile(made(), name), bench_results.gates(name))
    assert len(text.encode()) < 64_000
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    outside = re.sub(r"</?(code|details|summary)>", "", text)
    assert "<" not in outside
    assert "](" not in text
    assert "`" not in text
    assert "@everyone" not in text
    assert not re.search(r"https?://", text)
    assert not re.search(NOT_TEXT, text)


@pytest.mark.parametrize("made", [bench_results.one, bench_results.many])
@pytest.mark.parametrize("name", HOSTILE)
def test_the_terminal_survives_hostile_names(made: Callable[[], dict[str, Any]], name: str) -> None:
    text = terminal.render(bench_results.hostile(made(), name), bench_results.gates(name))
    assert not re.search(NOT_TEXT, text)
    assert max(len(line) for line in text.splitlines()) < 200


@pytest.mark.parametrize("name", HOSTILE)
def test_tracking_formats_survive_hostile_names(result: dict[str, Any], name: str) -> None:
    bad = bench_results.hostile(result, name)
    for value in (tracking.github(bad), tracking.bencher(bad)):
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        assert not re.search(NOT_TEXT, text)
    for entry in tracking.github(bad):
        assert not entry["name"].startswith(("=", "+", "-", "@"))  # spreadsheets run such cells


@pytest.mark.parametrize("render", RENDERS)
def test_a_ratio_never_comes_without_its_interval(render: Render, result: dict[str, Any]) -> None:
    text = re.sub(r"<pre.*?</pre>", "", render(result), flags=re.DOTALL)
    assert "0.787" in text
    for found in re.finditer(r"0\.787", text):
        assert re.match(r"0\.787 \[0\.781, 0\.793\]", text[found.start() :])
    for found in re.finditer(r"21\.3 %|1\.27×", text.replace("\u00a0", " ")):
        assert "interval" in text.replace("\u00a0", " ")[found.start() : found.start() + 120]


@pytest.mark.parametrize("render", RENDERS)
def test_what_was_not_measured_says_why(render: Render, result: dict[str, Any]) -> None:
    text = " ".join(render(result).split())
    assert "buy one" in text
    assert "not measured" in text
    assert "no difference" in text.lower()


@pytest.mark.parametrize("render", RENDERS)
def test_without_fold_ratios_or_times_there_is_still_a_report(render: Render, result: dict[str, Any]) -> None:
    case = result["cases"][0]
    del case["rows"][:4], case["runtimes"][:2]
    case |= {"fold": None, "inputs": [], "batch": None, "threads": None}
    result |= {"extra": [], "title": None, "command": None}
    jsonschema.validate(result, SCHEMA)
    text = render(result)
    assert "folded against original" in text
    assert "BatchNorm" not in text


@pytest.mark.parametrize("render", RENDERS)
def test_several_models_begin_with_what_they_come_to(render: Render) -> None:
    result = bench_results.many()
    text = " ".join(re.sub(r"<[^>]*>", " ", render(result)).replace("\u00a0", " ").split())
    first = text.index("faster in 12")
    assert "the geometric mean over models, 95 % interval" in text[:first]
    assert first < text.index("mobilenet")
    for case in result["cases"]:
        assert case["name"] in text.replace("&#95;", "_")
    assert "folds BatchNorm into convolutions itself" in text


def test_conditions_that_differ_are_named_and_others_are_not() -> None:
    result = bench_results.many()
    result["cases"] = result["cases"][:2]
    result["cases"][1] |= {"batch": 8, "threads": None}
    labels = [case_label(result, case) for case in result["cases"]]
    assert labels == ["resnet18 · batch 1 · 2 threads", "resnet50 · batch 8 · default threads"]
    result["title"] = None
    assert title_of(result) == "2 models: folded against original"


def test_the_geometric_mean_propagates_the_intervals() -> None:
    mean = geometric_mean([bench_results.ratio(0.8, 0.9, 1.0), bench_results.ratio(1.0, 1 / 0.9, 1.2)])
    assert mean is not None
    assert mean["median"] == pytest.approx(1.0)
    assert mean["low"] < 1 < mean["high"]
    alone = geometric_mean([bench_results.ratio(0.8, 0.9, 1.0)])
    assert alone is not None
    assert (alone["low"], alone["median"], alone["high"]) == pytest.approx((0.8, 0.9, 1.0))
    four = geometric_mean([bench_results.ratio(0.8, 0.9, 1.0)] * 4)
    assert four is not None
    assert 0.8 < four["low"] < 0.9 < four["high"] < 1.0
    assert geometric_mean([]) is None


def test_a_model_that_could_not_be_measured_counts_as_such() -> None:
    result = bench_results.many()
    rows = result["cases"][3]["rows"]
    rows[1] = bench_results.row("torch-cpu", "folded", None)
    summary = summaries(result)[0]
    assert (summary.runtime, summary.faster, summary.missing) == ("torch-cpu", 11, 1)
    assert summary.counts == "12 models: faster in 11, not measured in 1"


def test_a_runtime_in_which_nothing_was_measured_says_so_once() -> None:
    result = bench_results.many()
    for case in result["cases"]:
        case["rows"] = [bench_results.row("torch-cuda", side, None) for side in ("original", "folded")]
        case["runtimes"] = [bench_results.control("torch-cuda", measured=False)]
    assert list(sentences(result)) == [("torch-cuda", "Nothing was measured: it has no GPU; buy one.")]


def huge(result: dict[str, Any]) -> dict[str, Any]:
    big = copy.deepcopy(result)
    case = big["cases"][0]
    case["fold"]["folded"] = [
        {"name": "n" * 300 + str(i), "into": ["m" * 300], "rule": "r"} for i in range(20_000)
    ]
    rows, runtimes = case["rows"], case["runtimes"]
    case["rows"], case["runtimes"] = [], []
    for i in range(100):
        for entry in rows:
            more = {"runtime": f"{entry['runtime']}{i}", "block_seconds": entry["block_seconds"] * 40}
            case["rows"].append(entry | more)
        case["runtimes"] += [control | {"runtime": f"{control['runtime']}{i}"} for control in runtimes]
    return big


def test_huge_results_stay_small_and_say_so(result: dict[str, Any]) -> None:
    big = huge(result)
    page = html.render(big)
    assert len(page.encode()) < html.MOST_BYTES
    assert "more are in the JSON result" in page
    for limit in (64_000, 20_000, 3_000):
        text = markdown.render(big, most_bytes=limit)
        assert len(text.encode()) < limit
        assert "the JSON result has everything" in text.splitlines()[-1]
        assert text.count("<details>") == text.count("</details>")
    assert "leaves out" not in markdown.render(result)


def test_junit_has_the_common_form(result: dict[str, Any]) -> None:
    gates = [
        bench_results.gate("passed"),
        bench_results.gate("failed"),
        bench_results.gate("not judged"),
        bench_results.gate("skipped"),
    ]
    root = ElementTree.fromstring(junit.render(result, gates))  # noqa: S314 - written here, two lines up
    suite = root[0]
    counts = {key: suite.attrib[key] for key in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "4", "failures": "1", "errors": "1", "skipped": "1"}
    assert [[child.tag for child in case] for case in suite] == [[], ["failure"], ["error"], ["skipped"]]
    assert suite.attrib["timestamp"] == "2026-11-23T01:00:00"
    # What junit-10.xsd of Jenkins' xUnit plugin allows and requires.
    assert set(root.attrib) <= {"name", "time", "tests", "failures", "errors"}
    assert set(suite.attrib) <= {"name", "time", "tests", "failures", "errors", "skipped", "timestamp"}
    assert re.fullmatch(r"[0-9]+(\.[0-9]*)?", suite.attrib["time"])
    for case in suite:
        assert case.tag == "testcase"
        assert set(case.attrib) == {"classname", "name", "time"}
        assert all(set(child.attrib) == {"message", "type"} for child in case)
        assert case.attrib["classname"] == "convbn.resnet18.torch-cpu"


@pytest.mark.parametrize("name", HOSTILE)
def test_junit_survives_hostile_names(result: dict[str, Any], name: str) -> None:
    text = junit.render(bench_results.hostile(result, name), bench_results.gates(name))
    root = ElementTree.fromstring(text)  # noqa: S314 - written here, one line up
    assert len(root[0]) == len(bench_results.gates(name))
    assert not re.search(NOT_TEXT, text)
    assert "\ufffe" not in text


def test_tracking_formats_hold_what_was_measured(result: dict[str, Any]) -> None:
    entries = tracking.github(result)
    assert [entry["unit"] for entry in entries] == ["ms", "ms", "× baseline", "ms", "ms", "× baseline"]
    assert entries[0]["name"] == "resnet18 / onnxruntime-cpu@off / original: median"
    assert entries[0]["value"] == pytest.approx(2.0)
    assert entries[2]["value"] == pytest.approx(0.787)
    assert all(set(entry) == {"name", "unit", "value", "range", "extra"} for entry in entries)
    assert len({entry["name"] for entry in entries}) == len(entries)
    metrics = tracking.bencher(result)
    assert len(metrics) == 4
    measure = metrics["resnet18 / onnxruntime-cpu@off / folded"]
    assert measure["time-ratio"] == {"value": 0.787, "lower_value": 0.781, "upper_value": 0.793}
    assert measure["latency"]["value"] == pytest.approx(2e6 * 0.787)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.5, "2.500 s"),
        (0.01234, "12.34 ms"),
        (1e-3, "1.000 ms"),
        (123.4e-6, "123.4 µs"),
        (5e-9, "5 ns"),
        (0.0, "0 ns"),
    ],
)
def test_times_have_units(value: float, text: str) -> None:
    assert seconds_text(value) == text


def test_sizes_have_units() -> None:
    assert [bytes_text(v) for v in (None, 0, 999, 46_827_520)] == ["–", "0 B", "999 B", "46.8 MB"]


def test_invisible_characters_are_shown_and_long_text_is_cut() -> None:
    assert clean("a\u202eb\x07") == "a⟨U+202E⟩b⟨U+0007⟩"
    assert clean("x" * 500, 20) == f"{'x' * 10}…{'x' * 10}"
    assert len(clean("\x01" * 10_000)) < 300
    assert clean("é 日本 ok\n\tline") == "é 日本 ok line"


def test_no_difference_beside_an_interval_that_leaves_one_out_says_why() -> None:
    found = next(one for one in comparisons(bench_results.one()) if one.row["ratio"])
    ratio = {**found.row["ratio"], "median": 1.006, "low": 1.004, "high": 1.008}
    row = {**found.row, "verdict": "no difference detected", "ratio": ratio}
    noisy = replace(found, row=row, control={**found.control, "noise_floor": 0.012})
    assert "1.004 to 1.008, which leaves 1 out" in facts.sentence(noisy)
    assert "the noise is 1.2 %" in facts.sentence(noisy)
    around = replace(noisy, row={**row, "ratio": {**ratio, "low": 0.99}})
    assert "leaves 1 out" not in facts.sentence(around)


def test_gates_are_counted_by_what_became_of_them() -> None:
    outcomes = (("a", "failed"), ("a", "passed"), ("b", "passed"), ("b", "passed"))
    gates = [{"gate": gate, "status": status} for gate, status in outcomes]
    assert facts.gate_counts(gates) == "1 failed, 1 held"
    assert facts.gate_counts(gates[:1]) == "1 failed"
