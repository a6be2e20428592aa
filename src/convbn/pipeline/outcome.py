"""What became of one step: the record that every table, page and JSON of many models is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from convbn.common.encoding import JsonReady

__all__ = ["Outcome", "Output", "Status", "counts", "exit_code"]

Status = Literal["done", "cached", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Output(JsonReady):
    """A file that a step made.

    Attributes:
        path: where it lies.
        bytes: its size.
        sha256: its hash; None where nobody asked for it.
    """

    path: str
    bytes: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome(JsonReady):
    """What became of one step.

    Attributes:
        name: the step's, unique in its run.
        kind: the step's, such as ``fold``, or the verb it ran.
        model: name of the model it worked on.
        status: ``done``; ``cached``: it was found in the store; ``failed``; ``cancelled``: the run was stopped, or a
            step that this one needs did not succeed.
        seconds: that it took when it was done.
        report: the JSON of the verb, or a summary of it.
        error: why it failed or was cancelled: the source, the cause and the way out.
        exit_code: as of the command line: 0 where there is no error.
        outputs: files that it made.
        notes: what else is worth knowing, in sentences.
    """

    name: str
    kind: str
    model: str
    status: Status
    seconds: float = 0.0
    report: Mapping[str, Any] | None = None
    error: str | None = None
    exit_code: int = 0
    outputs: tuple[Output, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def succeeded(self) -> bool:
        """Whether what was wanted of the step is there."""
        return self.status in ("done", "cached")


def counts(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many steps are done, cached, failed and cancelled."""
    found = dict.fromkeys(("done", "cached", "failed", "cancelled"), 0)
    for outcome in outcomes:
        found[outcome.status] += 1
    return found


def exit_code(outcomes: Iterable[Outcome]) -> int:
    """The worst exit code of all; that of what failed comes before that of what was never tried."""
    return max((outcome.exit_code for outcome in outcomes), default=0)
