"""The command: ``python tools/coverage_report/report.py --cache DIR --out docs/coverage.md --json docs/coverage.json``.

Exports what the cache lacks, runs every tool on what changed since the last time, and writes the report. With
``--only-torch`` only the PyTorch part is made anew, in a report that is there already.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.extend(str(Path(__file__).resolve().parents[2] / folder) for folder in ("tools", "tests"))

from coverage_report.architectures import ARCHITECTURES, by_name
from coverage_report.export import export_all
from coverage_report.latency import latencies, latency_totals
from coverage_report.markdown import render
from coverage_report.peers import PEERS
from coverage_report.runs import Results, jobs_for, run_jobs
from coverage_report.summary import SCHEMA_VERSION, summarise
from coverage_report.torch_runs import torch_rows
from coverage_report.torch_summary import summarise_torch

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Run the command; 1 if convbn failed on a model, got one wrong, or gave a module of another class."""
    options = parser().parse_args(arguments)
    listed = [a.name for a in ARCHITECTURES if a.source == "own" or not options.domains]
    names = options.only or listed
    tools = [name for name in options.peers.split(",") if name]
    unknown = [n for n in tools if n not in PEERS] + [n for n in names if n not in known_names()]
    if unknown:
        parser().error(f"not known: {', '.join(unknown)}")
    if options.only_torch and not options.torch:
        parser().error("--only-torch and --no-torch leave nothing to do")
    cache: Path = options.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    known = _known(options.json) if options.only_torch else None
    if options.only_torch and known is None:
        parser().error(f"--only-torch needs a --json of schema {SCHEMA_VERSION} or 2 that can be added to")
    results = Results(cache / "results.jsonl")
    if known is not None:
        summary = known
    else:
        export_all(cache, [by_name(name) for name in names], tell, retry=options.retry)
        rows = run_jobs(cache, jobs_for(cache, names, tools), results, tell, workers=options.jobs)
        latency, totals = None, None
        if options.latency:
            latency = latencies(cache, names, results, tell, budget_s=options.latency_budget)
            totals = latency_totals(latency)
        summary = summarise(cache, names, tools, rows, latency=latency, latency_totals=totals)
        if options.openvino:
            budget_s = options.latency_budget
            found = latencies(cache, names, results, tell, budget_s=budget_s, library="openvino")
            summary |= {"openvino": {"rows": found, "totals": latency_totals(found)}}
    if options.torch:
        summary |= {"torch": summarise_torch(torch_rows(names, results, tell))}
    if options.field and options.field.exists() and summary["torch"] is not None:
        forms = json.loads(options.field.read_text())["totals"]
        summary["torch"]["outside"] = {"module": forms["safetensors"], "graph": forms["pt2"]}
    options.out.write_text(render(summary))
    if options.json:
        options.json.write_text(json.dumps(summary, indent=1) + "\n")
    own = [summary["totals"]["tools"].get("convbn"), summary["totals"]["signed"]]
    bad = any(total and (total["wrong"] or total["invalid"] or total["failed"]) for total in own)
    return int(bad or (summary["torch"] is not None and not summary["torch"]["clean"]))


def _known(path: Path | None) -> dict[str, Any] | None:
    """An earlier report; None if there is none that the PyTorch part fits into."""
    if path is None or not path.exists():
        return None
    summary: dict[str, Any] = json.loads(path.read_text())
    if summary.get("schema_version") not in ("2", SCHEMA_VERSION):  # 2 has all but this part
        return None
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
    made.add_argument("--domains", action="store_true", help="only the networks of other domains")
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
    made.add_argument("--latency", action="store_true", help="measure speed too")
    made.add_argument("--openvino", action="store_true", help="measure speed in OpenVINO too")
    made.add_argument("--latency-budget", type=float, default=4.0, metavar="S", help="seconds a model")
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
