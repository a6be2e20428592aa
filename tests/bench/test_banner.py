"""The line that opens every report, verdicts in a word, and what a mean does not say."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support import bench_results

from convbn.bench.report import facts, html, markdown, terminal
from convbn.bench.report.sections.banner import banner
from convbn.bench.results.comparisons import summaries
from convbn.common.document.model import Column, Mark, Row, Table, Text, plain
from convbn.common.document.terminal import laid_out
from convbn.fuse.summary import fold_banner


def words(result: dict[str, Any], gates: list[dict[str, Any]] | None = None) -> list[str]:
    return [plain(part) for part in banner(result, gates or []).parts]


def with_reference() -> dict[str, Any]:
    result = bench_results.one()
    rows = result["cases"][0]["rows"]
    rows.insert(2, bench_results.row("onnxruntime-cpu@off", "fused by runtime", "faster", (0.24, 0.25, 0.26)))
    result["cases"][0]["sides"].append(result["cases"][0]["sides"][0] | {"name": "fused by runtime"})
    return result


def test_the_banner_says_equal_how_many_how_fast_and_whether_gates_hold() -> None:
    gates = [bench_results.gate("passed"), bench_results.gate("passed", "a"), bench_results.gate("passed")]
    assert words(with_reference(), gates) == [
        "Equal ✓ (all outputs in 2 comparisons, relative error at most 2.5e-07)",
        "19 of 20 folded",
        "folded 1.27 × as fast in onnxruntime-cpu@off",
        "same in eager PyTorch",
        "gates 2 of 2",
    ]


def test_each_speed_has_its_own_colour_and_none_that_is_slower_is_left_out() -> None:
    result = with_reference()
    marks = {part.text: part.kind for part in banner(result).parts}
    assert marks["folded 1.27 × as fast in onnxruntime-cpu@off"] == "good"
    assert marks["same in eager PyTorch"] == "soft"
    case, names = result["cases"][0], [f"onnxruntime-cpu@{level}" for level in ("a", "b", "c")]
    for name, verdict, interval in [
        *((name, "faster", (0.7, 0.8, 0.9)) for name in names),
        ("openvino-cpu", "slower", (1.1, 1.25, 1.3)),
    ]:
        case["rows"] += [
            bench_results.row(name, "original", "baseline"),
            bench_results.row(name, "folded", verdict, interval),
        ]
        case["runtimes"].append(case["runtimes"][0] | {"runtime": name})
    told = [(part.text, part.kind) for part in banner(result).parts if part.kind != "strong"]
    assert ("folded 0.80 × as fast in openvino-cpu", "bad") in told
    assert told[-1] == ("and 3 more", "soft")
    assert len([kind for text, kind in told if "as fast" in text]) == 2


def test_what_a_runtime_fuses_by_itself_is_a_reference_and_no_headline() -> None:
    result = with_reference()
    assert not any("4.00" in part for part in words(result))
    assert banner(result).reference == (
        "For reference, what runtimes fuse by themselves: 4.00 × in onnxruntime-cpu@off"
    )
    page = html.render(result)
    card = page[page.index('class="card verdict reference"') :]
    assert "onnxruntime-cpu@off · fused by runtime" in card[:200]
    assert page.count('class="card verdict faster"') == 1


@pytest.mark.parametrize("render", [html.render, markdown.render, terminal.render])
def test_every_report_opens_with_it(render: Any) -> None:
    text = " ".join(re.sub(r"<style.*?</style>|<[^>]*>", "", render(bench_results.one())).split())
    first, table = text.index("Equal ✓"), text.index("Times and time ratios")
    assert first < text.index("19 of 20 folded") < text.index("1.27 × as fast") < table


def test_a_failed_gate_opens_the_page_in_red() -> None:
    gates = [bench_results.gate("failed"), bench_results.gate("passed", "b")]
    assert words(bench_results.one(), gates)[-1] == "✗ gates 1 of 2: 1 failed, 1 held"
    page = html.render(bench_results.one(), gates)
    assert page.index('class="banner failed"') < page.index("<h2>Gates") < page.index('class="verdicts"')
    assert 'class="banner failed"' not in html.render(bench_results.one())


def test_different_outputs_are_the_headline() -> None:
    result = bench_results.one()
    result["cases"][0]["rows"][1]["equality"] = bench_results.equality(status="different")
    assert words(result)[0] == "✗ 1 of 2 comparisons different"
    assert banner(result).kind == "failed"


def test_a_fold_has_a_banner_too() -> None:
    report = bench_results.fold() | {
        "verify": bench_results.equality() | {"proof": {"folds": [{"how": "float64"}]}}
    }
    assert [plain(part) for part in fold_banner(report).parts] == [
        "Equal ✓ (1 of 1 fold and all outputs, relative error at most 2.5e-07)",
        "19 of 20 folded",
    ]


@pytest.mark.parametrize(
    ("interval", "noise", "said"),
    [
        ((0.98, 0.99, 1.01), 0.012, "same"),
        ((0.98, 0.99, 1.01), 0.186, "not proven (noise ± 18.6 %)"),
        ((1.004, 1.006, 1.008), 0.012, "not proven (noise ± 1.2 %)"),
        ((0.8, 0.95, 1.1), 0.012, "not proven (noise ± 20.0 %)"),
    ],
)
def test_a_verdict_that_is_none_says_why(
    interval: tuple[float, float, float], noise: float, said: str
) -> None:
    assert facts.verdict_words("no difference detected", bench_results.ratio(*interval), noise) == said


def test_a_mean_names_its_spread_and_what_it_rests_on() -> None:
    result = bench_results.many()
    for case, median in zip(result["cases"], [0.18, *[0.97] * 11], strict=True):
        case["rows"][1]["ratio"] = bench_results.ratio(median * 0.99, median, median * 1.01)
    summary = summaries(result)[0]
    assert summary.middle == pytest.approx(0.97)
    assert summary.rests_on == ("resnet18", pytest.approx(0.97))
    told = facts.summary_sentence(summary)
    assert "Median 0.970, range 0.180 (resnet18) to 0.970" in told
    assert "The mean rests on resnet18: without it, it is 0.970." in told
    assert summaries(bench_results.many())[0].rests_on is None


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("made", [bench_results.one, bench_results.many])
def test_no_line_is_wider_than_the_terminal(made: Any, width: int) -> None:
    gates = [bench_results.gate("failed"), bench_results.gate("passed", "b")]
    for result in (made(), bench_results.hostile(made(), "W" * 300)):
        assert max(map(len, terminal.render(result, gates, width=width).splitlines())) <= width


def test_colour_is_only_there_when_wanted() -> None:
    plain_text = terminal.render(bench_results.one(), width=80)
    coloured = terminal.render(bench_results.one(), width=80, colour=True)
    assert "\x1b[32m" in coloured
    assert re.sub(r"\x1b\[\d+m", "", coloured) == plain_text


def test_no_line_ends_within_a_number_and_narrow_verdicts_lose_what_is_in_brackets() -> None:
    told = Text(
        "the baseline measured against itself is off by as much: the noise is ± 118.9 % and 1.27 × in 20.5 ms."
    )
    for width in range(40, 110):
        for line in laid_out([told], width=width):
            assert not line.endswith(("±", "118.9", "1.27", "20.5"))
    columns = (Column("side"), Column("time", "num"), Column("result", "result"))
    row = Row(("a side of a long name", "21.24 ms", Mark("○ not proven (noise ± 137.2 %)", "soft")))
    assert laid_out([Table("t", columns, [row])], width=40)[-1].endswith("21.24 ms  ○ not proven")
    assert laid_out([Table("t", columns, [row])], width=80)[-1].endswith("± 137.2 %)")
    result = bench_results.one()
    result["cases"][0]["rows"][3] |= {"ratio": bench_results.ratio(0.8, 0.99, 1.2)}
    page = html.render(result)
    opening = page[page.index('<div class="banner') :].partition("</div>")[0]
    assert "± 20.0 %)".replace(" ", "\u00a0") in opening
