"""Builds the site: ``build.py OUT`` (``make docs``). Whatever MkDocs warns of is an error.

The pages are the repository's own Markdown files at the places where they are, so that a link works on the site as it
works in the repository. Nothing is fetched, neither by the build nor by a page.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from docs_site import diagram, gallery, reference

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "mkdocs.yml"
# What is no page and yet linked from one: shown or downloaded as it is.
LINKED = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
# The search of a site that is opened from a folder needs this script, which Material would load from a CDN.
SHIM = "https://unpkg.com/iframe-worker/shim"
# A page must not load anything from elsewhere; a link that a reader may follow is another matter.
FETCHED = re.compile(
    r"<(?:script|img|iframe|source)[^>]+src=[\"']?https?:|<link[^>]+stylesheet[^>]+https?:|@import[^;]+https?:"
)


def stage(folder: Path) -> None:
    """Copy every tracked Markdown file, and each file that one of them links to, to its own place under ``folder``."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    tracked = listed.stdout.splitlines()
    wanted = {name for name in tracked if name.endswith(".md") and not name.startswith("tests/")}
    pictures = {name for name in tracked if name.startswith("docs/img/")}
    for page in sorted(wanted):
        for target in LINKED.findall((ROOT / page).read_text(encoding="utf-8")):
            linked = os.path.normpath(Path(page).parent / target)
            if linked in tracked:
                pictures.add(linked)
    for name in wanted | pictures | {"docs/img/architecture.svg"}:
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy)
    architecture = folder / "docs" / "architecture.md"
    architecture.write_text(diagram.as_picture(architecture.read_text(encoding="utf-8")), encoding="utf-8")


def main(out: Path) -> None:
    """Stage the pages, write those that are generated, run MkDocs strictly and look for what a page would fetch."""
    source = out.parent / f"{out.name}-source"
    shutil.rmtree(source, ignore_errors=True)
    stage(source)
    reference.write(source / "reference")
    gallery.write(source / "gallery")
    environment = {**os.environ, "SITE_SOURCE": str(source.resolve()), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--clean"]
    done = subprocess.run(
        [*command, "--config-file", str(CONFIG), "--site-dir", str(out.resolve())], cwd=ROOT, env=environment
    )
    if done.returncode:
        raise SystemExit("the site was not built: see what MkDocs says above")
    shutil.copyfile(Path(__file__).with_name("iframe-worker.js"), out / "assets" / "iframe-worker.js")
    for page in out.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        above = os.path.relpath(out / "assets" / "iframe-worker.js", page.parent)
        if SHIM in text:
            page.write_text(text.replace(SHIM, above), encoding="utf-8")
    fetching = [
        page for page in sorted(out.rglob("*.html")) if FETCHED.search(page.read_text(encoding="utf-8"))
    ]
    if fetching:
        raise SystemExit("these pages would fetch something: " + ", ".join(map(str, fetching)))
    pages = len(list(out.rglob("*.html")))
    print(f"{out}/index.html: {pages} pages")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
