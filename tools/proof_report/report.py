"""The command: ``python tools/proof_report/report.py --cache DIR --out docs/proof-networks.md --json FILE``.

Exports what the cache lacks, proves what changed since the last time, and writes the report.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.extend(str(Path(__file__).resolve().parents[2] / folder) for folder in ("tools", "tests"))

from coverage_report.architectures import ARCHITECTURES, by_name
from coverage_report.export import export_all, model_path
from coverage_report.exports import FORMS, export_legacy, form_path
from coverage_report.isolated import isolated
from coverage_report.runs import Results, fold_state

from proof_report.page import page
from proof_report.trial import trial

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600.0
#: One fold of each network is spoilt: in each form one in another third.
PLACES = dict(zip(FORMS, (0.5, 0.2, 0.8), strict=True))


def main(arguments: list[str]) -> int:
    """Run the command; 1 if a right fold was refused or a wrong one accepted."""
    options = parser().parse_args(arguments)
    names = options.only or [architecture.name for architecture in ARCHITECTURES]
    cache: Path = options.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    architectures = [by_name(name) for name in names]
    export_all(cache, [a for a in architectures if not model_path(cache, a.name).exists()], tell)
    export_legacy(cache, architectures, tell)
    results = Results(cache / "proofs.jsonl")
    state = proof_state()
    rows = []
    for name in names:
        for form in FORMS:
            path = form_path(cache, name, form)
            key = f"{name}|{form}|{state}"
            row = results.get(key)
            if row is None:
                row = {"name": name, "form": form, **_tried(path, form)}
                results.add(key, row)
                tell(f"{name} {form}: {_in_short(row)}")
            rows.append({k: v for k, v in row.items() if k != "key"})
    found = {"schema_version": "1", "rows": rows}
    options.out.write_text(page(found))
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(bad(row) for row in rows))


def bad(row: dict[str, Any]) -> bool:
    """Whether the proof failed on a network."""
    judged_wrong = row["failed"] is None and (row["status"] != "equal" or row["spoilt_status"] == "equal")
    return judged_wrong or (row["failed"] is not None and row["failed"] != "not exported")


def _tried(path: Path, form: str) -> dict[str, Any]:
    if not path.exists():
        return {"failed": "not exported"}
    facts, ended = isolated(trial, (str(path), PLACES[form]), timeout_s=TIMEOUT_S)
    return facts or {"failed": ended or "the process ended without a word"}


def _in_short(row: dict[str, Any]) -> str:
    if row["failed"]:
        return str(row["failed"])
    return f"{row['folds']} folds {row['status']}, {row['spoilt']} off: {row['spoilt_status']}"


def proof_state(root: Path = ROOT) -> str:
    """Hash of everything that decides how a fold is made and judged."""
    digest = hashlib.sha256(fold_state(root).encode())
    for folder in ("equivalence", "models", "proof"):
        for path in sorted((root / "bench" / folder).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="report.py", description="The proof on real architectures.")
    made.add_argument(
        "--cache", type=Path, required=True, help="folder of the exports and of earlier results"
    )
    made.add_argument("--out", type=Path, required=True, help="the report as Markdown")
    made.add_argument("--json", type=Path, required=True, help="the report as JSON")
    made.add_argument("--only", nargs="+", metavar="NAME", help="only these architectures")
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
