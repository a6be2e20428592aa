"""The command: ``python tools/coverage_report/report.py --cache DIR --out docs/coverage.md --json docs/coverage.json``.

Exports what the cache lacks, runs every tool on what changed since the last time, and writes the report. With
``--only-torch`` or ``--only-exports`` only that part is made anew, in a report that is there already.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.extend(str(Path(__file__).resolve().parents[2] / folder) for folder in ("tools", "tests"))

from coverage_report.architectures import ARCHITECTURES, by_name
from coverage_report.by_author import FORM as AUTHORS_FORM
from coverage_report.by_author import by_authors
from coverage_report.export import export_all
from coverage_report.exports import FORMS, export_legacy
from coverage_report.markdown import render
from coverage_report.peers import PEERS
from coverage_report.runs import Results, jobs_for, run_jobs
from coverage_report.summary import SCHEMA_VERSION, summarise
from coverage_report.three_exports import exports
from coverage_report.torch_runs import torch_rows
from coverage_report.torch_summary import summarise_torch

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Run the command; 1 if convbn failed on a model, got one wrong, or gave a module of another class."""
    options = parser().parse_args(arguments)
    listed = [a.name for a in ARCHITECTURES if (a.source == "own") == options.domains]
    names = options.only or listed
    tools = [name for name in options.peers.split(",") if name]
    unknown = [n for n in tools if n not in PEERS] + [n for n in names if n not in known_names()]
    if unknown:
        parser().error(f"not known: {', '.join(unknown)}")
    if options.only_torch and (options.only_exports or not options.torch):
        parser().error("--only-torch, --only-exports and --no-torch leave nothing to do")
    cache: Path = options.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    part = options.only_torch or options.only_exports
    known = _known(options.json) if part else None
    if part and known is None:
        parser().error(f"only a part needs a --json of schema {SCHEMA_VERSION} or 2 that can be added to")
    results = Results(cache / "results.jsonl")
    summary: dict[str, Any] = {}
    if known is not None:
        summary = known
    else:
        export_all(cache, [by_name(name) for name in names], tell, retry=options.retry)
        rows = run_jobs(cache, jobs_for(cache, names, tools), results, tell, workers=options.jobs)
        summary = summarise(cache, names, tools, rows)
    if not options.only_torch:
        summary |= {"exports": _exports(cache, names, results, tell, options)}
    if options.torch and not options.only_exports:
        summary |= {"torch": summarise_torch(torch_rows(names, results, tell))}
    if options.field and options.field.exists() and summary["torch"] is not None:
        forms = json.loads(options.field.read_text())["totals"]
        summary["torch"]["outside"] = {"module": forms["safetensors"], "graph": forms["pt2"]}
    options.out.write_text(render(summary))
    if options.json:
        options.json.write_text(json.dumps(summary, indent=1) + "\n")
    own = [summary["totals"]["tools"].get("convbn"), summary["totals"]["signed"]]
    own += [one["totals"] for one in summary.get("exports", {}).get("forms", {}).values()]
    bad = any(total and (total["wrong"] or total["invalid"] or total["failed"]) for total in own)
    return int(bad or (summary["torch"] is not None and not summary["torch"]["clean"]))


def _exports(
    cache: Path, names: list[str], results: Results, tell: Callable[[str], None], options: argparse.Namespace
) -> dict[str, Any]:
    """The part on all exports, with the machine and the versions that it was made with."""
    from convbn.bench.results.environment import describe_environment

    export_legacy(cache, [by_name(name) for name in names], tell)
    asked = {"onnxruntime": options.latency, "openvino": options.openvino}
    libraries = [library for library, wanted in asked.items() if wanted]
    budget_s: float = options.latency_budget
    forms = exports(
        cache, names, results, tell, libraries=libraries, timed=options.timed_exports, budget_s=budget_s
    )
    authors = None
    if options.latency and AUTHORS_FORM in options.timed_exports and not options.domains:
        authors = by_authors(cache, results, tell, budget_s=budget_s)
    return {"environment": describe_environment(), "forms": forms, "by_authors": authors}


def _known(path: Path | None) -> dict[str, Any] | None:
    """An earlier report; None if there is none that the PyTorch part fits into."""
    if path is None or not path.exists():
        return None
    summary: dict[str, Any] = json.loads(path.read_text())
    if summary.get("schema_version") not in ("2", "3", SCHEMA_VERSION):  # older ones lack a part
        return None
    for holder in (summary, *summary["models"]):  # speed stood with the models once, of one export
        holder.pop("latency", None)
    return summary | {"schema_version": SCHEMA_VERSION}


def known_names() -> set[str]:
    """Names of all architectures."""
    return {architecture.name for architecture in ARCHITECTURES}


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="report.py", description="Coverage of convbn against the field.")
    made.add_argument(
        "--cache", type=Path, required=True, help="folder of the exports and of earlier results"
    )
    made.add_argument("--out", type=Path, required=True, help="the report as Markdown")
    made.add_argument("--json", type=Path, help="the report as JSON")
    made.add_argument("--field", type=Path, help="what `make field-torch` found")
    made.add_argument("--only", nargs="+", metavar="NAME", help="only these architectures")
    made.add_argument("--domains", action="store_true", help="the small networks of other domains instead")
    made.add_argument(
        "--peers", default=",".join(PEERS), help="tools, separated by commas (default: %(default)s)"
    )
    made.add_argument("--jobs", type=int, default=1, help="trials at once; CPU seconds are exact with 1")
    made.add_argument("--retry", action="store_true", help="try failed exports again")
    made.add_argument(
        "--torch", action=argparse.BooleanOptionalAction, default=True, help="fold the modules in PyTorch too"
    )
    made.add_argument(
        "--only-torch", action="store_true", help="nothing but that, added to what --json holds"
    )
    made.add_argument("--only-exports", action="store_true", help="nothing but the three exports, likewise")
    made.add_argument("--latency", action="store_true", help="measure speed too")
    made.add_argument("--openvino", action="store_true", help="measure speed in OpenVINO too")
    made.add_argument(
        "--timed-exports",
        nargs="*",
        default=FORMS,
        choices=FORMS,
        help="exports whose speed is measured",
    )
    made.add_argument("--latency-budget", type=float, default=4.0, metavar="S", help="seconds a model")
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
