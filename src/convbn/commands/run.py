"""``convbn run``: a plan of many models, whose steps are kept, on this machine or on a Ray cluster."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from convbn.commands.many import reports
from convbn.commands.many.progress import Progress
from convbn.commands.steps.reporting import append_summary
from convbn.commands.steps.shared import console_of, write_json, write_text
from convbn.commands.steps.targets import replaces
from convbn.common.document import html, markdown, terminal
from convbn.common.document.terminal import Painter, terminal_width
from convbn.common.text import printable
from convbn.errors import FileAccessError, UsageError
from convbn.export.files.atomic import check_target
from convbn.export.loading.remote import is_url, shown
from convbn.pipeline.outcome import Outcome, exit_code
from convbn.pipeline.perform import known, perform
from convbn.pipeline.planning.changes import LastRun
from convbn.pipeline.planning.expand import Expansion, expand
from convbn.pipeline.planning.models import Model, models_of
from convbn.pipeline.planning.plan import Plan, read_plan
from convbn.pipeline.planning.template import TEMPLATE
from convbn.pipeline.remote_store import opened
from convbn.pipeline.runners.pool import Runner, run_steps
from convbn.pipeline.step import Step

if TYPE_CHECKING:
    from convbn.commands.steps.console import Console

__all__ = ["run"]

_USUAL = "convbn.toml"
_MOST_BYTES = 2_000_000
"""Of a page of many models."""


def run(options: argparse.Namespace) -> int:
    """Do what a plan says and is not done yet; the exit code is the worst of its steps."""
    console = console_of(options)
    if options.init:
        path = options.plan or _USUAL
        write_text(path, TEMPLATE, overwrite=options.force)
        console.written(path)
        return 0
    if options.plan is None:
        raise UsageError("PLAN is missing", hint="convbn run --init writes one with every key explained")
    planned = _Planned(read_plan(options.plan, store=options.store), options)
    if options.list:
        return planned.listed(console)
    begun, created = time.monotonic(), datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    planned.check_reports()
    outcomes, stopped = planned.done()
    planned.report(outcomes, time.monotonic() - begun, created, console)
    if stopped is not None:
        raise stopped
    return exit_code(outcomes)


class _Planned:
    """A plan whose models were found, with its steps and the store."""

    def __init__(self, plan: Plan, options: argparse.Namespace) -> None:
        self._plan = plan
        self._options = options
        self._store = opened(plan.store, hashed=True)
        self._hashes = self._store.hashes
        self._last = LastRun(plan, self._store)
        self._models: list[Model] = models_of(plan, self._hashes)
        self._expansion: Expansion = expand(
            plan,
            self._models,
            machine=_machine(options.ray),
            replaceable=None if options.force else self._replaceable,
        )
        self._keys = [step.key for step in self._expansion.steps if step.key is not None]
        self._store.prepare(self._keys)

    def _replaceable(self, path: str) -> bool:
        """Whether a file may be replaced: the last run delivered it, and nobody has changed it since."""
        sha256 = self._last.delivered.get(shown(path))
        with suppress(FileAccessError):
            return sha256 is not None and self._hashes.of(path) == sha256
        return False

    def _known(self, step: Step) -> Outcome | None:
        return known(step, self._store, self._hashes)

    def listed(self, console: Console) -> int:
        """Say what would run, and why."""
        models = {model.name: model for model in self._models}
        rows = [
            (step.name, "cached")
            if self._known(step) is not None
            else (step.name, self._last.reason(step, models, self._expansion))
            for step in self._expansion.steps
        ]
        self._hashes.keep()
        painter = Painter(terminal_width(), colour=False)
        width = min(max(len(name) for name, _ in rows), painter.width // 2)
        for name, why in rows:
            start = name.ljust(width) if len(name) <= width else " " * width
            for line in (
                *(painter.paragraph(name) if len(name) > width else ()),
                *painter.paragraph(why, start=f"{start}  ", indent=width + 2),
            ):
                console.say(line)
        cached = sum(why == "cached" for _, why in rows)
        console.say(f"{len(rows) - cached} of {len(rows)} steps would run, {cached} are cached")
        write_json(self._options.json, {"steps": [{"name": name, "why": why} for name, why in rows]})
        return 0

    def done(self) -> tuple[list[Outcome], BaseException | None]:
        """Do the steps; what stopped them, if something did."""
        steps = self._expansion.steps
        found = {step: outcome for step in steps if (outcome := self._known(step)) is not None}
        if len(found) == len(steps):
            self._keep(list(found.values()))
            return list(found.values()), None
        self._store.check_writable()
        self._store.sweep()
        with self._runner() as runner, Progress(len(steps), quiet=self._options.quiet) as progress:
            ran = run_steps(
                steps, runner, on_event=progress, known=lambda step: found.get(step) or self._known(step)
            )
        for step, outcome in zip(steps, ran.outcomes, strict=True):
            # The memory of this process: workers have delivered into their own.
            if outcome.succeeded and step.target is not None and step.target.startswith("memory://"):
                perform(step, self._store)
        self._keep(ran.outcomes)
        return ran.outcomes, ran.stopped

    def _keep(self, outcomes: Sequence[Outcome]) -> None:
        try:
            self._store.complete(self._keys)
        except FileAccessError as error:  # the reports come first
            sys.stderr.write(
                f"convbn: {printable(str(error))}; the next run tries again to bring results there\n"
            )
        self._hashes.keep()
        self._last.keep(self._models, self._expansion, outcomes)

    def _runner(self) -> Runner:
        given = self._plan.section("run")
        retries = given.get("retries", 1)
        workers = self._options.workers or given.get("workers")
        if self._options.ray is not None:
            from convbn.pipeline.runners.ray_tasks import RayRunner

            return RayRunner(self._options.ray, workers, retries=retries, store=self._plan.store)
        from convbn.export.engines.build.options import parse_size
        from convbn.pipeline.runners.workers import LocalRunner

        memory = parse_size(given["memory"]) if "memory" in given else None
        return LocalRunner(workers, memory=memory, retries=retries, store=self._plan.store)

    def _targets(self) -> dict[str, str]:
        """Where each report goes: as typed, or as the plan says."""
        planned = {name: self._plan.place(path) for name, path in self._plan.section("reports").items()}
        typed = {name: getattr(self._options, name) for name in ("json", "junit", "markdown", "html")}
        return planned | {name: path for name, path in typed.items() if path is not None}

    def _files(self) -> Iterator[str]:
        """What belongs to the models of the plan, and what was made of them."""
        yield from (path for model in self._models for path, _ in model.reads)
        yield from self._last.delivered

    def check_reports(self) -> None:
        """Refuse now what could not be written later; a plan's own reports are replaced, as they are its output."""
        taken: list[tuple[str, str]] = []
        for name, path in self._targets().items():
            if path != "-" and not is_url(path):
                there = self._files() if os.path.exists(path) else ()
                replaces(
                    f"the {name} report",
                    path,
                    [*((f"{one}, which is a model", one) for one in there), *taken],
                )
                taken.append((f"the {name} report", path))
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                check_target(path, overwrite=True)

    def report(self, outcomes: Sequence[Outcome], seconds: float, created: str, console: Console) -> None:
        """The table on the terminal, and every report that was asked for."""
        name = self._plan.name
        shown = reports.document(f"run {name}", seconds, outcomes)
        console.say(terminal.rendered(shown).rstrip("\n"))
        targets = self._targets()
        if "json" in targets:
            write_json(targets["json"], reports.result_of(name, created, seconds, outcomes))
        if "junit" in targets:
            write_text(targets["junit"], reports.junit(name, created, seconds, outcomes), overwrite=True)
        if "markdown" in targets:
            write_text(targets["markdown"], markdown.rendered(shown), overwrite=True)
        if "html" in targets:
            linked = reports.document(f"run {name}", seconds, outcomes, os.path.dirname(targets["html"]))
            for path, page in reports.pages(linked, targets["html"]):
                write_text(path, html.rendered(page, _MOST_BYTES), overwrite=True)
        if self._options.step_summary:
            append_summary(
                Path(self._options.step_summary), lambda room: markdown.rendered(shown, most_bytes=room)
            )


def _machine(ray: str | None) -> str:
    """What figures depend on beside the software. Of another machine's there is only what the plan asks for."""
    if ray not in (None, "local"):
        return "cluster"
    from convbn.bench.results.environment import describe_environment

    facts = describe_environment()
    return f"{platform.machine()} {facts['cpu']} {facts['cores']} {[gpu['name'] for gpu in facts['gpus']]}"
