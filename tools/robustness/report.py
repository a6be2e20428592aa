"""Writes docs/robustness.md and docs/robustness.json: mutants by kind, and the rows with their tests.

python tools/robustness/report.py docs/robustness.md docs/robustness.json [--mutants 516] [--start 0]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.extend(str(Path(__file__).resolve().parents[2] / folder) for folder in ("tools", "tests"))

from support.machine import machine

ROOT = Path(__file__).resolve().parents[2]
VERDICTS = ("equal", "refused", "wrong", "crashed", "hung", "half-written", "silent")
PACKAGES = ("onnx", "onnxruntime", "onnx-graphsurgeon", "numpy", "protobuf", "torch")


def main() -> int:
    """Run everything and write both files; 1 where a row or a mutant failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("markdown", type=Path)
    parser.add_argument("json", type=Path)
    parser.add_argument("--mutants", type=int, default=516)
    parser.add_argument("--start", type=int, default=0, help="first seed")
    parser.add_argument("--no-rows", action="store_true", help="keep the outcomes of the tests as they stand")
    options = parser.parse_args()
    found = {
        "machine": machine(*PACKAGES),
        "mutants": mutants(options.start, options.mutants),
        "rows": rows(before(options.json) if options.no_rows else outcomes()),
    }
    options.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    options.markdown.write_text(page(found))
    bad = [row["number"] for row in found["rows"] if row["outcome"] == "failed"]
    faults = sum(found["mutants"]["totals"][verdict] for verdict in VERDICTS[2:])
    waiting = [row["number"] for row in found["rows"] if row["outcome"] == "not run"]
    print(
        f"{faults} faults in {options.mutants} mutants; rows failed: {bad or 'none'}, not run: {waiting or 'none'}"
    )
    return 1 if bad or faults else 0


def mutants(start: int, count: int) -> dict[str, Any]:
    """What became of each kind of mutant."""
    from robustness.mutations import MUTATIONS
    from robustness.parallel import run_all

    begun = time.perf_counter()
    outcomes = run_all(range(start, start + count))
    seconds = time.perf_counter() - begun
    kinds = {name: Counter[str]() for name in MUTATIONS}
    for outcome in outcomes:
        kinds[outcome.mutation][outcome.verdict] += 1
    return {
        "first_seed": start,
        "tried": count,
        "seconds": round(seconds, 1),
        "slowest_seconds": round(max(outcome.seconds for outcome in outcomes), 2),
        "totals": {v: sum(kind[v] for kind in kinds.values()) for v in VERDICTS},
        "kinds": {name: {v: kind[v] for v in VERDICTS} for name, kind in kinds.items()},
        "faults": [str(outcome) for outcome in outcomes if not outcome.survived],
    }


def outcomes() -> dict[str, str]:
    """The outcome of every test of a row, in one run of pytest."""
    from robustness.fault_table import ROWS

    ids = sorted({test for row in ROWS.values() for test in row.tests})
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-o", "junit_family=xunit1", f"--junitxml={xml}", *ids]
        subprocess.run(command, cwd=ROOT, check=False)
        return outcomes_of(xml)


def before(path: Path) -> dict[str, str]:
    """The outcomes that a file holds already."""
    stored = json.loads(path.read_text())["rows"] if path.exists() else []
    return {test: outcome for row in stored for test, outcome in row["tests"].items()}


def rows(seen: dict[str, str]) -> list[dict[str, Any]]:
    """Each row with its tests and what became of them."""
    from robustness.fault_table import ROWS

    found = []
    for number, row in ROWS.items():
        tests = {test: seen.get(test, "not run") for test in row.tests}
        states = set(tests.values())
        outcome = "failed" if "failed" in states else "not run" if "not run" in states else "passed"
        found.append(
            {
                "number": number,
                "name": row.name,
                "required": row.required,
                "outcome": outcome if "passed" in states else "not run" if outcome == "passed" else outcome,
                "tests": tests,
            }
        )
    return found


def outcomes_of(xml: Path) -> dict[str, str]:
    """The worst outcome of the cases of each test, by its id without parameters."""
    order = ("skipped", "passed", "failed")
    found: dict[str, str] = {}
    for case in ET.parse(xml).iter("testcase"):  # noqa: S314  # written by our own pytest
        test = f"{case.get('file')}::{str(case.get('name')).partition('[')[0]}"
        state = "passed"
        if case.find("failure") is not None or case.find("error") is not None:
            state = "failed"
        elif case.find("skipped") is not None:
            state = "skipped"
        found[test] = max(found.get(test, state), state, key=order.index)
    return found


def page(found: dict[str, Any]) -> str:
    """Markdown."""
    here, crowd = found["machine"], found["mutants"]
    totals = crowd["totals"]
    faults = sum(totals[verdict] for verdict in VERDICTS[2:])
    last = crowd["first_seed"] + crowd["tried"] - 1
    lines = [
        "# What was tried to break it",
        "",
        "Written by `make robustness`; the numbers are in [robustness.json](robustness.json). What is promised:",
        "[SECURITY.md](../SECURITY.md). What is not: [threat-model.md](threat-model.md).",
        "",
        f"**{crowd['tried']} broken models (seeds {crowd['first_seed']} to {last}): {totals['equal']} gave a result "
        f"equal to the input's, {totals['refused']} were refused with one typed line, {faults} did anything else.**",
        "",
        "Each is grown from a seed by `tools/robustness/model_generator.py`, broken in one way by",
        "`tools/robustness/mutations.py`, and given to `inspect` and `fuse`, each in a process with 10 s of CPU and",
        "1 GiB beyond what the libraries map.",
        "Equality is judged by onnxruntime with its optimisations off, not by convbn's own proof. `python",
        "tools/robustness/fuzz.py seeds` goes on with other seeds, `graphs` folds random graphs and PyTorch modules",
        "that are sound, judged by onnxruntime, onnx's reference evaluator and eager PyTorch, and `bytes` lets",
        "atheris look for inputs that reach new code: `make fuzz` does all three.",
        "",
        "| broken in this way | tried | equal | refused | wrong | crashed | hung | half-written | silent |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, kind in crowd["kinds"].items():
        lines.append(
            f"| {name} | {sum(kind.values())} | " + " | ".join(str(kind[v]) for v in VERDICTS) + " |"
        )
    lines.append(
        f"| **all** | **{crowd['tried']}** | " + " | ".join(f"**{totals[v]}**" for v in VERDICTS) + " |"
    )
    lines += [
        "",
        "*wrong*: other outputs. *crashed*: a traceback, a signal or an exit code that is no answer. *hung*: more than",
        "10 s. *half-written*: a file left behind or gone. *silent*: an exit code without a line that names the file.",
        f"The slowest took {crowd['slowest_seconds']} s, all together {crowd['seconds']} s.",
        "",
        "## Faults and the tests that hold them off",
        "",
        "A test with parameters counts as passed if all of its cases passed or were skipped where a part is missing.",
        "",
        "| # | fault | required | tests | outcome |",
        "|--:|---|---|--:|---|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| [{row['number']}](#{row['number']}) | {row['name']} | {row['required']} | {len(row['tests'])} "
            f"| {row['outcome']} |"
        )
    for row in found["rows"]:
        lines += ["", f"### {row['number']}", "", f"{row['name']}:", ""]
        lines += [
            f"* `{test}`" + ("" if state == "passed" else f" ({state})")
            for test, state in row["tests"].items()
        ]
    machine = ", ".join(f"{name} {here[name]}" for name in ("python", *PACKAGES))
    lines += [
        "",
        "## Where it ran",
        "",
        f"{here['date']}, {here['processor']}, {here['cores']} cores, {here['system']}: {machine}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
