"""The report of a fold: one value, the same for every frontend, written as versioned JSON.

The published schema is ``fuse/fuse-report.schema.json``; ``tests/cli/test_fuse_command.py`` holds the two
against each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from convbn.common import __version__
from convbn.common.encoding import JsonReady, encoded
from convbn.errors import Concern
from convbn.fuse.options import FuseOptions
from convbn.fuse.plan.plan import Folded, Kept, Merged
from convbn.fuse.refusal import Reason

__all__ = ["SCHEMA_VERSION", "Before", "Key", "Report", "Seconds"]

SCHEMA_VERSION = "1"

_OF_THE_MODEL_ITSELF = (
    Reason.TRAINING_MODE,
    Reason.PARAMETERS_MALFORMED,
    Reason.BAD_STATISTICS,
    Reason.OUT_OF_RANGE,
)
"""Reasons to stay that say of a BatchNorm that its model is not what one would deploy."""


@dataclass(frozen=True, slots=True)
class Before(JsonReady):
    """A count before and after the fold."""

    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Seconds:
    """Wall time of each step, in seconds."""

    capture: float = 0.0
    fold: float = 0.0
    verify: float = 0.0

    def to_dict(self) -> dict[str, float]:
        """As JSON, with the total."""
        total = self.capture + self.fold + self.verify
        steps = {"capture": self.capture, "fold": self.fold, "verify": self.verify, "total": total}
        return {name: round(value, 6) for name, value in steps.items()}


@dataclass(frozen=True, slots=True)
class Key(JsonReady):
    """What became of one key of a state dict.

    Attributes:
        old: the key in the original's state dict; None for one that came.
        new: the key in the result's state dict; None for one that went.
        status: ``"same"`` or ``"changed"`` numbers, ``"gone"`` or ``"new"``.
        into: the layers that took in the BatchNorm whose key went.
    """

    old: str | None
    new: str | None
    status: str
    into: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """What a fold did, or would do. ``print(report)`` says it in a line, ``report.summary()`` in full.

    Attributes:
        kind: what came in: ``"onnx"``, ``"onnx-graphsurgeon"``, ``"torch.nn.Module"`` or
            ``"torch.export.ExportedProgram"``.
        batchnorm: number of BatchNorms before and after.
        nodes: number of operator calls before and after.
        operators: those by operator: first what the fold changed, then the most frequent.
        size: bytes of the file before and after, with those that hold its weights; None where no file became another.
        folded: the BatchNorms that went, each with the nodes that took it in and the rule.
        kept: those that stay, each with its reason. Every BatchNorm stands once, here or in ``folded``.
        merged: nodes that became one.
        options: those the fold ran with.
        how: how the dataflow was obtained, and what that proves.
        seconds: wall time of each step.
        verify: the outcome of the numerical comparison, ``{"status": "not run", "reason": …}`` without one.
        path: the file it came from, if any.
        sha256: of that file.
        notes: what was done to the input before it could be read, in sentences.
        keys: what became of each key of the state dict; nothing for ONNX models.
        rounding: the unit roundoff ``u`` of what each node now stores, by its name. In every output channel
            ``max|stored − exact| ≤ u · max|exact|``, where exact is the fold in float64.
        normalisations: those that are no BatchNorm, by kind, and how many there are: they stay.
        graph: ``nodes`` and ``edges`` of the model as it came, for a picture; None where there are too many.
        moved: values that a fold changed on purpose, for the proof. The JSON does not hold them, nor `merges`.
        merges: of each merge, the nodes that it edited; values between them are changed, too.
    """

    kind: str
    batchnorm: Before
    nodes: Before
    folded: tuple[Folded, ...]
    kept: tuple[Kept, ...]
    merged: tuple[Merged, ...]
    options: FuseOptions
    how: str
    seconds: Seconds
    verify: Mapping[str, Any] = field(
        default_factory=lambda: {"status": "not run", "reason": "not asked for"}
    )
    path: str | None = None
    sha256: str | None = None
    notes: tuple[str, ...] = ()
    keys: tuple[Key, ...] = ()
    rounding: Mapping[str, float] = field(default_factory=dict)
    normalisations: Mapping[str, int] = field(default_factory=dict)
    operators: Mapping[str, Before] = field(default_factory=dict)
    size: Before | None = None
    graph: Mapping[str, Any] | None = None
    moved: tuple[str, ...] = ()
    merges: tuple[tuple[str, ...], ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What ``--strict`` does not let pass: numbers that are none, training mode, a graph that is not valid."""
        kept = (k for k in self.kept if k.reason in _OF_THE_MODEL_ITSELF)
        return (
            *(note for note in self.notes if isinstance(note, Concern)),
            *(f"{k.name} stays, {k.reason}: {k.detail}" for k in kept),
        )

    def summary(self, *, width: int | None = None, colour: bool = False) -> str:
        """All of it as text, as ``convbn fuse`` shows it.

        Args:
            width: columns; those of the terminal without.
            colour: whether verdicts are coloured.
        """
        from convbn.common.document.terminal import laid_out
        from convbn.fuse.summary import fold_blocks

        return "\n".join(laid_out(fold_blocks(self.to_dict()), width=width, colour=colour))

    def __str__(self) -> str:
        from convbn.common.document.model import plain
        from convbn.fuse.summary import fold_banner

        return " · ".join(plain(part) for part in fold_banner(self.to_dict()).parts)

    def __repr__(self) -> str:
        return f"<Report of {self.path or self.kind}: {self}>"

    def _repr_html_(self) -> str:
        """For a notebook: the answer, the network, what stays and why."""
        from convbn.common.document.html import fragment
        from convbn.fuse.summary import fold_blocks

        return fragment(fold_blocks(self.to_dict()))

    def to_dict(self) -> dict[str, Any]:
        """As JSON, by the published schema."""
        return {
            "schema_version": SCHEMA_VERSION,
            "tool": {"name": "convbn", "version": __version__},
            "input": {"kind": self.kind, "path": self.path, "sha256": self.sha256, "notes": list(self.notes)},
            "batchnorm": self.batchnorm.to_dict(),
            "nodes": self.nodes.to_dict(),
            "operators": encoded(self.operators),
            "size": encoded(self.size),
            "folded": [{**encoded(one), "bound": self._bound(one)} for one in self.folded],
            "kept": encoded(self.kept),
            "merged": encoded(self.merged),
            "normalisations": dict(self.normalisations),
            "graph": encoded(self.graph),
            "options": self.options.to_dict(),
            "keys": encoded(self.keys),
            "how": self.how,
            "verify": dict(self.verify),
            "seconds": self.seconds.to_dict(),
        }

    def _bound(self, folded: Folded) -> float | None:
        return max((self.rounding[name] for name in folded.into if name in self.rounding), default=None)
