"""What a runtime is, what it gets and what it gives back: variants, options and sessions.

A new runtime is one file that defines a :class:`Runtime`, and its row in
:mod:`convbn.bench.runtimes.registry`. What a runtime needs is imported when it is asked for, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeAlias

from convbn.bench.models.errors import ModelFormMissingError, SessionError
from convbn.bench.runtimes.gpu.nvml import L2, GpuMode
from convbn.errors import ConvBNError

if TYPE_CHECKING:
    import onnx
    import torch

    from convbn.bench.models.inputs import Array, Feeds
    from convbn.export.engines.run.load import EngineFile

__all__ = [
    "Device",
    "Form",
    "Levels",
    "Prepared",
    "Runtime",
    "Session",
    "SessionOptions",
    "Variant",
    "onnx_source",
]

#: What a runtime runs: the ONNX form of a variant, its PyTorch form, or an engine built from the ONNX form.
Form: TypeAlias = Literal["onnx", "torch", "engine"]
#: What stands behind ``@`` in a runtime's name, split at ``+``.
Levels: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """One of the models that are compared, in each form it is at hand.

    Attributes:
        name: what reports call it ("original", "folded").
        onnx: the ONNX model, or the path of its file.
        module: the PyTorch module or exported program.
        example_inputs: positional inputs of ``module``.
        engines: files of TensorRT engines, by the name of the runtime that runs them, those built with TF32 by
            ``NAME@tf32``; or why there is none.
        build_seconds: what building each of these took, if they were built just now.
        path: the file it came from, where ``onnx`` is not that file's path itself.
        sha256: of that file.
        self_fused: the runtime is to optimise this variant as it likes, whatever its level; runtimes without
            a level to choose have no such variant.
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
        tf32: whether float32 products may be rounded to TF32, a 10-bit mantissa; None if that is not known.
    """

    name: str
    bus_id: str
    mode: GpuMode
    l2: L2
    tf32: bool | None = None


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

    call: Callable[[], object]
    device_times: Callable[[int], list[float]] | None = None
    device: Device | None = None


class Session(Protocol):
    """A loaded model. Use it as a context manager: leaving it gives back what it changed and holds.

    Attributes:
        output_names: names of the outputs in order; those of a PyTorch model are known after the first run.
        compute_dtype: the coarsest float type the runtime may round to where the model does not ask for it.
    """

    output_names: tuple[str, ...]
    compute_dtype: str | None

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Runtime:
    """A way to run models, as ``--runtime`` names it.

    Attributes:
        name: without a level.
        device: where models run.
        form: what it runs.
        runs: what is executed and how, for the table of runtimes.
        load: imports what it needs and gets a compiler ready, so that opening a model is only that; raises
            RuntimeMissingError, with the command that brings what is missing.
        open: loads the form of a variant that the runtime takes, at some of its levels.
        levels: groups of levels; a name has one of each group at most.
        folds: what the runtime does to BatchNorm by itself, so that a ratio near 1 is expected; None if nothing.
        as_it_stands: the level at which it does not.
        self_fused: by each level that keeps the runtime from optimising, the level that lets it.
        packages: distributions whose versions belong beside every figure.
        versions: further versions, which only the imported library knows; called only where it is imported.
    """

    name: str
    device: Literal["cpu", "cuda"]
    form: Form
    runs: str
    load: Callable[[], object]
    open: Callable[[Variant, SessionOptions, Levels], Session]
    levels: tuple[Levels, ...] = ()
    folds: str | None = None
    as_it_stands: str | None = None
    self_fused: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    versions: Callable[[], Mapping[str, str]] = dict


def onnx_source(model: Variant, library: str) -> str | bytes:
    """The ONNX form of a variant as a library loads it: the path of its file, or the bytes of the model.

    Args:
        model: the model.
        library: that needs it.

    Raises:
        ModelFormMissingError: the variant has no ONNX form.
        SessionError: it lies in memory and has weights in other files, or over 2 GB of them.
    """
    if model.onnx is None:
        raise ModelFormMissingError(
            f"{library} needs an ONNX model",
            source=model.name,
            hint="export one first, or give an .onnx file",
        )
    if isinstance(model.onnx, str | Path):
        return str(model.onnx)
    from onnx import TensorProto

    outside = [t.name for t in model.onnx.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    if outside:
        raise SessionError(
            f"tensor {outside[0]!r} lies in another file, which a model in memory has no path to",
            source=model.name,
            hint="give the path of the .onnx file instead of the model",
        )
    try:
        data: bytes = model.onnx.SerializeToString()
    except Exception as error:  # protobuf's error type for a message over 2 GB differs between releases
        raise SessionError(
            "is over 2 GB in memory", source=model.name, hint="save it with external data and give its path"
        ) from error
    return data
