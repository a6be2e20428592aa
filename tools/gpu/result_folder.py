"""What was measured so far: every trial is a file before the next one starts, and a later run goes on behind it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convbn.bench.report import html, markdown
from convbn.errors import UsageError

__all__ = ["ResultFolder", "Trial"]


@dataclass(frozen=True)
class Trial:
    """One network under one set of conditions in one runtime.

    Attributes:
        stage: to which it belongs.
        network: its name.
        batch: size of axis 0.
        precision: "fp32", "fp16" or "bf16".
        runtime: with its levels.
        peers: with all variants, or with the original and the folded module alone.
    """

    stage: str
    network: str
    batch: int
    precision: str
    runtime: str
    peers: bool = False

    @property
    def key(self) -> str:
        """A name for its file."""
        text = f"{self.stage}-{self.network}-b{self.batch}-{self.precision}-{self.runtime}"
        return re.sub(r"[^\w.-]+", "-", text)


class ResultFolder:
    """A folder of results.

    Args:
        out: the folder.
        seconds: after which no trial starts, counted from now.
        machine: what the results belong to; those of another are not mixed with them.

    Raises:
        UsageError: the folder holds results of another machine, or of other libraries.
    """

    def __init__(self, out: Path, seconds: float, machine: Mapping[str, Any]) -> None:
        self._end = self._until = time.monotonic() + seconds
        self._out = out
        (out / "trials").mkdir(parents=True, exist_ok=True)
        self.facts: dict[str, Any] = {"machine": dict(machine)}
        if (out / "facts.json").is_file():
            self.facts = json.loads((out / "facts.json").read_text())
            if self.facts["machine"] != dict(machine):
                raise UsageError(
                    "holds results of another machine or of other libraries",
                    source=str(out),
                    hint="name another folder",
                )
        self.save_facts()

    def left(self) -> float:
        """Seconds in which a trial of the current stage may start."""
        return self._until - time.monotonic()

    def share(self, mark: float) -> None:
        """Let the coming stage have what is left up to a share of it, so that none starves the next."""
        now = time.monotonic()
        self._until = now + mark * max(0.0, self._end - now)

    def has(self, key: str) -> bool:
        """Whether a trial was run, whatever came of it."""
        return (self._out / "trials" / f"{key}.json").is_file()

    def put(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep the result of a trial; it is whole on disk when this returns."""
        self._write(Path("trials", f"{key}.json"), json.dumps(value) + "\n")

    def save_facts(self) -> None:
        """Keep what was found out beside the trials."""
        self._write(Path("facts.json"), json.dumps(self.facts, indent=1, default=str) + "\n")

    def results(self) -> dict[str, Any] | None:
        """All trials as one result of ``convbn bench``; None where there are none."""
        trials = [json.loads(path.read_text()) for path in sorted((self._out / "trials").glob("*.json"))]
        if not trials:
            return None
        trials.sort(key=lambda trial: str(trial["created"]))
        merged: dict[str, Any] = {**trials[0], "cases": [], "seconds": 0.0}
        taken: dict[str, int] = {}
        for trial in trials:
            merged["seconds"] += trial["seconds"]
            for case in trial["cases"]:
                taken[case["id"]] = taken.get(case["id"], 0) + 1
                count = taken[case["id"]]
                merged["cases"].append({**case, "id": case["id"] if count == 1 else f"{case['id']}-{count}"})
        return merged

    def reports(self) -> None:
        """The merged result, as JSON, Markdown and a page."""
        merged = self.results()
        if merged is None:
            return
        self._write(
            Path("gpu.json"), json.dumps(merged | {"extra": [*merged["extra"], *self._extra()]}) + "\n"
        )
        merged = json.loads((self._out / "gpu.json").read_text())
        self._write(Path("gpu.md"), markdown.render(merged))
        self._write(Path("gpu.html"), html.render(merged))

    def _extra(self) -> list[dict[str, str]]:
        cost = self.facts.get("identity_us")
        label = "A call of nn.Identity in eager PyTorch"
        return [] if cost is None else [{"label": label, "value": f"{cost:.2f} µs"}]

    def _write(self, name: Path, text: str) -> None:
        path = self._out / name
        new = path.with_name(f"{path.name}.new")
        new.write_text(text, encoding="utf-8")
        os.replace(new, path)
