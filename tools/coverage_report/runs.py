"""Trials of every tool on every model, remembered in a JSONL file so that only what changed runs again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from coverage_report.export import VARIANTS, model_path, sidecar
from coverage_report.isolated import PYTHONPATH
from coverage_report.peers import PEERS, Peer

__all__ = ["Job", "Results", "content_of", "fold_state", "jobs_for", "run_jobs", "run_tool"]

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 120.0

#: Name of the model, variant, name of the tool.
Job = tuple[str, str, str]


class Results:
    """Rows by key; the last row of a key counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                self._rows[row["key"]] = row

    def get(self, key: str) -> dict[str, Any] | None:
        """The row of a key."""
        return self._rows.get(key)

    def add(self, key: str, row: dict[str, Any]) -> None:
        """Remember a row, also in the file."""
        self._rows[key] = {"key": key, **row}
        with self._path.open("a") as file:
            file.write(json.dumps(self._rows[key]) + "\n")


def content_of(*paths: Path) -> str:
    """What only files of these bytes have, in a key."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def fold_state(root: Path = ROOT, *, torch: bool = False) -> str:
    """Hash of everything that decides how convbn folds.

    Args:
        root: of the project.
        torch: ``fuse/`` with its PyTorch frontend, too; an ONNX graph's fold does not depend on that.
    """
    digest = hashlib.sha256()
    for path in sorted((root / "fuse").rglob("*.py")):
        if torch or "torch" not in path.relative_to(root / "fuse").parts[:-1]:
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def key_of(cache: Path, job: Job, state: str) -> str:
    """What a row depends on: the file, the tool and its version, and for convbn the code in ``fuse/``."""
    name, variant, tool = job
    facts = sidecar(cache, name) or {}
    content = facts.get("variants", {}).get(variant, {}).get("sha256", "")[:16]
    suffix = f"+{state}" if tool == "convbn" else ""
    return f"{name}{variant}|{content}|{tool}|{PEERS[tool].version}{suffix}"


def jobs_for(cache: Path, names: Iterable[str], tools: Sequence[str]) -> list[Job]:
    """Every tool on the files with γ > 0; convbn and the yardstick also on those with γ of both signs."""
    jobs: list[Job] = []
    for name in names:
        facts = sidecar(cache, name)
        if facts is None or facts["failed"]:
            continue
        jobs += [(name, "", tool) for tool in tools if PEERS[tool].version is not None]
        both = [tool for tool in ("convbn", "load-save") if tool in tools]
        jobs += [(name, variant, tool) for variant in VARIANTS if variant for tool in both]
    return jobs


def run_jobs(
    cache: Path, jobs: Sequence[Job], results: Results, tell: Callable[[str], None], *, workers: int = 1
) -> dict[Job, dict[str, Any]]:
    """The row of every job, from the file where it is still good.

    Args:
        cache: the folder.
        jobs: what to run.
        results: the rows so far.
        tell: is told one line a trial.
        workers: trials at the same time; above 1, CPU seconds are less exact.
    """
    state = fold_state()
    found = {job: results.get(key_of(cache, job, state)) for job in jobs}
    rows = {job: row for job, row in found.items() if row is not None}
    missing = [job for job in jobs if job not in rows]

    def run(job: Job) -> tuple[dict[str, Any], bool]:
        row = trial(cache, job)
        return row, job[2] != "convbn" or fold_state() == state

    with ThreadPoolExecutor(workers) as pool:
        for job, (row, same) in zip(missing, pool.map(run, missing), strict=True):
            rows[job] = row
            if same:  # a rule that was edited in the meantime would leave a row under a wrong key
                results.add(key_of(cache, job, state), row)
            name, variant, tool = job
            tell(f"{tool} {name}{variant}: {row['failure'] or row['batchnorms']}")
    return rows


def trial(cache: Path, job: Job) -> dict[str, Any]:
    """Run one tool on one file in a subprocess; a crash or a timeout is a row too."""
    name, variant, tool = job
    peer: Peer = PEERS[tool]
    row: dict[str, Any] = {"name": name, "variant": variant, "tool": tool, "version": peer.version}
    return row | run_tool(tool, model_path(cache, name, variant), folder=cache)


def run_tool(tool: str, source: Path, *, folder: Path, arrays: Path | None = None) -> dict[str, Any]:
    """What a tool makes of a file, judged.

    Args:
        tool: of :data:`PEERS`.
        source: the file.
        folder: where its output may lie for a while.
        arrays: see :func:`coverage_report.trial.judge`.
    """
    nothing = {"batchnorms": None, "nodes": None, "error": None, "truth_error": None, "unrunnable": None}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        result = Path(scratch) / "result.json"
        command = [
            sys.executable,
            "-m",
            "coverage_report.trial",
            tool,
            str(source),
            str(result),
            *([str(arrays)] if arrays else []),
        ]
        environment = os.environ | {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
        ended = ""
        try:
            done = subprocess.run(
                command, env=environment, cwd=scratch, capture_output=True, timeout=TIMEOUT_S, check=False
            )
            if done.returncode:
                last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
                ended = f"exit code {done.returncode}: {' '.join(last)[:300]}"
        except subprocess.TimeoutExpired:
            ended = f"not done in {TIMEOUT_S:g} s"
        facts = json.loads(result.read_text()) if result.exists() else {"failure": ended or "no result"}
    if ended and not facts["failure"]:  # it converted, and the judging of its output broke
        facts["unrunnable"] = ended
    return nothing | facts
