"""The result as one page: no script, no request to anywhere, everything escaped, under 500 kB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convbn.bench.report.document import document
from convbn.common.document import html
from convbn.common.document.html import MOST_BYTES

__all__ = ["MOST_BYTES", "render"]


def render(result: Mapping[str, Any], gates: Sequence[Mapping[str, Any]] = ()) -> str:
    """Lay the result out as one self-contained HTML page; arguments as for :func:`document`."""
    return html.rendered(document(result, gates))
