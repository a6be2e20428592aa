"""Changes the arithmetic, the rules, the plan and the proof, one expression at a time, and sees whether a test notices.

python tools/mutation/run.py build/mutation docs/mutation.md docs/mutation.json [--only proof] [--keep] [--sample 7]
    [--within fuse/algebra]

mutmut makes the changes and runs the tests. A change that mypy refuses could not land and is not run. What
survives must stand in tools/mutation/survivors.toml, with the reason why it changes no result; 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.extend(str(Path(__file__).resolve().parents[2] / folder) for folder in ("tools", "tests"))

from support.machine import machine

from mutation.outcome import (
    KILLED,
    SURVIVED,
    TIMEOUT,
    TYPES,
    UNTESTED,
    Mutant,
    forget_survivors,
    mutants,
    patterns,
    waiting,
)
from mutation.page import page
from mutation.stage import PARTS, environment, stage
from mutation.survivors import Known, known


def main() -> int:
    """Run everything and write both files; 1 where a survivor is not accounted for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where mutmut works")
    parser.add_argument("markdown", type=Path)
    parser.add_argument("json", type=Path)
    parser.add_argument(
        "--keep",
        action="store_true",
        help="go on with an earlier run: try what survived it, what changed since and what it did not come to",
    )
    parser.add_argument("--only", choices=PARTS, help="one part; what is known of the other one stays")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--sample",
        default="",
        metavar="DIGITS",
        help="only the changes whose number in their function ends in one of these digits: one in ten each, of every "
        "file, the same every time",
    )
    parser.add_argument(
        "--within",
        action="append",
        default=[],
        metavar="PATH",
        help="every change in this file or folder of the part that --only names, and in no other; what is known of "
        "the others stays",
    )
    options = parser.parse_args()
    if options.within and (options.sample or not options.only):
        parser.error("--within is for one part (--only), of which it tries all changes (no --sample)")
    found = json.loads(options.json.read_text()) if options.only else {}
    for name in [options.only] if options.only else PARTS:
        made = _ran(name, options)
        if made is None:
            return 1
        found[name] = merged(found[name], made) if options.within and name in found else made
    options.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    options.markdown.write_text(page(found))
    return 1 if any(one["unexplained"] for one in found.values()) else 0


def _ran(name: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """What came of one part; None where mutmut did not come to its end."""
    folder = options.folder / name
    stage(PARTS[name], folder, keep=options.keep)
    chosen = patterns(options.within, options.sample)
    if options.keep:
        forget_survivors(folder, chosen)
    start = time.monotonic()
    left = waiting(folder, chosen) if options.keep and chosen else []
    # mutmut holds every change against every name, as a pattern; of more than 256 Python compiles each every time.
    names = left if 0 < len(left) <= 256 else chosen
    command = ["mutmut", "run", "--max-children", str(options.jobs), *names]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    if subprocess.run(command, cwd=folder, env=environment(folder) | {"PATH": path}).returncode:
        return None
    ended = mutants(folder, chosen)
    files = {mutant.file for mutant in ended}
    listed = {
        key: one
        for key, one in known().items()
        if part_of(key) == name and (not options.within or file_of(key) in files)
    }
    found = summary(ended, listed, sample=bool(options.sample))
    found |= {"sample": options.sample} if options.sample else {}
    found["machine"] = machine("mutmut", "mypy", "pytest", "onnxruntime", "numpy")
    found["minutes"] = None if options.keep else round((time.monotonic() - start) / 60, 1)
    for line in found["unexplained"]:
        print(line)
    for line in found["gone"]:
        print(f"no longer survives, take it out of survivors.toml: {line}")
    totals = found["totals"]
    print(
        f"{name}: {sum(totals.values())} mutants: {totals[TYPES]} refused by mypy, {totals[KILLED]} killed, "
        f"{totals[TIMEOUT]} ran on, {totals[SURVIVED] + totals[UNTESTED]} survive, "
        f"{len(found['unexplained'])} of them without a reason"
    )
    return found


def part_of(key: str) -> str:
    """The part that a mutant's file belongs to."""
    return next(
        name for name, part in PARTS.items() if key.startswith(tuple(f"{one}/" for one in part.folders))
    )


def file_of(key: str) -> str:
    """The file that a mutant changes."""
    return key.partition(" ")[0]


def merged(before: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """What was known of a part, with all that became of the files that were tried whole since."""
    files = dict(sorted((before["files"] | whole["files"]).items()))
    found = before | {
        "totals": {
            verdict: sum(counts[verdict] for counts in files.values()) for verdict in before["totals"]
        },
        "files": files,
        "explained": [one for one in before["explained"] if file_of(one["mutant"]) not in whole["files"]]
        + whole["explained"],
    }
    for name in ("unexplained", "gone"):
        found[name] = [key for key in before[name] if file_of(key) not in whole["files"]] + whole[name]
    if "sample" in before:
        dates = dict.fromkeys(whole["files"], whole["machine"]["date"])
        found["whole"] = dict(sorted((before.get("whole", {}) | dates).items()))
    return found


def summary(ended: list[Mutant], listed: dict[str, Known], *, sample: bool = False) -> dict[str, Any]:
    """Counts by file, and the survivors with what is known of them; of what a sample left out nothing is said."""
    files: dict[str, Counter[str]] = {}
    for mutant in ended:
        files.setdefault(mutant.file, Counter())[mutant.verdict] += 1
    alive = [mutant for mutant in ended if mutant.verdict in (SURVIVED, UNTESTED)]
    tried = listed.keys() & {mutant.key for mutant in ended} if sample else set(listed)
    order = (TYPES, KILLED, TIMEOUT, SURVIVED, UNTESTED)
    return {
        "totals": {verdict: sum(counts[verdict] for counts in files.values()) for verdict in order},
        "files": {name: {verdict: counts[verdict] for verdict in order} for name, counts in files.items()},
        "explained": [
            {"mutant": mutant.key, "kind": listed[mutant.key].kind, "why": listed[mutant.key].why}
            for mutant in alive
            if mutant.key in listed
        ],
        "unexplained": [mutant.key for mutant in alive if mutant.key not in listed],
        "gone": sorted(tried - {mutant.key for mutant in alive}),
    }


if __name__ == "__main__":
    sys.exit(main())
