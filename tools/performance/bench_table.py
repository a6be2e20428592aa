"""Twelve networks on the CPU: unfused, fused by the runtime itself, fused by convbn, with intervals.

Run ``python tools/performance/bench_table.py [--minutes 18] [--runtime NAME,...] [--only NAME,...] OUT``. It
writes ``table.json`` (by bench/bench-result.schema.json), ``table.md`` and ``index.html`` into OUT. One
thread: with more, a busy neighbour on a small machine widens every interval.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.extend(str(Path(__file__).resolve().parents[2] / folder) for folder in ("tools", "tests"))

from convbn.bench.cases.study import NamedModel, Study
from convbn.bench.measure.options import Instruments, ProtocolOptions
from convbn.bench.measure.protocol import measure
from convbn.bench.report import html, markdown
from convbn.commands.steps.console import Console
from performance.networks import TABLE, subject

RUNTIMES = ("onnxruntime-cpu@off", "onnxruntime-cpu", "torch-cpu")
THREADS = 1


def main() -> int:
    """Measure and write; exit code 1 if any outputs differ or nothing was measured."""
    parser = argparse.ArgumentParser(description="The benchmark table of docs/bench")
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=17.0)
    parser.add_argument("--runtime", type=lambda text: tuple(text.split(",")), default=RUNTIMES)
    parser.add_argument("--only", type=lambda text: tuple(text.split(",")), default=TABLE)
    parser.add_argument("--no-memory", action="store_true")
    options = parser.parse_args()
    protocol = ProtocolOptions(
        threads=THREADS,
        budget_seconds=12.0,
        total_seconds=60 * options.minutes,
        memory=not options.no_memory,
    )
    groups = [[NamedModel(name.removeprefix("tv_"), partial(subject, name))] for name in options.only]
    with Console().phase("measuring", " s") as progress:
        measured = measure(
            Study(groups, runtimes=options.runtime, threads=THREADS),
            protocol,
            instruments=Instruments(tell=progress),
        )
    result = replace(
        measured,
        title=f"{len(groups)} networks on the CPU, one thread: unfused, fused by the runtime, fused by convbn",
        command="make bench-table",
        extra=[{"label": "Weights", "value": "random; BatchNorm statistics as training leaves them"}],
    )
    value = result.to_dict()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.json").write_text(json.dumps(value) + "\n")
    (options.out / "table.md").write_text(markdown.render(value))
    (options.out / "index.html").write_text(html.render(value))
    rows = [row for case in result.cases for row in case.rows]
    print(f"{len(result.cases)} networks, {len(rows)} rows, {result.seconds / 60:.1f} minutes")
    for case in result.cases:
        for row in case.rows:
            if row.status == "not measured":
                print(f"not measured: {case.name}, {row.side} in {row.runtime}: {row.reason}")
    differ = any(row.equality is not None and row.equality.status == "different" for row in rows)
    return 1 if differ or not any(row.status == "measured" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
