"""Everything that needs a GPU, in one command: PyTorch, onnxruntime and TensorRT, unfused against folded.

Run ``python tools/performance/gpu_bench.py [--minutes 25] [--batch 1,32] [--precision fp32,fp16]
[--flush-l2] OUT``. It writes ``gpu.json`` (by bench/bench-result.schema.json), ``gpu.md`` and ``gpu.html`` into
OUT. What the machine lacks becomes rows that say "not measured" and how to get it, so it also runs where there
is no GPU. ``nvidia-ml-py`` adds clocks, temperature, power and throttling to the rows; nothing is ever set.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.extend(str(Path(__file__).resolve().parents[2] / folder) for folder in ("tools", "tests"))

from convbn.bench.cases.case import Case
from convbn.bench.cases.study import Grid, NamedModel, Study
from convbn.bench.measure.options import Instruments, ProtocolOptions
from convbn.bench.measure.protocol import measure
from convbn.bench.report import html, markdown
from convbn.bench.runtimes.base import Variant
from convbn.bench.runtimes.registry import load_library
from convbn.commands.steps.console import Console
from convbn.errors import ConvBNError
from performance.networks import CLAIM, TABLE, subject

#: Graph replay first: it is the main mode; plain launches stand beside it.
RUNTIMES = (
    *("torch-cudagraph", "torch-cuda", "torch-compile-cuda"),
    *("onnxruntime-cuda@off", "onnxruntime-cuda", "onnxruntime-tensorrt"),
    *("tensorrt", "tensorrt@enqueue", "tensorrt-rtx", "tensorrt-rtx@enqueue"),
)


def main() -> int:
    """Measure and write; exit code 1 if any outputs differ. That nothing could be measured is no failure."""
    parser = argparse.ArgumentParser(description="The GPU half of the benchmarks")
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--batch", default="1,32", help="sizes, separated by commas")
    parser.add_argument("--precision", default="fp32,fp16")
    parser.add_argument(
        "--only", default="", help="networks of the table in docs/bench (default: the claim's two)"
    )
    parser.add_argument("--runtime", default=",".join(RUNTIMES))
    parser.add_argument("--flush-l2", action="store_true")
    options = parser.parse_args()
    runtimes = tuple(options.runtime.split(","))
    unknown = sorted({name for name in options.only.split(",") if name} - set(TABLE))
    if unknown:
        parser.error(f"there is no network {unknown[0]!r}: choose of {', '.join(TABLE)}")
    chosen = [*filter(None, options.only.split(","))] or list(CLAIM)
    names = [network if isinstance(network, str) else network.name for network in chosen]
    groups = [
        [NamedModel(name.removeprefix("tv_"), partial(subject, network))]
        for name, network in zip(names, chosen, strict=True)
    ]
    grid = Grid(
        batches=tuple(int(size) for size in options.batch.split(",")),
        precisions=tuple(options.precision.split(",")),
    )
    console = Console()
    study = Study(groups, grid, runtimes=runtimes)
    result = replace(
        measure(
            study if any(map(_usable, runtimes)) else list(_idle(names, grid, runtimes)),
            ProtocolOptions(
                budget_seconds=10.0,
                total_seconds=60 * options.minutes,
                warmup_seconds=1.0,
                block_seconds=0.1,
                min_blocks=30,
                l2="flushed" if options.flush_l2 else "warm",
            ),
            instruments=Instruments(tell=console.progress),
        ),
        title="On the GPU: unfused against folded",
        command="python tools/performance/gpu_bench.py " + " ".join(sys.argv[1:]),
        extra=[{"label": "Weights", "value": "random; BatchNorm statistics as training leaves them"}],
    )
    console.progress("")
    value = result.to_dict()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu.json").write_text(json.dumps(value) + "\n")
    (options.out / "gpu.md").write_text(markdown.render(value))
    (options.out / "gpu.html").write_text(html.render(value))
    rows = [row for case in result.cases for row in case.rows]
    measured = sum(row.status == "measured" for row in rows)
    print(f"{measured} of {len(rows)} rows measured in {result.seconds / 60:.1f} minutes")
    for reason in sorted({row.reason for row in rows if row.reason}):
        print(f"not measured: {reason}")
    return 1 if any(row.equality is not None and row.equality.status == "different" for row in rows) else 0


def _usable(runtime: str) -> bool:
    try:
        load_library(runtime)
    except ConvBNError:
        return False
    return True


def _idle(names: Sequence[str], grid: Grid, runtimes: tuple[str, ...]) -> Iterator[Case]:
    """The cases without their models, which need not be built where nothing can run them."""
    variants = (Variant("original"), Variant("folded"))
    for name in names:
        for batch in grid.batches:
            for precision in grid.precisions:
                yield Case(name.removeprefix("tv_"), variants, runtimes, batch=batch, precision=precision)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ConvBNError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
