"""What ``convbn fuse`` costs, against the least that reading and writing the same file costs through onnx.

``convbn fuse IN -o OUT --no-verify`` against ``onnx.save(onnx.load(IN), OUT)``, interleaved in random order:

* over a list of exported networks, those of ``make coverage-report`` if its cache is there, in a warm process
  as well as each in a process of its own, imports included;
* on chains of 300, 1,000 and 3,000 nodes, CPU time a node;
* in memory (largest resident set) over the list, and on a model of 5 GB of external data.

CPU seconds are user plus system time, of several rounds the least: whatever else runs only adds to it. Run
``python tools/performance/fuse_cost.py --help`` for what can be chosen. The exit code is 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.extend(str(Path(__file__).resolve().parents[2] / folder) for folder in ("tools", "tests"))

from coverage_report.architectures import ARCHITECTURES

from performance.compiled import compiled_once

HERE = Path(__file__).resolve().parent
PROMISES = {"cpu": 2.0, "memory": 1.5, "growth": 1.5, "big_megabytes": 1000}
"""CPU and memory: of load and save. Growth: CPU a node at 3,000 nodes against 300."""


def run_process(command: list[str]) -> tuple[float, float]:
    """CPU seconds and peak megabytes of a program."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[:4]} failed with {process.returncode}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def commands(source: Path, target: Path) -> dict[str, list[str]]:
    """Both sides as programs."""
    fuse = [sys.executable, "-m", "convbn", "fuse", str(source), "-o", str(target)]
    code = f"import onnx; onnx.save(onnx.load({str(source)!r}), {str(target)!r})"
    return {
        "fuse": [*fuse, "--no-verify", "--force", "--quiet"],
        "load_save": [sys.executable, "-c", code],
    }


def write(*arguments: object) -> None:
    """Let another process write a model."""
    subprocess.run([sys.executable, HERE / "cost_models.py", *map(str, arguments)], check=True)


def warm(sources: list[Path], target: Path, rounds: int) -> list[dict[str, Any]]:
    """Least CPU seconds of each side by model, in one process."""
    command = [sys.executable, HERE / "cost_rounds.py", target, rounds, *sources]
    text = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
    found = [json.loads(line) for line in text.splitlines()]
    return [
        {"model": Path(f["source"]).stem, **{side: min(f[side]) for side in ("fuse", "load_save")}}
        for f in found
    ]


def cold(sources: list[Path], target: Path, rounds: int) -> list[dict[str, Any]]:
    """Least CPU seconds and peak memory of each side by model, each a process of its own."""
    for command in commands(sources[0], target).values():
        run_process(command)  # the first one compiles modules
    rows = []
    for source in sources:
        taken: dict[str, list[tuple[float, float]]] = {"fuse": [], "load_save": []}
        for turn in range(rounds):
            sides = list(commands(source, target).items())
            for name, command in sides if turn % 2 else reversed(sides):
                taken[name].append(run_process(command))
        row: dict[str, Any] = {"model": source.stem}
        for name, samples in taken.items():
            row |= {name: min(s[0] for s in samples), f"{name}_megabytes": min(s[1] for s in samples)}
        rows.append(row)
    return rows


def over_list(rows: list[dict[str, Any]], suffix: str = "") -> dict[str, Any]:
    """Totals of both sides, their ratio, and the ratios' median and largest."""
    fuse, load_save = (sum(row[side + suffix] for row in rows) for side in ("fuse", "load_save"))
    ratios = {row["model"]: round(row["fuse" + suffix] / row["load_save" + suffix], 2) for row in rows}
    return {
        "fuse": round(fuse, 2),
        "load_save": round(load_save, 2),
        "ratio": round(fuse / load_save, 2),
        "median_ratio": round(statistics.median(ratios.values()), 2),
        "largest_ratio": max(ratios.values()),
        "ratios": ratios,
    }


def growth(folder: Path, rounds: int) -> dict[str, Any]:
    """Microseconds of CPU a node, by the number of nodes."""
    sizes = (300, 1000, 3000)
    sources = [folder / f"{nodes}.onnx" for nodes in sizes]
    for source, nodes in zip(sources, sizes, strict=True):
        write("chain", source, nodes, 16)
    rows = warm(sources, folder / "out.onnx", rounds)
    a_node = {n: round(row["fuse"] / n * 1e6) for n, row in zip(sizes, rows, strict=True)}
    return {"microseconds_a_node": a_node, "ratio": round(a_node[3000] / a_node[300], 2)}


def big(folder: Path, gigabytes: float) -> dict[str, Any]:
    """CPU seconds and peak memory on a model of that much external data."""
    source, target = folder / "big.onnx", folder / "out.onnx"
    write("external", source, gigabytes)
    size = sum(path.stat().st_size for path in folder.iterdir())
    seconds, megabytes = run_process(commands(source, target)["fuse"])
    written = sum(path.stat().st_size for path in folder.glob("out.*"))
    return {
        "megabytes_in": round(size / 1e6),
        "megabytes_out": round(written / 1e6),
        "cpu_seconds": round(seconds, 1),
        "peak_megabytes": round(megabytes),
    }


def exported(cache: Path) -> list[Path]:
    """The timm and torchvision networks of ``make coverage-report``; of an empty cache, a few exported for this."""

    small = {one.name for one in ARCHITECTURES if one.source == "own"}

    def found() -> list[Path]:
        listed = sorted(cache.glob("models/*.onnx"))
        return [path for path in listed if path.suffixes == [".onnx"] and path.stem not in small]

    if not found():
        write("networks", cache)
    return found()


def options() -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(description="Measure what convbn fuse costs.")
    parser.add_argument("--cache", type=Path, default=Path("build/field"), help="folder of exported networks")
    parser.add_argument("--models", type=Path, nargs="*", help="ONNX files instead of the list")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=5.0, help="of the big model; 0 leaves it out")
    parser.add_argument("--scratch", type=Path, help="where to write; needs twice the big model's size")
    return parser.parse_args()


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """All of it."""
    sources = chosen.models or exported(chosen.cache)
    with tempfile.TemporaryDirectory(dir=chosen.scratch) as name:
        folder = Path(name)
        in_one = warm(sources, folder / "out.onnx", chosen.rounds)
        apart = cold(sources, folder / "out.onnx", max(2, chosen.rounds // 2))
        result = {
            "networks": len(sources),
            "cpu_warm": over_list(in_one),
            "cpu_process": over_list(apart),
            "memory": over_list(apart, "_megabytes"),
            "growth": growth(folder, chosen.rounds),
        }
        (folder / "out.onnx").unlink()
        if chosen.gigabytes:
            result["big"] = big(folder, chosen.gigabytes)
    return result | {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {name: version(name) for name in ("convbn", "onnx", "numpy", "onnx-graphsurgeon")},
    }


def broken(result: dict[str, Any]) -> list[str]:
    """The promises that these figures break."""
    found = {
        "CPU, warm": (result["cpu_warm"]["ratio"], PROMISES["cpu"]),
        "CPU, processes": (result["cpu_process"]["ratio"], PROMISES["cpu"]),
        "peak memory, worst model": (result["memory"]["largest_ratio"], PROMISES["memory"]),
        "CPU a node, 3000 against 300 nodes": (result["growth"]["ratio"], PROMISES["growth"]),
    }
    if "big" in result:
        found["peak megabytes of the big model"] = (
            result["big"]["peak_megabytes"],
            PROMISES["big_megabytes"],
        )
    return [f"{name}: {value}, promised {limit:g}" for name, (value, limit) in found.items() if value > limit]


def main() -> int:
    """Print the result as JSON, and the promises it breaks."""
    with compiled_once():
        result = measure(options())
    print(json.dumps(result, indent=2))
    problems = broken(result)
    print("\n".join(problems), file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
