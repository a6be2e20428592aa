"""The last sections of the page: environment, how to measure again, the result as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from convbn.bench.report.facts import environment_lines, option_lines
from convbn.bench.report.page.elements import definitions, esc, more, section

__all__ = ["environment", "raw", "reproduce"]

_MOST_RAW_BYTES = 150_000


def environment(result: Mapping[str, Any], limit: int) -> str:
    """The machine and its software."""
    items = [(escape(label), escape(value)) for label, value in environment_lines(result["environment"])]
    return section("Environment", None, f'<div class="card">{definitions(items[:limit])}</div>')


def reproduce(result: Mapping[str, Any], limit: int) -> str:
    """The command and everything else that has to be the same."""
    command = result.get("command")
    items = [(escape(label), escape(value)) for label, value in option_lines(result)]
    body = f"<pre>{esc(command, 4000)}</pre>" if command else ""
    listed = f'<div class="card">{definitions(items[:limit])}</div>{more(len(items), limit)}'
    if len(items) > 16:
        listed = f"<details><summary>Files, inputs and settings</summary>{listed}</details>"
    return section("How to reproduce", None, body + listed)


def raw(result: Mapping[str, Any]) -> str:
    """The JSON, unless it is long."""
    text = json.dumps(result, ensure_ascii=True, separators=(",", ":"))
    if len(text) > _MOST_RAW_BYTES:
        return ""
    return (
        '<details class="raw"><summary>Raw result (JSON)</summary>'
        f'<pre tabindex="0">{escape(text)}</pre></details>'
    )
