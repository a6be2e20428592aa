"""On networks that were really trained, folded fp16 and int8 lose at most half a point of accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture
def precisions(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    pytest.importorskip("sklearn")
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import precisions  # type: ignore[import-not-found]  # an example, not a package

    threads = torch.get_num_threads()
    yield precisions
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["ResNet", "MobileNetV2", "VGG"])
def test_half_a_point(precisions: Any, network: str) -> None:
    wanted = ("fp32", "fp16", "int8", "onnxruntime, defaults")
    rows = {row.precision: row for row in precisions.measure(wanted, network)}
    assert rows["fp32"].folded > 92
    for precision in wanted[:3]:
        row = rows[precision]
        assert abs(row.lost) <= precisions.MOST_LOST, row
        assert abs(row.original - row.folded) <= precisions.MOST_LOST, row
        assert row.same_class >= 99, row
    errors = {precision: row.rms_error for precision, row in rows.items()}
    assert 0 == errors["fp32"] < errors["fp16"] < errors["int8"] < errors["onnxruntime, defaults"] < 0.1


def test_the_table_goes_between_its_marks(
    precisions: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{precisions.START}\nstale\n{precisions.END}\nafter\n")
    monkeypatch.setattr("sys.argv", ["precisions.py", str(page)])
    good, bad = (precisions.Row("int8", 98.0, 98.0, lost, 0.01, 99.0) for lost in (0.4, 0.6))
    for row, code in ((good, 0), (bad, 1)):
        monkeypatch.setattr(precisions, "measure", lambda names, network, row=row: [row])
        assert precisions.main() == code
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("-->\nafter\n")
    assert "stale" not in text
    assert "| int8 | 98.00 % | 98.00 % | 0.60 |" in text
