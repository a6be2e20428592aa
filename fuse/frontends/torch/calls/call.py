"""One call in an FX graph, as the readers of operators see it, and what they make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convbn.fuse.view.ops import Op

if TYPE_CHECKING:
    import torch.fx

__all__ = ["Call", "Mapped", "Shape"]

Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operator by its ATen name.

    Attributes:
        node: the graph node.
        given: its arguments by their ATen names.
        shape: the shape of a node, None where it is not known.
    """

    node: torch.fx.Node
    given: Mapping[str, Any]
    shape: Callable[[object], Shape | None]

    def tensor(self, name: str = "self") -> torch.fx.Node | None:
        """The graph node at an argument, None where anything else stands there."""
        value = self.given.get(name)
        return value if isinstance(value, type(self.node)) else None

    def rank(self, name: str = "self") -> int | None:
        """The rank of the tensor at an argument."""
        value = self.tensor(name)
        shape = None if value is None else self.shape(value)
        return None if shape is None else len(shape)


@dataclass(frozen=True, slots=True)
class Mapped:
    """What a graph node computes.

    Attributes:
        op: the operator; the channel axis of a convolution is settled once the rank is known.
        slots: by slot, the graph node, the name of the parameter or the number that stands there.
        names: by slot, the argument of the ATen operator; None where it has none for it.
        through: the transposition between the weight and the node, if there is one.
    """

    op: Op
    slots: tuple[torch.fx.Node | str | float | None, ...]
    names: tuple[str | None, ...] = ()
    through: torch.fx.Node | None = None
