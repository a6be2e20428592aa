"""The result as one page: no script, no request to anywhere, everything escaped, under 500 kB."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from convbn.bench.report import sections
from convbn.bench.report.facts import clean, title_of
from convbn.bench.report.style import CSS

__all__ = ["render"]

MOST_BYTES = 500_000
_MOST_RAW_BYTES = 150_000
#: Nothing is loaded and nothing runs, whatever a browser makes of the page.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
#: Longest lists and tables tried, until the page fits.
_LIMITS = (300, 60, 12)


def render(result: Mapping[str, Any]) -> str:
    """Lay the result out as one self-contained HTML page.

    Args:
        result: by the published schema (``BenchResult.to_dict()``).

    Returns:
        HTML under 500 kB that opens from a file, prints, and reads on a phone, in light and dark.
    """
    for limit in _LIMITS:
        page = _page(result, limit)
        if len(page.encode()) < MOST_BYTES:
            break
    return page


def _page(result: Mapping[str, Any], limit: int) -> str:
    title = escape(title_of(result))
    cpu = escape(clean(result["environment"]["cpu"] or "unknown CPU"))
    created = escape(clean(result["created"]).replace("T", " ").replace("+00:00", " UTC"))
    body = "".join(
        (
            sections.verdicts(result, limit),
            sections.facts(result, limit),
            sections.table(result, limit),
            sections.latencies(result, limit),
            sections.ratios(result, limit),
            sections.batchnorms(result, limit),
            sections.equality(result, limit),
            sections.environment(result, limit),
            sections.reproduce(result, limit),
            _raw(result),
        )
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="generator" content="convbn"><title>{title}</title><style>{CSS}</style></head>'
        f'<body><main><header><p class="brand">convbn · benchmark</p><h1>{title}</h1>'
        f"<p>{created} · {cpu} · measured in {result['seconds']:.0f} s</p></header>"
        f"{body}<footer>Made by convbn. Times are per inference; outputs were compared before anything was "
        "timed; no samples were left out.</footer></main></body></html>\n"
    )


def _raw(result: Mapping[str, Any]) -> str:
    text = json.dumps(result, ensure_ascii=True, separators=(",", ":"))
    if len(text) > _MOST_RAW_BYTES:
        return ""
    return (
        '<details class="raw"><summary>Raw result (JSON)</summary>'
        f'<pre tabindex="0">{escape(text)}</pre></details>'
    )
