"""The HTML page: harmless, small, and as it looks in a browser, whose screenshots stay in ``build/``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support import bench_results
from support.bench_results import HOSTILE
from support.chromium import Page, find_chromium, open_browser
from support.plans import outcomes

from convbn.bench.report import html, markdown, terminal
from convbn.bench.results.read import read_result
from convbn.commands.many.reports import document
from convbn.common.document.html import rendered

TABLE = Path(__file__).parents[2] / "docs" / "bench" / "table.json"
SHOTS = Path(__file__).parents[2] / "build" / "screenshots"
Made = Callable[[], dict[str, Any]]

#: Text whose contrast with what is behind it is too low (WCAG 2.2, success criterion 1.4.3).
LOW_CONTRAST = """
(() => {
  const parse = text => { const n = text.match(/[\\d.]+/g).map(Number);
    return text.startsWith('color(srgb') ? [n[0]*255, n[1]*255, n[2]*255, n[3] ?? 1] : [n[0], n[1], n[2], n[3] ?? 1]; };
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => { v /= 255;
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126*r + 0.7152*g + 0.0722*b; };
  const behind = element => { const stack = [];
    for (let e = element; e; e = e.parentElement) stack.push(parse(getComputedStyle(e).backgroundColor));
    return stack.reverse().reduce((under, over) => under.map((v, i) => v * (1 - over[3]) + over[i] * over[3]),
      [255, 255, 255]); };
  const bad = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement, style = getComputedStyle(element);
    if (!walk.currentNode.textContent.trim() || element.tagName == 'title') continue;
    const a = light(parse(element.closest('svg') ? style.fill : style.color)), b = light(behind(element));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const large = parseFloat(style.fontSize) >= 24;
    if (ratio < (large ? 3 : 4.5)) bad.push(walk.currentNode.textContent.slice(0, 40) + ' ' + ratio.toFixed(2));
  }
  return bad;
})()
"""
#: Elements that stick out of the window, and are not inside a box that scrolls.
OVERFLOW = """
[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll') && !e.closest('svg')
  && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.tagName + '.' + e.className)
"""
#: Tables that have to be scrolled sideways to be read.
SCROLLS = """
[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent)
"""


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in {"meta", "br", "line", "rect", "path", "circle"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"line", "rect", "path", "circle"} or self.open[-1] == tag:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def parsed(page: str) -> _Tags:
    parser = _Tags()
    parser.feed(page)
    parser.close()
    return parser


@pytest.mark.parametrize("made", [bench_results.one, bench_results.many])
@pytest.mark.parametrize("name", HOSTILE)
def test_html_survives_hostile_names(made: Made, name: str) -> None:
    page = html.render(bench_results.hostile(made(), name), bench_results.gates(name))
    found = parsed(page)
    assert found.open == []
    assert not {"script", "img", "iframe", "link", "a", "object", "form"} & set(found.tags)
    assert not [key for key, _ in found.attributes if key.startswith("on") or key in {"src", "href"}]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page)
    assert len(page.encode()) < html.MOST_BYTES


def test_the_verdict_comes_first_and_sections_follow_in_order() -> None:
    page = html.render(bench_results.one(), [bench_results.gate("failed")])
    order = [
        'class="banner failed"',
        "<h2>Gates",
        "folded takes 21.3",
        "<h2>Times and time ratios",
        "<h2>Latency distributions",
        "<h2>Where the BatchNorms went",
        "<h2>Are the outputs equal?",
        "<h2>Layer by layer",
        "<h2>All numbers",
        "<h2>Environment",
        "<h2>How to reproduce",
        "Raw result",
    ]
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    assert "layer4.0.conv2 is also read by add3" in page


def test_twelve_models_fit_and_each_has_its_layers() -> None:
    result = bench_results.many()
    page = html.render(result)
    assert len(page.encode()) < html.MOST_BYTES
    assert page.count('<details class="model">') == 12
    assert page.count('class="group"') == 2
    assert page.count('class="total"') == 2
    layers = page[page.index("<strong>repvgg_a0</strong>") :]
    assert "block0.conv</code>" in layers
    assert "parallel-convs" in layers


def test_a_layer_shows_every_batchnorm_it_took_in() -> None:
    result = bench_results.one()
    fold = result["cases"][0]["fold"]
    fold["folded"] = [{"name": name, "into": ["conv"], "rule": "r"} for name in ("bn-a", "bn-b")]
    row = re.search(
        r'<tr><th scope="row" class="name"><code class="chip layer">conv.*?</tr>', html.render(result)
    )
    assert row is not None
    assert "bn-a" in row[0]
    assert "bn-b" in row[0]


def test_agreement_is_shown_where_digits_were_given_up() -> None:
    result = bench_results.one()
    assert "same top-1" not in html.render(result)
    output = result["cases"][0]["rows"][1]["equality"]["outputs"][0]
    output |= {"cosine": 0.99998, "top1_agreement": 0.985}
    page = html.render(result).replace("\u00a0", " ")
    assert "0.999980" in page
    assert "98.5 %" in page
    assert page.count(">same top-1<") == 1


def test_what_int8_costs_is_drawn_layer_by_layer() -> None:
    result = bench_results.one()
    heading = "What int8 costs, layer by layer"
    assert heading not in html.render(result) + markdown.render(result) + terminal.render(result)
    sides = result["cases"][0]["sides"]
    for side in sides:  # a side that was folded bears the same record
        side["sensitivity"] = bench_results.losses()
    page = html.render(result).replace("\u00a0", " ")
    assert page.count(heading) == 1
    bars = re.findall(
        r'<svg class="shares" role="img" aria-label="([^"]*)"[^>]*><rect class="f0" width="([^"]*)"', page
    )
    drawn = dict(bars)
    assert drawn["head (Gemm): infinite"] == "100.00%"
    assert drawn["layer0.conv (Conv): 0.08"] == "100.00%"
    assert drawn["layer1.conv (Conv): 0.04"] == "50.00%"
    assert "All 3 layers" in page
    for text in (markdown.render(result), terminal.render(result)):
        assert "layer1.conv (Conv) 0.04" in text
    sides[1]["sensitivity"] = bench_results.losses(90)
    page = html.render(result)
    assert "<figcaption>resnet18, original</figcaption>" in page
    assert "<figcaption>resnet18, folded</figcaption>" in page
    assert "layer88.conv" in page


def test_a_gpu_that_was_throttled_is_named() -> None:
    result = bench_results.one()
    reading = {
        "sm_clock_mhz": 1980,
        "memory_clock_mhz": None,
        "temperature_celsius": 61,
        "power_watts": 312.5,
        "throttle_reasons": [],
    }
    after = reading | {"sm_clock_mhz": 1410, "throttle_reasons": ["sw power cap"]}
    gpu = {"device": "NVIDIA H100", "mode": "graph", "l2": "flushed", "before": reading, "after": after}
    result["cases"][0]["rows"][1]["gpu"] = gpu
    result["cases"][0]["rows"][2]["gpu"] = gpu | {"before": None, "after": None, "tf32": True}
    page = html.render(result)
    assert "NVIDIA H100, graph, L2 flushed; before 1980 MHz, 61 °C, 312.5 W; after 1410 MHz" in page
    assert "throttled: sw power cap" in page
    assert "NVIDIA H100, graph, L2 flushed; TF32." in page


def test_a_grid_names_its_conditions() -> None:
    result = bench_results.one()
    case = result["cases"][0]
    result["cases"] = [
        case | {"id": f"resnet18-{precision}-b{batch}", "batch": batch, "precision": precision}
        for batch in (1, 8)
        for precision in ("fp32", "fp16")
    ]
    page = html.render(result)
    assert "resnet18 · batch 8 · fp16" in page
    assert page.count('class="bar-row"') == 5  # one model, folded once: its four stages and the whole
    assert "19 of 20 BatchNorms folded" in page


def test_no_difference_is_told_by_more_than_colour() -> None:
    page = html.render(bench_results.one())
    assert page.count('class="same"') == 1
    assert page.count('class="good"') == 1
    assert "● same" in page
    assert "▼ faster" in page


def test_the_noise_floor_and_the_line_at_one_are_drawn() -> None:
    page = html.render(bench_results.one())
    assert page.count('class="band"') == 2
    assert page.count('class="one"') == 2
    for drawing in re.findall(r"<svg class=[^>]*>", page):
        assert 'role="img" aria-label=' in drawing or "aria-hidden" in drawing


def test_every_table_has_headings() -> None:
    for page in (html.render(bench_results.one()), html.render(bench_results.many())):
        for table in re.findall(r"<table.*?</table>", page, flags=re.DOTALL):
            assert '<th scope="col"' in table
            assert 'scope="row"' in table
        levels = [int(level) for level in re.findall(r"<h([1-6])", page)]
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium is installed")
    with open_browser(path, tmp_path_factory.mktemp("profile")) as page:
        yield page


def hostile_many() -> dict[str, Any]:
    return bench_results.hostile(bench_results.many(), "<script>document.title='gone'</script>" + "W" * 200)


@pytest.mark.browser
@pytest.mark.parametrize(
    ("made", "width", "scheme"),
    [
        (bench_results.one, 360, "dark"),
        (bench_results.one, 1180, "light"),
        (bench_results.many, 360, "light"),
        (bench_results.many, 400, "dark"),
        (bench_results.many, 768, "dark"),
        (bench_results.many, 1180, "light"),
        (bench_results.many, 1400, "dark"),
        (hostile_many, 360, "light"),
        (hostile_many, 900, "dark"),
    ],
)
def test_the_page_in_a_browser(browser: Page, tmp_path: Path, made: Made, width: int, scheme: str) -> None:
    page = tmp_path / "report.html"
    page.write_text(html.render(made(), bench_results.gates("a")), encoding="utf-8")
    browser.show(page, width=width, scheme=scheme)
    SHOTS.mkdir(parents=True, exist_ok=True)
    browser.screenshot(SHOTS / f"report-{made.__name__}-{width}-{scheme}.png")
    browser.ask("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert browser.ask("document.documentElement.scrollWidth") == width
    assert browser.ask(OVERFLOW) == []
    if made is not hostile_many:
        assert browser.ask(SCROLLS) == []
    assert browser.ask(LOW_CONTRAST) == []
    assert browser.requests == [page.as_uri()]
    assert browser.ask("document.title") != "gone"
    background = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", background)[0]) < 60) is (scheme == "dark")


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1180, "light")])
def test_the_page_of_the_measured_table_in_a_browser(
    browser: Page, tmp_path: Path, width: int, scheme: str
) -> None:
    text = html.render(read_result(TABLE))
    assert len(text.encode()) < 500_000
    page = tmp_path / "report.html"
    page.write_text(text, encoding="utf-8")
    browser.show(page, width=width, scheme=scheme)
    SHOTS.mkdir(parents=True, exist_ok=True)
    browser.screenshot(SHOTS / f"report-table-{width}-{scheme}.png")
    browser.ask("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert browser.ask("document.documentElement.scrollWidth") == width
    assert browser.ask(OVERFLOW) == []
    assert browser.ask(SCROLLS) == []
    assert browser.ask(LOW_CONTRAST) == []
    assert browser.requests == [page.as_uri()]


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_of_a_run_in_a_browser(browser: Page, tmp_path: Path, width: int, scheme: str) -> None:
    page = tmp_path / "run.html"
    page.write_text(
        rendered(document("run fleet", 93.2, outcomes(tmp_path, 8), str(tmp_path))), encoding="utf-8"
    )
    browser.show(page, width=width, scheme=scheme)
    SHOTS.mkdir(parents=True, exist_ok=True)
    browser.screenshot(SHOTS / f"run-{width}-{scheme}.png")
    assert browser.ask("document.documentElement.scrollWidth") == width
    assert browser.ask(OVERFLOW) == []
    assert browser.ask(SCROLLS) == []
    assert browser.ask(LOW_CONTRAST) == []


@pytest.mark.browser
@pytest.mark.parametrize(("made", "most"), [(bench_results.one, 8), (bench_results.many, 40)])
def test_the_page_prints_with_all_that_is_closed(
    browser: Page, tmp_path: Path, made: Made, most: int
) -> None:
    page = tmp_path / "report.html"
    page.write_text(html.render(made()), encoding="utf-8")
    browser.show(page, width=1180, scheme="dark", media="print")
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.ask(LOW_CONTRAST) == []
    SHOTS.mkdir(parents=True, exist_ok=True)
    printed = SHOTS / f"report-{made.__name__}.pdf"
    browser.pdf(printed)
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", printed.read_bytes())) <= most
    hidden = "[...document.querySelectorAll('details:not(.raw) th')].filter(e => !e.getClientRects().length).length"
    assert browser.ask(hidden) == 0
    broken = (
        "[...document.querySelectorAll('td.num')].filter(e => e.getClientRects().length > 1 || "
        "getComputedStyle(e).whiteSpace != 'nowrap').length"
    )
    assert browser.ask(broken) == 0
