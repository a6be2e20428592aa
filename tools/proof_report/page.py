"""docs/proof-networks.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coverage_report.architectures import ARCHITECTURES
from coverage_report.exports import FORMS
from coverage_report.tables import table

__all__ = ["page"]

HEAD = """\
# The proof on real architectures

Written by `make proof-report`; the numbers, the spoilt folds and the reasons are in
[proof-networks.json](proof-networks.json).

The networks of [coverage.md](coverage.md) in three exports, all of them unfused: by PyTorch's exporter (`dynamo`), and
by the older TorchScript exporter with static batch (`legacy`) and with open batch (`legacy-open`). Each is folded and
proven. Then the scale of one of its BatchNorms is put off by 1 %, and what that folds to is held against the same
original.

**{right} of {folds} right folds are proven, {shown:,} of {single:,} BatchNorms in them by name; {caught} of {spoilt}
wrong ones are found.**{others}

A cell says how many BatchNorms were folded. ✓: the right fold was proven, the one that is off by 1 % was not.
–: no BatchNorm folds, and it was proven that nothing changed.
"""


def page(found: Mapping[str, Any]) -> str:
    """The document, from what ``report.py`` found."""
    rows = found["rows"]
    judged = [row for row in rows if row["failed"] is None]
    wrong = [row for row in judged if row["spoilt"] is not None]
    names = list(dict.fromkeys(row["name"] for row in rows))
    by_place = {(row["name"], row["form"]): row for row in rows}
    others = [f"{row['name']} ({row['form']}): {row['failed']}" for row in rows if row["failed"] is not None]
    left = [architecture.name for architecture in ARCHITECTURES if architecture.name not in names]
    said = f" Not judged: {'; '.join(others)}." if others else ""
    if left:
        said += f" Not measured on this code: {', '.join(left)}."
    text = HEAD.format(
        right=sum(row["status"] == "equal" for row in judged),
        folds=len(judged),
        shown=sum(row["folds"] - len(row["not_shown"]) for row in judged),
        single=sum(row["folds"] for row in judged),
        caught=sum(row["spoilt_status"] != "equal" for row in wrong),
        spoilt=len(wrong),
        others=said,
    )
    body = [[name, *(_cell(by_place[name, form]) for form in FORMS)] for name in names]
    return f"{text}\n{table(['network', *FORMS], body, left=1)}\n"


def _cell(row: Mapping[str, Any]) -> str:
    """BatchNorms that were folded, and how it came out."""
    if row["failed"] is not None:
        return "not judged"
    said = "" if row["status"] == "equal" else f" refused ({row['status']})"
    if row["not_shown"]:
        said += f" {len(row['not_shown'])} not shown"
    if row["spoilt"] is None:
        return f"–{said}"
    if row["spoilt_status"] == "equal":
        said += " wrong one accepted"
    return f"{row['folds']} {said.strip() or '✓'}"
