"""One step, in whatever process: its result from the store or its work, its files where they are wanted, an answer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from convbn.common.encoding import encoded
from convbn.common.text import named_line
from convbn.errors import BadInputError, ConvBNError, FileAccessError
from convbn.export.files.atomic import sha256_file
from convbn.export.loading.remote import fetched, has_copy, is_url, shown
from convbn.pipeline.outcome import Outcome, Output, Status
from convbn.pipeline.planning.hashes import Hashes
from convbn.pipeline.step import Step
from convbn.pipeline.store import Entry, Store
from convbn.pipeline.works import Result

__all__ = ["known", "perform"]

_BUG = 70
_REDONE = "what the store had of it did not match its hash; it was made again"


def perform(step: Step, store: Store | None = None) -> Outcome | None:
    """Do a step; an exception becomes a failed outcome with the exit code of the command line.

    Args:
        step: what to do. The work of one that the store keeps is also called with ``folder``, into which it writes
            its files, and ``given``, the entries of what the step needs by their kinds.
        store: of results; a step with a key must have one.

    Returns:
        What became of it; None while another process is making the same.
    """
    start = time.perf_counter()
    copies: dict[str, str] = {}
    try:
        if step.key is None or store is None:
            result = _work(step.work)(**step.options)
            outputs = tuple(Output(path, Path(path).stat().st_size) for path in result.outputs)
            return _ended(step, start, result, outputs)
        for need in step.needs:
            if store.bring(str(need.key)):
                continue
            again = perform(need, store)  # deleted or spoilt since it was found
            if again is None or not again.succeeded:
                return again and _unmet(step, need, again)
        with store.lock(step.key) as held:
            return _kept(step, store, step.key, start, copies) if held else None
    except ConvBNError as error:
        cause, code = str(error), error.exit_code
    except MemoryError:
        cause, code = "there is not enough memory for it", FileAccessError.exit_code
    except OSError as error:
        cause, code = named_line(error), FileAccessError.exit_code
    except Exception as error:
        cause, code = f"internal error: {named_line(error)}", _BUG
    return _ended(step, start, Result(error=_named(cause, copies), exit_code=code), ())


def known(step: Step, store: Store, hashes: Hashes) -> Outcome | None:
    """The outcome of a step whose result is in the store and whose files lie where they are wanted; None of others."""
    entry = None if step.key is None else store.look(step.key)
    if entry is None:
        return None
    outputs: list[Output] = []
    for source in _delivers(step, store, entry):
        if source is None or step.target is None:
            return None
        for name, (size, sha256) in source.shown().items():
            path = f"{step.target}/{name}"
            try:
                if (not is_url(path) and os.path.getsize(path) != size) or hashes.of(path) != sha256:
                    return None
            except (OSError, FileAccessError):
                return None
            outputs.append(Output(shown(path), size, sha256))
    return _cached(step, entry, tuple(outputs))


def _kept(step: Step, store: Store, key: str, start: float, copies: dict[str, str]) -> Outcome:
    """A step whose result the store keeps, and whose lock is held.

    Args:
        step, store, key, start: as they are.
        copies: gets the local copy of each URL that is read.
    """
    entry = store.obtain(key)
    if entry is not None:
        return _cached(step, entry, _delivered(step, store, entry))
    notes = (_REDONE,) if store.discard(key) else ()
    given = {need.kind: _needed(need, store) for need in step.needs}
    with store.making(key) as folder:
        _fetch(step, copies)
        result = _work(step.work)(**_local(dict(step.options), copies), folder=folder, given=given)
        _check_unchanged(step, copies)
        if result.exit_code:
            # What was measured is not lost to a gate, but no later run takes it for a result.
            outputs: tuple[Output, ...] = ()
            if result.report is not None and step.target is not None:
                outputs = Entry.of(folder).deliver(step.target, replaces=step.replaces)
            return _ended(step, start, replace(result, error=_named(result.error, copies)), outputs)
        seconds = time.perf_counter() - start
        entry = store.publish(
            key, kind=step.kind, name=step.name, report=encoded(result.report or {}), seconds=seconds
        )
    return _ended(step, start, result, _delivered(step, store, entry), notes)


def _unmet(step: Step, need: Step, outcome: Outcome) -> Outcome:
    cause = f"it needs {need.name}, which failed: {outcome.error}"
    return replace(outcome, name=step.name, kind=step.kind, error=cause, report=None, outputs=())


def _work(name: str) -> Callable[..., Result]:
    module, _, function = name.partition(":")
    work: Callable[..., Result] = getattr(import_module(module), function)
    return work


def _needed(need: Step, store: Store) -> Entry:
    entry = None if need.key is None else store.find(need.key)
    if entry is None:
        hint = "run the plan again, and it will be made again"
        raise FileAccessError("is no longer in the store", source=f"the result of {need.name}", hint=hint)
    return entry


def _fetch(step: Step, copies: dict[str, str]) -> None:
    """Note local copies of the URLs among a step's options.

    Raises:
        BadInputError: what is there is no longer what the key says.
    """
    named = {
        word
        for value in step.options.values()
        for word in ([value] if isinstance(value, str) else value or ())
    }
    for url, sha256 in step.reads:
        if is_url(url) and url in named:
            copies[url] = str(fetched(url, sha256)[0])


def _local(value: Any, copies: Mapping[str, str]) -> Any:
    """Options with local copies in the place of URLs."""
    if isinstance(value, dict):
        return {key: _local(item, copies) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_local(item, copies) for item in value]
    return copies.get(value, value) if isinstance(value, str) else value


def _named(text: str | None, copies: Mapping[str, str]) -> str | None:
    """A sentence that names what was given, not a copy of it."""
    for url, path in copies.items():
        text = text and text.replace(path, shown(url))
    return text


def _check_unchanged(step: Step, copies: Mapping[str, str]) -> None:
    """What was read must be what the key says, or the result would stand under a wrong name.

    Raises:
        BadInputError: a file is another than when the plan was made.
    """
    for path, sha256 in step.reads:
        untouched = path not in copies or has_copy(path, sha256)
        if not (untouched if is_url(path) else sha256_file(path) == sha256):
            hint = "run the plan again once nobody writes to it"
            raise BadInputError("changed while the plan ran", source=shown(path), hint=hint)


def _delivers(step: Step, store: Store, entry: Entry) -> list[Entry | None]:
    """Entries whose files are wanted outside of the store: its own, and those of steps that it had to wait for."""
    found: list[Entry | None] = []
    for kind in step.delivers:
        need = next((need for need in step.needs if need.kind == kind), None)
        found.append(entry if need is None else store.look(str(need.key)))
    return found


def _delivered(step: Step, store: Store, entry: Entry) -> tuple[Output, ...]:
    if step.target is None:
        return ()
    outputs: list[Output] = []
    for kind, source in zip(step.delivers, _delivers(step, store, entry), strict=True):
        if source is None:
            raise FileAccessError("is no longer in the store", source=f"the {kind} of {step.model}")
        outputs += source.deliver(step.target, replaces=step.replaces)
    return tuple(outputs)


def _cached(step: Step, entry: Entry, outputs: tuple[Output, ...]) -> Outcome:
    return Outcome(step.name, step.kind, step.model, "cached", 0.0, entry.report, outputs=outputs)


def _ended(
    step: Step, start: float, result: Result, outputs: tuple[Output, ...], notes: tuple[str, ...] = ()
) -> Outcome:
    status: Status = "failed" if result.exit_code else "done"
    return Outcome(
        step.name,
        step.kind,
        step.model,
        status,
        time.perf_counter() - start,
        result.report,
        result.error,
        result.exit_code,
        outputs,
        notes,
    )
