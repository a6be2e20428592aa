"""TensorRT and TensorRT-RTX engines: a file is loaded and run, never built here.

The level after ``@`` says how an inference is started: ``graph`` replays a CUDA graph that was captured once,
``enqueue`` launches every kernel from the host. None is ``graph``.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from convbn.bench.models.errors import ModelFormMissingError, SessionError
from convbn.bench.models.inputs import Array, Feeds
from convbn.bench.runtimes.base import Prepared, SessionOptions, Variant
from convbn.bench.runtimes.gpu.nvml import GpuMode
from convbn.bench.runtimes.gpu.stream import GpuStream
from convbn.errors import ConvBNError
from convbn.export.dtypes import host_type
from convbn.export.engines.backends.registry import backend_named
from convbn.export.engines.run.cuda import require_gpu
from convbn.export.engines.run.runner import EngineRunner

__all__ = ["EngineSession", "load_library", "open_session"]


def load_library(device: str, variant: str) -> None:
    """Import a TensorRT and find a GPU.

    Raises:
        RuntimeMissingError: one of them is missing.
    """
    backend_named(variant).load()
    require_gpu(source=variant)


def open_session(
    model: Variant, options: SessionOptions, device: str, variant: str, level: str | None
) -> EngineSession:
    """Load the engine of a variant.

    Args:
        model: the model; the file that ``engines`` holds for the runtime is used.
        options: how to run it.
        device: always ``cuda``.
        variant: ``tensorrt`` or ``tensorrt-rtx``.
        level: ``graph`` or ``enqueue``; None is ``graph``.

    Returns:
        The session.

    Raises:
        ModelFormMissingError: the variant has no engine for this runtime.
        UntrustedEngineError: nobody said that the engine is trusted.
        RuntimeMissingError: the runtime or a GPU is missing.
        SessionError: the engine belongs to another runtime.
        ConvBNError: the engine could not be built, or the runtime refuses it.
    """
    file = model.engines.get(variant)
    if file is None:
        raise ModelFormMissingError(
            f"{variant} needs an engine built for it",
            source=model.name,
            hint=f"convbn export MODEL -o model.engine --backend {variant}",
        )
    if isinstance(file, ConvBNError):
        raise file
    load_library(device, variant)
    # The capture is the benchmark's own, so that replays stand between its events.
    runner = EngineRunner(file.path, trust=file.trust, cuda_graph=False, settled=True)
    if runner.backend != variant:
        runner.close()
        raise SessionError(f"is an engine of {runner.backend}, not of {variant}", source=file.path)
    return EngineSession(runner, options, "enqueue" if level == "enqueue" else "graph")


class EngineSession:
    """An engine with its inputs and outputs in device memory of its own.

    Args:
        runner: what runs the engine; closed with the session.
        options: how to run it.
        mode: how an inference is started while it is timed.
    """

    def __init__(self, runner: EngineRunner, options: SessionOptions, mode: GpuMode) -> None:
        self._runner, self._mode = runner, mode
        self._gpu = GpuStream(options.l2, runner.device)
        self.output_names = tuple(info.name for info in runner.outputs)
        # TF32 rounds the inputs of a convolution to a 10-bit mantissa, as float16 has.
        self.compute_dtype: str | None = "float16" if runner.tf32 else None

    def run(self, feeds: Feeds) -> list[Array]:
        """One inference (see :class:`convbn.bench.runtimes.base.Session`)."""
        outputs = self._runner(self._typed(feeds))
        return [outputs[name] for name in self.output_names]

    def prepare(self, feeds: Feeds) -> Prepared:
        """Put the inputs into device memory."""
        self._runner.place(self._typed(feeds))
        return self._gpu.prepared(self._runner.enqueue, self._mode)

    def close(self) -> None:
        """Free the engine and its memory."""
        self._gpu.close()
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _typed(self, feeds: Feeds) -> dict[str, Any]:
        """The inputs that the engine has, in its types."""
        known = [info for info in self._runner.inputs if info.name in feeds]
        return {info.name: feeds[info.name].astype(host_type(info.dtype), copy=False) for info in known}
