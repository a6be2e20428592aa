"""The result of planning: each BatchNorm folded (where) or kept (why), and the list of edits."""

from __future__ import annotations

from dataclasses import dataclass, field

from convbn.fuse.refusal import Reason
from convbn.fuse.view.edits import Edit

__all__ = ["Folded", "Kept", "Merged", "Plan"]


@dataclass(frozen=True, slots=True)
class Folded:
    """A BatchNorm that goes: into which nodes, by which rule."""

    name: str
    into: tuple[str, ...]
    rule: str


@dataclass(frozen=True, slots=True)
class Kept:
    """A BatchNorm that stays, and why."""

    name: str
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Merged:
    """Linear branches or chains that become one node."""

    names: tuple[str, ...]
    into: str
    rule: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with a model, before anything is done.

    Attributes:
        folded, kept: every BatchNorm of the view stands in exactly one of them.
        merged: nodes that became part of others.
        edits: what the frontend must do, in this order.
        moved: values that become another function of the inputs by a fold.
        merges: of each merge, the nodes that it edits; values between them are others, too.
    """

    folded: list[Folded] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    merged: list[Merged] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    merges: list[tuple[str, ...]] = field(default_factory=list)
