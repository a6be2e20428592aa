from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from convbn.bench import protocol
from convbn.bench.report import html, markdown, terminal
from convbn.bench.report.facts import clean, seconds_text

SCHEMA = json.loads((Path(str(protocol.__file__)).parent / "bench-result.schema.json").read_text())
HOSTILE = [
    "<script>alert(1)</script>",
    "\"' onload='x' ` | \n\n# h1",
    "a\u202egnp.exe",
    "\x1b[31mred\x07\x00",
    "![x](http://evil.example/x.png) @everyone www.evil.example",
    "x" * 10_000,
    "</style></title><img src=x onerror=alert(1)>",
    "\ud800 lone",
    "=cmd|' /C calc'!A0",
]
Render = Callable[[dict[str, Any]], str]
RENDERS: list[Render] = [html.render, markdown.render, terminal.render]


def times(median: float) -> dict[str, Any]:
    shape = {"min": 0.9, "p25": 0.97, "median": 1, "p75": 1.03, "p90": 1.1, "p95": 1.2, "p99": 1.5, "max": 9}
    return {key: value * median for key, value in shape.items()} | {"mean": median, "cv": 0.1, "n": 400}


def equality(name: str = "logits", status: str = "equal") -> dict[str, Any]:
    output = {
        "name": name,
        "dtype": "float32",
        "shape": [2, 10],
        "max_abs_error": 1.5e-6,
        "rel_error": 2.5e-7,
        "worst_channel_error": None,
        "bound": 3.45e-4,
        "ok": True,
    }
    return {
        "status": status,
        "reason": "because",
        "outputs": [output],
        "samples": 2,
        "seed": 0,
        "input_scale": 1.0,
        "runtime": "onnxruntime-cpu@off",
        "versions": {},
    }


def row(
    runtime: str, side: str, verdict: str | None, ratio: tuple[float, float, float] | None
) -> dict[str, Any]:
    measured = verdict is not None
    median = 2e-3 * (ratio[1] if ratio else 1.0)
    return {
        "runtime": runtime,
        "side": side,
        "status": "measured" if measured else "not measured",
        "reason": None if measured else "it has no GPU; buy one",
        "equality": equality() if ratio else None,
        "latency_seconds": times(median) if measured else None,
        "block_seconds": [median * (1 + i / 200) for i in range(30)] if measured else [],
        "calls_per_block": 20 if measured else None,
        "warm": measured or None,
        "ratio": _ratio(*ratio) if ratio else None,
        "verdict": verdict,
    }


def _ratio(low: float, median: float, high: float) -> dict[str, Any]:
    return {"median": median, "low": low, "high": high, "confidence": 0.95, "pairs": 30}


@pytest.fixture
def result() -> dict[str, Any]:
    rows = [
        row("onnxruntime-cpu@off", "original", "baseline", None),
        row("onnxruntime-cpu@off", "folded", "faster", (0.781, 0.787, 0.793)),
        row("torch-cpu", "original", "baseline", None),
        row("torch-cpu", "folded", "no difference detected", (0.97, 0.99, 1.01)),
        row("onnxruntime-cuda", "original", None, None),
        row("onnxruntime-cuda", "folded", None, None),
    ]
    controls = [
        {"runtime": name, "control": _ratio(0.99, 1.0, 1.012), "noise_floor": 0.012, "note": None}
        for name in ("onnxruntime-cpu@off", "torch-cpu")
    ]
    controls.append({"runtime": "onnxruntime-cuda", "control": None, "noise_floor": None, "note": "n"})
    return {
        "schema_version": "1",
        "title": "resnet18: folded against original",
        "created": "2026-11-23T01:00:00+00:00",
        "seconds": 12.0,
        "command": "convbn bench resnet18.onnx",
        "models": [
            {"name": "original", "path": "resnet18.onnx", "sha256": "0" * 64, "bytes": 12},
            {"name": "folded", "path": None, "sha256": None, "bytes": None},
        ],
        "inputs": [{"name": "x", "dtype": "float32", "shape": [2, 3, 224, 224]}],
        "rows": rows,
        "runtimes": controls,
        "options": {
            "seed": 0,
            "threads": None,
            "block_seconds": 0.05,
            "budget_seconds": 5.0,
            "min_blocks": 20,
            "warmup_seconds": 0.5,
            "samples": 2,
            "input_shapes": {},
        },
        "environment": {
            "cpu": "AMD EPYC",
            "cores": 2,
            "os": "Linux",
            "python": "3.11.7",
            "libraries": {"numpy": "2.4.6"},
            "gpus": [{"name": "NVIDIA H100", "driver_version": "580.1"}],
            "load_average": 0.5,
        },
        "fold": {
            "batchnorm": {"before": 20, "after": 1},
            "nodes": {"before": 69, "after": 50},
            "folded": [{"name": f"bn{i}", "into": [f"conv{i}"], "rule": "conv-bn"} for i in range(19)],
            "kept": [{"name": "bn19", "reason": "fan-out", "detail": "conv19 is also read by add3"}],
            "merged": [],
        },
        "extra": [{"label": "Top-1", "value": "71.2 %"}],
    }


def hostile(result: dict[str, Any], name: str) -> dict[str, Any]:
    """Every text a user or a model chooses is the hostile name."""
    bad = copy.deepcopy(result)
    bad["title"] = bad["command"] = name
    names = {"original": name, "folded": f"{name}!"}
    for model in bad["models"]:
        model["name"] = names[model["name"]]
        model["path"] = name
    for spec in bad["inputs"]:
        spec["name"] = name
    for entry in bad["rows"]:
        entry["side"] = names[entry["side"]]
        entry["reason"] = name if entry["reason"] else None
        if entry["equality"]:
            entry["equality"]["reason"] = entry["equality"]["outputs"][0]["name"] = name
    bad["fold"]["folded"] = [{"name": name, "into": name, "rule": name}] * 50
    bad["fold"]["kept"] = [{"name": name, "reason": name, "detail": name}] * 50
    bad["environment"]["cpu"] = bad["environment"]["os"] = name
    bad["environment"]["libraries"] = {name: name}
    bad["extra"] = [{"label": name, "value": name}]
    return bad


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> _Tags:
    parser = _Tags()
    parser.feed(page)
    parser.close()
    return parser


def test_the_fixture_is_a_valid_result(result: dict[str, Any]) -> None:
    jsonschema.validate(result, SCHEMA)


@pytest.mark.parametrize("name", HOSTILE)
def test_html_survives_hostile_names(result: dict[str, Any], name: str) -> None:
    page = html.render(hostile(result, name))
    found = parsed(page)
    assert found.open == []
    assert not {"script", "img", "iframe", "link", "a", "object"} & set(found.tags)
    assert not [key for key, _ in found.attributes if key.startswith("on") or key in {"src", "href"}]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page)
    assert len(page.encode()) < 500_000


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_survives_hostile_names(result: dict[str, Any], name: str) -> None:
    text = markdown.render(hostile(result, name))
    assert len(text.encode()) < 64_000
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {8}
    outside = re.sub(r"</?(code|details|summary)>", "", text)
    assert "<" not in outside
    assert "](" not in text
    assert "`" not in text
    assert not re.search(r"https?://|[\x00-\x08\x0b-\x1f\u202a-\u202e]", text)


@pytest.mark.parametrize("name", HOSTILE)
def test_the_terminal_survives_hostile_names(result: dict[str, Any], name: str) -> None:
    text = terminal.render(hostile(result, name))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", text)
    assert max(len(line) for line in text.splitlines()) < 200


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
    del result["rows"][:4], result["runtimes"][:2]
    result |= {"fold": None, "extra": [], "title": None, "command": None}
    jsonschema.validate(result, SCHEMA)
    text = render(result)
    assert "folded against original" in text
    assert "BatchNorm" not in text.replace("BatchNorms folded", "")


def test_the_verdict_comes_first_and_sections_follow_in_order(result: dict[str, Any]) -> None:
    page = html.render(result)
    order = [
        "folded takes 21.3",
        "<h2>Times",
        "<h2>Latency distributions",
        "<h2>Time ratios",
        "<h2>Where the BatchNorms went",
        "<h2>Are the outputs equal?",
        "<h2>Environment",
        "<h2>How to reproduce",
    ]
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    assert "conv19 is also read by add3" in page
    assert 'name="viewport"' in page
    assert "@media print" in page
    assert "prefers-color-scheme:dark" in page


def test_huge_results_stay_small(result: dict[str, Any]) -> None:
    huge = copy.deepcopy(result)
    huge["fold"]["folded"] = [
        {"name": "n" * 300 + str(i), "into": ["m" * 300], "rule": "r"} for i in range(20_000)
    ]
    huge["rows"], huge["runtimes"] = [], []
    for i in range(100):
        for entry in result["rows"]:
            more = {"runtime": f"{entry['runtime']}{i}", "block_seconds": entry["block_seconds"] * 40}
            huge["rows"].append(entry | more)
        huge["runtimes"] += [
            control | {"runtime": f"{control['runtime']}{i}"} for control in result["runtimes"]
        ]
    assert len(html.render(huge).encode()) < 500_000
    assert len(markdown.render(huge).encode()) < 64_000
    assert "more" in html.render(huge)


def test_the_noise_floor_band_and_the_line_at_one_are_drawn(result: dict[str, Any]) -> None:
    page = html.render(result)
    assert page.count('class="band"') == 4  # two ratios, each drawn wide and narrow
    assert page.count('class="one"') == 2
    assert page.count("<svg") == page.count('role="img" aria-label=')


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


def test_invisible_characters_are_shown_and_long_text_is_cut() -> None:
    assert clean("a\u202eb\x07") == "a⟨U+202E⟩b⟨U+0007⟩"
    assert clean("x" * 500, 20) == f"{'x' * 10}…{'x' * 10}"
    assert len(clean("\x01" * 10_000)) < 300
    assert clean("é 日本 ok\n\tline") == "é 日本 ok line"


@pytest.fixture
def chromium() -> str:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed")
    return path


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_in_a_browser_from_a_file(
    result: dict[str, Any], chromium: str, tmp_path: Path, scheme: str
) -> None:
    page, shot = tmp_path / "report.html", tmp_path / "shot.png"
    page.write_text(
        html.render(hostile(result, HOSTILE[0]) if scheme == "dark" else result), encoding="utf-8"
    )
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1000,1400",
        f"--screenshot={shot}",
        page.as_uri(),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    image = pytest.importorskip("PIL.Image").open(shot).convert("L")
    shades = image.getcolors(256)
    assert len(shades) > 50  # text and lines, not one flat colour
    most = max(shades)[1]
    assert most > 200 if scheme == "light" else most < 60
