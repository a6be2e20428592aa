"""The gallery: pages that convbn itself writes, from the results stored in ``docs/bench``."""

from __future__ import annotations

from pathlib import Path

from convbn.bench.report import html
from convbn.bench.report.facts import title_of
from convbn.bench.results.read import read_result

__all__ = ["write"]

_RESULTS = Path(__file__).resolve().parents[2] / "docs" / "bench"


def write(folder: Path) -> None:
    """Render every stored result into ``folder``, with a page that links to them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Gallery of reports",
        "",
        "What `convbn bench --html` writes: one file each, without scripts, that opens offline. These are the results",
        "that the documents quote.",
        "",
    ]
    for path in sorted(_RESULTS.glob("*.json")):
        result = read_result(str(path))
        (folder / f"{path.stem}.html").write_text(html.render(result), encoding="utf-8")
        lines.append(
            f"* [{title_of(result)}]({path.stem}.html), from [`{path.name}`](../docs/bench/{path.name})"
        )
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
