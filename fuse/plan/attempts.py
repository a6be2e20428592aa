"""Memory of failed attempts: a map is tried again only after something it looked at has changed."""

from __future__ import annotations

from dataclasses import dataclass

from convbn.fuse.refusal import Refusal
from convbn.fuse.view.dataflow import Node
from convbn.fuse.view.view import View

__all__ = ["Attempts", "Footprint"]

Footprint = dict[int, Node]
"""The nodes that an attempt looked at, by identity."""


@dataclass(frozen=True, slots=True)
class _Tried:
    clock: int
    thorough: bool
    footprint: Footprint


class Attempts:
    """The refusals so far, and whether they still hold."""

    def __init__(self) -> None:
        self.refusals: dict[str, Refusal] = {}
        self._tried: dict[int, _Tried] = {}

    def in_vain(self, node: Node, *, thorough: bool) -> bool:
        """Whether trying again would give the same refusal."""
        tried = self._tried.get(id(node))
        if tried is None or (thorough and not tried.thorough):
            return False
        return all(seen.changed <= tried.clock for seen in tried.footprint.values())

    def note(self, view: View, node: Node, refusal: Refusal, footprint: Footprint, *, thorough: bool) -> None:
        """Keep a refusal, and what it rests on."""
        if node.op.is_batchnorm:  # of others no report speaks
            self.refusals[node.name] = Refusal(refusal.reason, refusal.detail)
        self._tried[id(node)] = _Tried(view.clock, thorough, footprint)
