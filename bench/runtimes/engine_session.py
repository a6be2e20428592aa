"""TensorRT and TensorRT-RTX engines: a file is loaded and run, never built here.

A level after ``@`` says how an inference is started: ``graph`` replays a CUDA graph that was captured once, ``enqueue``
launches every kernel from the host; neither is ``graph``. The level ``tf32`` times an engine that was built with TF32,
a 10-bit mantissa; outputs are those of one that was built without.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from convbn.bench.models.errors import ModelFormMissingError, SessionError
from convbn.bench.models.inputs import Array, Feeds
from convbn.bench.runtimes.base import Levels, Prepared, Session, SessionOptions, Variant
from convbn.bench.runtimes.gpu.nvml import GpuMode
from convbn.bench.runtimes.gpu.stream import GpuStream
from convbn.errors import ConvBNError
from convbn.export.dtypes import host_type
from convbn.export.engines.backends.registry import backend_named
from convbn.export.engines.run.cuda import require_gpu
from convbn.export.engines.run.load import EngineFile
from convbn.export.engines.run.runner import EngineRunner

__all__ = ["EngineSession", "load_library", "open_session"]


def load_library(backend: str) -> None:
    """Import a TensorRT and find a GPU.

    Raises:
        RuntimeMissingError: one of them is missing.
    """
    backend_named(backend).load()
    require_gpu(source=backend)


def open_session(model: Variant, options: SessionOptions, backend: str, levels: Levels) -> EngineSession:
    """Load the engine of a variant.

    Args:
        model: the model; the files that ``engines`` holds for the runtime are used.
        options: how to run it.
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        levels: ``graph`` or ``enqueue``, and ``tf32``.

    Returns:
        The session.

    Raises:
        ModelFormMissingError: the variant has no engine for this runtime.
        UntrustedEngineError: nobody said that the engine is trusted.
        RuntimeMissingError: the runtime or a GPU is missing.
        SessionError: the engine belongs to another runtime.
        ConvBNError: the engine could not be built, or the runtime refuses it.
    """
    names = [backend, f"{backend}@tf32"] if "tf32" in levels else [backend]
    files = [_file(model, name) for name in names]
    load_library(backend)
    with ExitStack() as undo:
        # The capture is the benchmark's own, so that replays stand between its events.
        runners = [
            undo.enter_context(EngineRunner(file.path, trust=file.trust, cuda_graph=False, settled=True))
            for file in files
        ]
        if runners[0].backend != backend:
            cause = f"is an engine of {runners[0].backend}, not of {backend}"
            raise SessionError(cause, source=files[0].path)
        return EngineSession(runners, options, "enqueue" if "enqueue" in levels else "graph", undo.pop_all())


def _file(model: Variant, name: str) -> EngineFile:
    file = model.engines.get(name)
    if file is None:
        backend, _, tf32 = name.partition("@")
        raise ModelFormMissingError(
            f"{name} needs an engine built for it",
            source=model.name,
            hint=f"convbn export MODEL -o model.engine --backend {backend}{'' if tf32 else ' --no-tf32'}",
        )
    if isinstance(file, ConvBNError):
        raise file
    return file


class EngineSession(Session):
    """An engine with its inputs and outputs in device memory of its own.

    Args:
        runners: what runs the engine whose outputs are compared, and last the one that is timed.
        options: how to run it.
        mode: how an inference is started while it is timed.
        held: what closes the runners.
    """

    def __init__(
        self, runners: Sequence[EngineRunner], options: SessionOptions, mode: GpuMode, held: ExitStack
    ) -> None:
        self._compared, self._timed, self._mode, self._held = runners[0], runners[-1], mode, held
        self._gpu = GpuStream(options.l2, self._timed.device)
        self.output_names = tuple(info.name for info in self._compared.outputs)
        # TF32 rounds the inputs of a convolution to a 10-bit mantissa, as float16 has.
        self.compute_dtype: str | None = None if self._compared.tf32 is False else "float16"

    def run(self, feeds: Feeds) -> list[Array]:
        """One inference (see :class:`convbn.bench.runtimes.base.Session`)."""
        outputs = self._compared(self._typed(feeds))
        return [outputs[name] for name in self.output_names]

    def prepare(self, feeds: Feeds) -> Prepared:
        """Put the inputs into device memory."""
        timed = self._timed
        timed.place(self._typed(feeds))
        prepared = self._gpu.prepared(timed.enqueue, self._mode)
        return replace(prepared, device=prepared.device and replace(prepared.device, tf32=timed.tf32))

    def close(self) -> None:
        """Free the engine and its memory."""
        self._gpu.close()
        self._held.close()

    def _typed(self, feeds: Feeds) -> dict[str, Any]:
        """The inputs that the engine has, in its types."""
        known = [info for info in self._compared.inputs if info.name in feeds]
        return {info.name: feeds[info.name].astype(host_type(info.dtype), copy=False) for info in known}
