"""What a measurement gives: one value, written as JSON (``bench-result.schema.json``)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from convbn.bench.equivalence.compare import Equality
from convbn.bench.results.statistics import Latency, Ratio, Verdict
from convbn.bench.runtimes.gpu.nvml import GpuFacts
from convbn.common.encoding import JsonReady

if TYPE_CHECKING:
    from convbn.common.document.model import Document

__all__ = [
    "SCHEMA_VERSION",
    "BenchResult",
    "CaseResult",
    "ModelFile",
    "Row",
    "RowVerdict",
    "RuntimeControl",
    "case_id",
]

SCHEMA_VERSION = "2"

RowVerdict: TypeAlias = Literal["baseline"] | Verdict


@dataclass(frozen=True)
class ModelFile(JsonReady):
    """One side: its name, and path, SHA-256 and size in bytes if it came from a file.

    A model that lies only in memory has no path; ``bytes`` is then what its weights take. ``sensitivity`` is what each
    layer of an int8 model loses by being quantised alone, if the record in it says so
    (:class:`convbn.export.precision.int8.sensitivity.LayerLoss`).
    """

    name: str
    path: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    sensitivity: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Row(JsonReady):
    """One side in one runtime.

    Attributes:
        runtime: its name.
        side: name of the model.
        status: "measured" or "not measured".
        reason: why it was not measured; None if it was.
        equality: of its outputs to the baseline's in this runtime; None for the baseline.
        latency: of single inferences.
        throughput: samples per second: batch / mean latency, with a batch of 1 where there is none.
        block_seconds: raw samples, seconds per inference, one a block.
        calls_per_block: inferences in each block.
        warm: whether the warm-up ended with stable times.
        ratio: time / baseline time with its interval; None for the baseline.
        verdict: what the ratio shows.
        peak_memory: bytes that loading the model and one inference add to a fresh process.
        load_seconds: from the model to a session that is ready to be timed.
        gpu: how a GPU was driven and what state it was in; None on a CPU.
    """

    runtime: str
    side: str
    status: Literal["measured", "not measured"]
    reason: str | None = None
    equality: Equality | None = None
    latency: Latency | None = field(default=None, metadata={"json": "latency_seconds"})
    throughput: float | None = field(default=None, metadata={"json": "throughput_per_second"})
    block_seconds: tuple[float, ...] = ()
    calls_per_block: int | None = None
    warm: bool | None = None
    ratio: Ratio | None = None
    verdict: RowVerdict | None = None
    peak_memory: int | None = field(default=None, metadata={"json": "peak_memory_bytes"})
    load_seconds: float | None = None
    gpu: GpuFacts | None = None


@dataclass(frozen=True)
class RuntimeControl(JsonReady):
    """What one runtime calls a difference on this machine.

    Attributes:
        runtime: its name.
        control: a second session of the baseline against the first (A/A); None if nothing was measured.
        noise_floor: how far from 1 that interval reaches; smaller effects are not called differences.
        note: what to expect of this runtime, if there is something to expect.
    """

    runtime: str
    control: Ratio | None = None
    noise_floor: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class CaseResult(JsonReady):
    """One model under one set of conditions.

    Attributes:
        id: unique in the result, and the same for the same name and conditions in another.
        name: the model's name for people.
        batch: size of axis 0 that all inputs share; None where they do not.
        precision: "as-is", or what every side was converted to.
        threads: threads inside one operator; None leaves each runtime its default.
        inputs: name, dtype and shape of each input that was timed.
        sides: the models, the baseline first.
        rows: in order of runtimes, the baseline first in each.
        runtimes: the A/A control of each runtime.
        fold: the report of the fold, if one side is the folded other.
    """

    id: str
    name: str
    batch: int | None
    precision: str
    threads: int | None
    inputs: tuple[Mapping[str, Any], ...]
    sides: tuple[ModelFile, ...]
    rows: tuple[Row, ...]
    runtimes: tuple[RuntimeControl, ...]
    fold: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class BenchResult(JsonReady):
    """Everything a report is made from. ``print(result)`` says the answer in a line, ``result.summary()`` all of it.

    Attributes:
        cases: one a model and set of conditions.
        options: of the protocol.
        environment: what it ran on.
        created: start in UTC, ISO 8601.
        seconds: the whole measurement took.
        title: heading of the reports.
        command: what to type to measure again.
        extra: further facts for the reports, each ``{"label": …, "value": …}``.
    """

    schema_version: str = field(default=SCHEMA_VERSION, init=False)
    title: str | None = None
    created: str
    seconds: float
    command: str | None = None
    options: Mapping[str, Any]
    environment: Mapping[str, Any]
    extra: Sequence[Mapping[str, str]] = ()
    cases: tuple[CaseResult, ...]

    def summary(self, *, width: int | None = None, colour: bool = False) -> str:
        """All of it as text, as ``convbn bench`` shows it."""
        from convbn.common.document import terminal

        return terminal.rendered(self._document(), width=width, colour=colour)

    def save_json(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the result, by the published schema."""
        self._save(path, json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", overwrite)

    def save_html(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the report as one offline page."""
        from convbn.common.document import html

        self._save(path, html.rendered(self._document()), overwrite)

    def save_markdown(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the report as Markdown of at most 64 kB, as a comment takes it."""
        from convbn.common.document import markdown

        self._save(path, markdown.rendered(self._document()), overwrite)

    def __str__(self) -> str:
        from convbn.bench.report.sections.banner import banner
        from convbn.common.document.model import plain

        return " · ".join(plain(part) for part in banner(self.to_dict()).parts)

    def __repr__(self) -> str:
        return f"<BenchResult of {len(self.cases)} case{'s' if len(self.cases) > 1 else ''}: {self}>"

    def _repr_html_(self) -> str:
        """For a notebook: the report without what it was measured on."""
        from convbn.common.document.html import fragment

        return fragment(self._document().blocks[:-2])

    def _document(self) -> Document:
        from convbn.bench.report.document import document

        return document(self.to_dict())

    def _save(self, path: str | os.PathLike[str], text: str, overwrite: bool) -> None:
        from convbn.export.files.atomic import write_atomically

        write_atomically(path, text.encode("utf-8", "backslashreplace"), overwrite=overwrite)


def case_id(name: str, batch: int | None, precision: str, threads: int | None, taken: Sequence[str]) -> str:
    """An id made of a case's name and conditions, numbered where two cases would share it.

    Args:
        name: of the model; only its letters and digits are kept.
        batch: of the case.
        precision: of the case.
        threads: of the case.
        taken: ids of the cases before it.
    """
    parts = [_slug(name) or "model", _slug(precision)]
    parts += [f"b{batch}"] if batch is not None else []
    parts += [f"t{threads}"] if threads is not None else []
    stem, number = "-".join(parts), 1
    found = stem
    while found in taken:
        number += 1
        found = f"{stem}-{number}"
    return found


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-._")[:80]
