"""What a runtime gets and what it gives back: sides, options and sessions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from convbn.bench.models.inputs import Array, Feeds
from convbn.bench.runtimes.nvml import L2, GpuMode
from convbn.errors import ConvBNError

if TYPE_CHECKING:
    import onnx
    import torch

    from convbn.export.engines.run.load import EngineFile

__all__ = ["Device", "Prepared", "Session", "SessionOptions", "Side"]


@dataclass(frozen=True)
class Side:
    """One of the models that are compared, in each form it is at hand.

    Attributes:
        name: what reports call it ("original", "folded").
        onnx: the ONNX model, or the path of its file.
        module: the PyTorch module or exported program.
        example_inputs: positional inputs of ``module``.
        engines: files of TensorRT engines, by the name of the runtime that runs them; or why there is none.
        build_seconds: what building each of these took, if they were built just now.
        path: the file it came from, where ``onnx`` is not that file's path itself.
        sha256: of that file.
        self_fused: the runtime is to optimise this side as it likes, whatever its level; runtimes without
            a level to choose have no such side.
    """

    name: str
    onnx: onnx.ModelProto | str | Path | None = field(default=None, repr=False)
    module: torch.nn.Module | torch.export.ExportedProgram | None = field(default=None, repr=False)
    example_inputs: tuple[Any, ...] | None = field(default=None, repr=False)
    engines: Mapping[str, EngineFile | ConvBNError] = field(default_factory=dict, repr=False)
    build_seconds: Mapping[str, float] = field(default_factory=dict, repr=False)
    path: str | None = None
    sha256: str | None = None
    self_fused: bool = False


@dataclass(frozen=True)
class SessionOptions:
    """How a model is run.

    Attributes:
        threads: threads inside one operator; None leaves the runtime's own default.
        l2: whether a GPU's L2 cache is left as the inference before left it, or overwritten before each.
    """

    threads: int | None = None
    l2: L2 = "warm"


@dataclass(frozen=True)
class Device:
    """The GPU a session runs on.

    Attributes:
        name: as CUDA gives it.
        bus_id: its place on the PCI bus, ``0000:3b:00.0``.
        mode: how inferences are started.
        l2: what is done with its L2 cache.
    """

    name: str
    bus_id: str
    mode: GpuMode
    l2: L2


@dataclass(frozen=True)
class Prepared:
    """A model with its inputs in place.

    Attributes:
        call: exactly one inference, no conversion or copy of inputs or outputs inside; the device has
            finished when it returns.
        device_times: seconds of each of n inferences by the device's own clock; None where the host's clock
            around ``call`` is the clock to go by.
        device: the GPU; None on a CPU.
    """

    call: Callable[[], None]
    device_times: Callable[[int], list[float]] | None = None
    device: Device | None = None


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

    def prepare(self, feeds: Feeds) -> Prepared:
        """Put the inputs where the runtime reads them.

        Args:
            feeds: as in :meth:`run`.

        Returns:
            What is timed.

        Raises:
            SessionError: the runtime cannot run the model on these inputs.
        """
        ...

    def close(self) -> None:
        """Give back what the session changed and holds; a second call does nothing."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
