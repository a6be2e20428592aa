"""What a runtime gets and what it gives back: sides, options and sessions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from convbn.bench.inputs import Array, Feeds

if TYPE_CHECKING:
    import onnx
    import torch

__all__ = ["Session", "SessionOptions", "Side"]


@dataclass(frozen=True)
class Side:
    """One of the models that are compared, in each form it is at hand.

    Attributes:
        name: what reports call it ("original", "folded").
        onnx: the ONNX model, or the path of its file.
        module: the PyTorch module or exported program.
        example_inputs: positional inputs of ``module``.
    """

    name: str
    onnx: onnx.ModelProto | str | Path | None = field(default=None, repr=False)
    module: torch.nn.Module | torch.export.ExportedProgram | None = field(default=None, repr=False)
    example_inputs: tuple[Any, ...] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class SessionOptions:
    """How a model is run.

    Attributes:
        threads: threads inside one operator; None leaves the runtime's own default.
    """

    threads: int | None = None


class Session(Protocol):
    """A loaded model. Use it as a context manager: leaving it gives back what it changed and holds."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs in order; those of a PyTorch model are known after the first run."""
        ...

    @property
    def compute_dtype(self) -> str | None:
        """The coarsest float type the runtime may round to where the model does not ask for it."""
        ...

    def run(self, feeds: Feeds) -> list[Array]:
        """One inference.

        Args:
            feeds: an array by input name; a PyTorch model takes them as positional inputs in this order.

        Returns:
            The outputs in order.

        Raises:
            SessionError: the runtime cannot run the model on these inputs.
        """
        ...

    def prepare(self, feeds: Feeds) -> Callable[[], None]:
        """Put the inputs where the runtime reads them.

        Args:
            feeds: as in :meth:`run`.

        Returns:
            The call that is timed: exactly one inference, no conversion or copy of inputs or outputs
            inside, and the device has finished when it returns.
        """
        ...

    def close(self) -> None:
        """Give back what the session changed and holds; a second call does nothing."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
