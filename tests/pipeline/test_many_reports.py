"""The document of a run: failures first, proof and ratios in each model's row, links to the models' own pages."""

from __future__ import annotations

from pathlib import Path

from convbn.commands.many.reports import document
from convbn.common.document import html, markdown, terminal
from convbn.pipeline.outcome import Outcome, Output


def outcomes(folder: Path, count: int = 2) -> list[Outcome]:
    """A model that failed, and others that were measured."""
    ratio = {"median": 0.8754, "low": 0.87, "high": 0.88}
    rows = [{"side": "folded", "ratio": ratio}, {"side": "fused by runtime", "ratio": {"median": 0.5}}]
    found = []
    for number in range(count):
        name = f"net{number}"
        fold = {"batchnorm": {"before": 3, "after": 0}, "bytes": 10}
        page = (Output(str(folder / "deep" / f"{name}.bench.html"), 10),)
        found += [
            Outcome(f"{name}/fold", "fold", name, "done", 1.0, fold),
            Outcome(f"{name}/prove", "prove", name, "done", 1.0, {"error": 1e-7, "noise": 2e-7}),
            Outcome(f"{name}/measure", "measure", name, "done", 1.0, {"rows": rows}, outputs=page),
        ]
    return [*found, Outcome("bad/fold", "fold", "bad", "failed", 0.1, None, "bad.onnx: is <no> model", 3)]


def test_ratios_and_links(tmp_path: Path) -> None:
    page = html.rendered(document("run plan", 3.0, outcomes(tmp_path), tmp_path))
    assert '<a href="deep/net0.bench.html">net0</a>' in page
    assert "0.875" in page
    assert "0.500" not in page, "a runtime's own fusion is not convbn's"
    assert page.index("bad.onnx: is &lt;no&gt; model") < page.index("net0")
    text = terminal.rendered(document("run plan", 3.0, outcomes(tmp_path)))
    assert "folded / original" in text
    assert "href" not in markdown.rendered(document("run plan", 3.0, outcomes(tmp_path), tmp_path))


def test_no_column_of_ratios_where_nothing_was_measured(tmp_path: Path) -> None:
    folded = [outcome for outcome in outcomes(tmp_path) if outcome.kind == "fold"]
    assert "folded / original" not in terminal.rendered(document("fuse models", 3.0, folded))


def test_five_hundred_models_fit_a_page_of_two_megabytes(tmp_path: Path) -> None:
    page = html.rendered(document("run plan", 3.0, outcomes(tmp_path, 500), tmp_path), 2_000_000)
    assert len(page.encode()) < 2_000_000
    assert "net499" in page
    assert "<script" not in page
