"""The result as GitHub Markdown: for a pull request comment (under 64 kB) or a step summary (under 1 MiB)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convbn.bench.report.document import document
from convbn.common.document import markdown
from convbn.common.document.markdown import COMMENT_BYTES

__all__ = ["COMMENT_BYTES", "render"]


def render(
    result: Mapping[str, Any],
    gates: Sequence[Mapping[str, Any]] = (),
    *,
    most_bytes: int = COMMENT_BYTES,
) -> str:
    """Lay the result out as Markdown of so many bytes; arguments as for :func:`document`."""
    return markdown.rendered(document(result, gates), most_bytes=most_bytes)
