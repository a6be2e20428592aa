"""``make field-torch``: every network in every form, as a table; fails where a fold, its proof or a file does."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coverage_report.isolated import isolated
from coverage_report.tables import counts, table

from field_torch.networks import NETWORKS
from field_torch.trial import FORMS, trial

LIMIT_S = 540.0
_TITLES = {"safetensors": "module → `.safetensors`", "pt2": "program → `.pt2`", "onnx": "`.onnx`"}
_INTRODUCTION = """\
Networks as other libraries build them, with random weights and BatchNorms as training leaves them, each in a process
of its own. A cell says how many BatchNorms of how many are left, after the result was shown to be equal to the
original, written, and read back. Made by `make field-torch` (`tools/field_torch/`), which installs the libraries into
an environment of its own; none of them is a dependency. With a star: the folded file is equal to the exported one,
which is not equal to the module, since among boxes of nearly the same score two runtimes choose differently. With a
dagger: boxes whose scores are equal up to rounding change places between the exported file and the folded one; both
were run again with the same choice, and then are equal (the line below says how close the scores are). Detectors of
torchvision are taken without their box selection.
"""


def main(arguments: list[str]) -> int:
    """Run what is asked for; other rows stay as the JSON has them."""
    options = _parser().parse_args(arguments)
    known = json.loads(options.json.read_text())["networks"] if options.json.exists() else {}
    for network in NETWORKS:
        if options.only and network.name not in options.only:
            continue
        facts, ended = isolated(trial, (network.name, options.seed), timeout_s=LIMIT_S)
        failure = facts.pop("failure", None) or ended or None
        known[network.name] = {"library": network.library, "failure": failure, "forms": facts}
        print(f"{network.name}: {failure or ', '.join(_cell(facts[form]) for form in FORMS)}", flush=True)
    rows = {network.name: known[network.name] for network in NETWORKS if network.name in known}
    summary = {"libraries": _versions(), "totals": totals(rows), "networks": rows}
    options.json.write_text(json.dumps(summary, indent=1) + "\n")
    options.out.write_text(render(summary))
    return int(
        any(row["failure"] or any(f["failure"] for f in row["forms"].values()) for row in rows.values())
    )


def totals(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """BatchNorms before and after, by form; a form that fails leaves all that another one counts."""
    made: dict[str, dict[str, int]] = {}
    for form in FORMS:
        done = [row["forms"][form] for row in rows.values() if form in row["forms"]]
        good = [facts for facts in done if facts["failure"] is None]
        made[form] = {
            "networks": len(done),
            "failed": len(done) - len(good),
            "before": sum(facts["before"] for facts in good),
            "left": sum(facts["left"] for facts in good),
        }
    return made


def render(summary: Mapping[str, Any]) -> str:
    """The page."""
    rows, notes = [], []
    for name, row in summary["networks"].items():
        forms = [row["forms"].get(form, {"failure": row["failure"] or "not run"}) for form in FORMS]
        kept = next((facts["kept"] for facts in forms if facts.get("kept")), {})
        rows.append([row["library"], name, *map(_cell, forms), counts(kept) if kept else ""])
        notes += [
            f"* {name}, {form}: `{facts['failure']}`"
            for form, facts in zip(FORMS, forms, strict=True)
            if facts["failure"]
        ]
        notes += [_tie(name, facts["ties"]) for facts in forms if facts.get("ties")]
    rows.append(["", "all", *(f"{t['left']} of {t['before']}" for t in summary["totals"].values()), ""])
    libraries = ", ".join(f"{name} {version}" for name, version in summary["libraries"].items())
    body = table(["library", "network", *_TITLES.values(), "why the rest stays"], rows, left=2)
    parts = [
        "# PyTorch networks of other libraries",
        _INTRODUCTION.strip(),
        f"With {libraries}.",
        body,
        "\n".join(notes),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cell(facts: Mapping[str, Any]) -> str:
    if facts["failure"]:
        return "failed"
    star = "" if facts.get("export_agrees", True) else " (\\*)"
    dagger = " (†)" if facts.get("ties") else ""
    return f"{facts['left']} of {facts['before']}, {facts['verify']}{star}{dagger}"


def _tie(name: str, ties: Mapping[str, Any]) -> str:
    return (
        f"* {name}, onnx (†): at {ties['places']} places of the sorted boxes; their scores lie at most "
        f"{ties['margin']:.1e} apart, and a score differs by up to {ties['noise']:.1e} between the files. With the "
        f"same choice the outputs differ by {ties['error']:.1e} at most, relative to their largest value."
    )


def _versions() -> dict[str, str]:
    wanted = ("torch", *dict.fromkeys(network.library for network in NETWORKS))
    installed = {
        name.metadata["Name"].lower().replace("-", "_"): name.version
        for name in importlib.metadata.distributions()
    }
    return {name: installed[name] for name in wanted if name in installed}


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="report.py", description="PyTorch networks of other libraries.")
    made.add_argument("--out", type=Path, required=True, help="the page as Markdown")
    made.add_argument(
        "--json", type=Path, required=True, help="the numbers behind it; rows not run again stay"
    )
    made.add_argument("--only", nargs="+", metavar="NAME", help="only these networks")
    made.add_argument("--seed", type=int, default=0)
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
