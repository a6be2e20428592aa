"""The claim that this project starts from, measured: eager PyTorch folds nothing by itself, so folding pays.

Run ``python tools/performance/claim.py [--budget SECONDS] DOCUMENT RESULT``. A ResNet and a VGG with
BatchNorm, unfused against folded by convbn, on the CPU and on a CUDA GPU where there is one; where there is none
its rows say so. It writes the document (Markdown) and the result (JSON).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.extend(str(Path(__file__).resolve().parents[2] / folder) for folder in ("tools", "tests"))

from convbn.bench.cases.study import NamedModel, Study
from convbn.bench.measure.options import Instruments, ProtocolOptions
from convbn.bench.measure.protocol import measure
from convbn.bench.results.result import BenchResult, CaseResult, Row
from convbn.commands.steps.console import Console
from performance.networks import CLAIM, subject

RUNTIMES = ("torch-cpu", "torch-cudagraph", "torch-cuda")
WHERE = {
    "torch-cpu": "CPU, one thread, eager",
    "torch-cudagraph": "CUDA GPU, graph replay",
    "torch-cuda": "CUDA GPU, eager",
}
THREADS = 1


def main() -> int:
    """Measure and write; exit code 1 if a measured network is not shown to be faster."""
    parser = argparse.ArgumentParser(description="docs/claim.md")
    parser.add_argument("document", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--budget", type=float, default=30.0, help="seconds a network and runtime")
    options = parser.parse_args()
    groups = [[NamedModel(network.name, partial(subject, network))] for network in CLAIM]
    with Console().phase("measuring", " s") as progress:
        measured = measure(
            Study(groups, runtimes=RUNTIMES, threads=THREADS),
            ProtocolOptions(threads=THREADS, budget_seconds=options.budget, block_seconds=0.1, min_blocks=30),
            instruments=Instruments(tell=progress),
        )
    result = replace(
        measured,
        title="Folding BatchNorm in eager PyTorch",
        command="make claim",
    )
    options.result.parent.mkdir(parents=True, exist_ok=True)
    options.result.write_text(json.dumps(result.to_dict()) + "\n")
    options.document.write_text(document(result, options.result))
    rows = [row for case in result.cases for row in case.rows if row.ratio is not None]
    print(options.document.read_text())
    return 0 if rows and all(row.verdict == "faster" for row in rows) else 1


def document(result: BenchResult, path: Path) -> str:
    """The claim as Markdown: sentence, table, machine."""
    environment = result.environment
    libraries = environment["libraries"]
    machine = f"{environment['cpu']}, {environment['cores']} cores, {environment['os']}"
    lines = [
        "# The claim, measured",
        "",
        "Eager PyTorch runs a BatchNorm as a layer of its own: nothing folds it unless somebody does. Unfused "
        "against folded by convbn, outputs compared first; below 1 is faster; median of paired ratios with its "
        f"95 % interval. `{result.command}` measures it again.",
        "",
        "| network | input | where | unfused | folded | time ratio | A/A control | verdict |",
        "|---|---|---|---:|---:|---:|---:|---|",
        *(line for case in result.cases for line in _lines(case)),
        "",
        f"Machine: {machine}; load average {_number(environment['load_average'])} at the end. "
        f"Versions: {', '.join(f'{name} {libraries[name]}' for name in ('convbn', 'torch') if name in libraries)}, "
        f"Python {environment['python']}. {result.created}. Random weights, BatchNorm statistics as training leaves "
        f"them. Raw samples: [{path.name}]({_relative(path)}).",
        "",
    ]
    return "\n".join(lines)


def _lines(case: CaseResult) -> list[str]:
    shape = "×".join(str(size) for size in case.inputs[0]["shape"]) if case.inputs else ""
    lines = []
    for control in case.runtimes:
        base, folded = (row for row in case.rows if row.runtime == control.runtime)
        start = f"| {case.name} | {shape} | {WHERE[control.runtime]} |"
        if folded.status == "not measured" or control.control is None:
            lines.append(f"{start} not measured | not measured | | | {_cell(folded.reason or base.reason)} |")
            continue
        lines.append(
            f"{start} {_milliseconds(base)} | {_milliseconds(folded)} | {_ratio(folded.ratio)} | "
            f"{_ratio(control.control)} | {folded.verdict} |"
        )
    return lines


def _milliseconds(row: Row) -> str:
    return "" if row.latency is None else f"{1e3 * row.latency.median:.2f} ms"


def _ratio(ratio: Any) -> str:
    return f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").partition(" (")[0]


def _relative(path: Path) -> str:
    return f"{path.parent.name}/{path.name}" if path.parent.name else path.name


if __name__ == "__main__":
    sys.exit(main())
