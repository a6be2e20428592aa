"""The notebooks of examples/ run from top to bottom, and what they show is what the repository holds."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOKS = sorted(Path(__file__).parents[2].joinpath("examples", "notebooks").glob("*.ipynb"))


def test_there_are_notebooks_and_they_were_executed() -> None:
    nbformat = pytest.importorskip("nbformat")
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        book = nbformat.read(path, as_version=4)
        nbformat.validate(book)
        code = [cell for cell in book.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        assert "Equal ✓" in str([cell.outputs for cell in code])
        assert "/work" not in path.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3", resources=resources).execute()
    shown = [out for cell in book.cells if cell.cell_type == "code" for out in cell.outputs]
    pages = [out["data"]["text/html"] for out in shown if "text/html" in out.get("data", {})]
    assert len(pages) == 3
    assert all('class="banner' in page for page in pages)
    assert any("passed - " in out.get("text", "") for out in shown)
