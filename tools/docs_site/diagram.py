"""The Mermaid diagram of docs/architecture.md as a picture: ``diagram.py MERMAID_JS`` (``make diagram``).

GitHub draws the text itself; the site cannot without fetching three megabytes of script, so it shows the picture, which
bears the hash of the text that it was drawn from.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
PICTURE = ROOT / "docs" / "img" / "architecture.svg"
_BLOCK = re.compile(r"```mermaid\n(.*?)```", re.DOTALL)
_DRAWN = """<!doctype html><meta charset="utf-8"><body><script src="{script}"></script><script>
mermaid.initialize({{startOnLoad: false, theme: "neutral", htmlLabels: false, fontFamily: "sans-serif"}});
mermaid.render("diagram", {text}).then(drawn => {{
  document.body.innerHTML = "<pre></pre>"; document.querySelector("pre").textContent = drawn.svg; }});
</script>"""


def as_picture(page: str) -> str:
    """The page with the picture in the place of the diagram's text.

    Raises:
        SystemExit: The picture was drawn from another text.
    """
    text = _BLOCK.search(page)
    assert text is not None, "docs/architecture.md has no diagram"
    if _stamp(text[1]) not in PICTURE.read_text(encoding="utf-8"):
        raise SystemExit(f"{PICTURE} was drawn from another text; `make diagram` draws it again")
    return _BLOCK.sub("![All packages and the way of the data](img/architecture.svg)", page, count=1)


def draw(script: Path) -> None:
    """Draw the picture with Mermaid's own script in a headless Chromium."""
    sys.path.append(str(ROOT / "tests"))
    from support.chromium import find_chromium

    chromium = find_chromium()
    if chromium is None:
        raise SystemExit("no Chromium is installed; apt-get install chromium")
    text = _BLOCK.search(PAGE.read_text(encoding="utf-8"))
    assert text is not None, "docs/architecture.md has no diagram"
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(
            _DRAWN.format(script=script.resolve().as_uri(), text=json.dumps(text[1])), encoding="utf-8"
        )
        options = [
            "--headless",
            "--no-sandbox",
            "--allow-file-access-from-files",
            "--virtual-time-budget=20000",
        ]
        shown = subprocess.run(
            [chromium, *options, "--dump-dom", page.as_uri()], check=True, capture_output=True, text=True
        ).stdout
    drawn = re.search(r"<pre>(.*?)</pre>", shown, re.DOTALL)
    if drawn is None:
        raise SystemExit(f"Mermaid drew nothing: {shown[-300:]}")
    PICTURE.write_text(f"{html.unescape(drawn[1])}\n<!-- {_stamp(text[1])} -->\n", encoding="utf-8")


def _stamp(text: str) -> str:
    return "drawn from " + hashlib.sha256(text.encode()).hexdigest()[:16]


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
