"""The document of a run: failures first, proof and ratios in each model's row, links to the models' own pages."""

from __future__ import annotations

import re
from pathlib import Path

from support.plans import outcomes

from convbn.commands.many.reports import document, pages
from convbn.common.document import html, markdown, terminal


def test_ratios_and_links(tmp_path: Path) -> None:
    page = html.rendered(document("run plan", 3.0, outcomes(tmp_path), tmp_path))
    assert '<a href="deep/net0.bench.html">net0</a>' in page
    assert "0.875" in page
    assert page.count('<span class="tag good">equal ✓</span>') == 2
    assert "0.500" not in page, "a runtime's own fusion is not convbn's"
    assert page.index("bad.onnx: is &lt;no&gt; model") < page.index("net0")
    text = terminal.rendered(document("run plan", 3.0, outcomes(tmp_path)))
    assert "folded / original" in text
    assert "href" not in markdown.rendered(document("run plan", 3.0, outcomes(tmp_path), tmp_path))


def test_no_column_of_ratios_where_nothing_was_measured(tmp_path: Path) -> None:
    folded = [outcome for outcome in outcomes(tmp_path) if outcome.kind == "fold"]
    assert "folded / original" not in terminal.rendered(document("fuse models", 3.0, folded))


def test_more_models_take_more_pages(tmp_path: Path) -> None:
    whole = document("run plan", 3.0, outcomes(tmp_path, 1100), tmp_path)
    found = {
        Path(place).name: html.rendered(page, 2_000_000)
        for place, page in pages(whole, f"{tmp_path}/run.html")
    }
    assert list(found) == ["run.html", "run-2.html", "run-3.html"]
    rows = [re.findall(r'<th scope="row"[^>]*>(?:<a [^>]*>)?([^<]+)', page) for page in found.values()]
    assert [len(of) for of in rows] == [500, 500, 101]
    assert rows[0][0] == "bad"
    assert found["run-2.html"].count("is &lt;no&gt; model") == 0, "failures are told once"
    for name, page in found.items():
        assert "1 failed" in page
        linked = set(re.findall(r'<a href="(run[^"]*)"', page))
        assert linked == set(found) - {name}
    (alone,) = pages(document("run plan", 3.0, outcomes(tmp_path), tmp_path), "s3://kept/run.html")
    assert alone[0] == "s3://kept/run.html"
    assert "Pages:" not in html.rendered(alone[1])


def test_five_hundred_models_fit_a_page_of_two_megabytes(tmp_path: Path) -> None:
    page = html.rendered(document("run plan", 3.0, outcomes(tmp_path, 500), tmp_path), 2_000_000)
    assert len(page.encode()) < 2_000_000
    assert "net499" in page
    assert "<script" not in page
