"""The picture of a report for the README, in light and dark: ``report_picture.py RESULT.json OUT.png``.

Writes ``OUT.png`` and ``OUT-dark.png``: the top of the page, in few colours so that they stay small.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from support.chromium import find_chromium, open_browser

from convbn.bench.report import html
from convbn.bench.results.read import read_result

WIDTH, TALLEST = 1100, 3000
MOST_BYTES = 300_000


def main(source: str, target: str) -> None:
    """Draw both pictures."""
    chromium = find_chromium()
    if chromium is None:
        raise SystemExit("no Chromium is installed; apt-get install chromium")
    out = Path(target)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, open_browser(chromium, Path(folder) / "profile") as browser:
        page = Path(folder) / "report.html"
        page.write_text(html.render(read_result(source)), encoding="utf-8")
        for scheme, name in (("light", out), ("dark", out.with_stem(f"{out.stem}-dark"))):
            browser.show(page, width=WIDTH, scheme=scheme)
            # Down to the end of the last table or section that fits.
            bottoms = browser.ask(
                "[...document.querySelectorAll('section, .results tbody')].map(e => e.getBoundingClientRect().bottom)"
            )
            height = max([y for y in bottoms if y < TALLEST], default=TALLEST)
            browser.screenshot(name)
            image = Image.open(name).convert("RGB").crop((0, 0, WIDTH, int(height) + 2))
            image.quantize(64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
                name, optimize=True
            )
            size = name.stat().st_size
            print(f"{name}: {size:,} bytes")
            if size > MOST_BYTES:
                raise SystemExit(f"{name} is larger than {MOST_BYTES:,} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
