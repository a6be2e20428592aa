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
    compared = _runner(files[0])
    if compared.backend != backend:
        compared.close()
        raise SessionError(f"is an engine of {compared.backend}, not of {backend}", source=files[0].path)
    return EngineSession(compared, files[1:], options, "enqueue" if "enqueue" in levels else "graph")


def _runner(file: EngineFile) -> EngineRunner:
    # The capture is the benchmark's own, so that replays stand between its events.
    return EngineRunner(file.path, trust=file.trust, cuda_graph=False, settled=True)


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
        compared: what runs the engine whose outputs are compared; closed with the session.
        timed: the engine that is timed, if it is another one; it is loaded when it is.
        options: how to run it.
        mode: how an inference is started while it is timed.
    """

    def __init__(
        self, compared: EngineRunner, timed: Sequence[EngineFile], options: SessionOptions, mode: GpuMode
    ) -> None:
        self._compared, self._timed, self._options, self._mode = compared, timed, options, mode
        self._held = ExitStack()
        self._held.callback(compared.close)
        self.output_names = tuple(info.name for info in compared.outputs)
        # TF32 rounds the inputs of a convolution to a 10-bit mantissa, as float16 has.
        self.compute_dtype: str | None = None if compared.tf32 is False else "float16"

    def run(self, feeds: Feeds) -> list[Array]:
        """One inference (see :class:`convbn.bench.runtimes.base.Session`)."""
        outputs = self._compared(self._typed(feeds))
        return [outputs[name] for name in self.output_names]

    def prepare(self, feeds: Feeds) -> Prepared:
        """Put the inputs into device memory."""
        timed = self._compared
        for file in self._timed:
            timed = self._held.enter_context(_runner(file))
        timed.place(self._typed(feeds))
        gpu = GpuStream(self._options.l2, timed.device)
        self._held.callback(gpu.close)
        prepared = gpu.prepared(timed.enqueue, self._mode)
        return replace(prepared, device=prepared.device and replace(prepared.device, tf32=timed.tf32))

    def close(self) -> None:
        """Free the engine and its memory."""
        self._held.close()

    def _typed(self, feeds: Feeds) -> dict[str, Any]:
        """The inputs that the engine has, in its types."""
        known = [info for info in self._compared.inputs if info.name in feeds]
        return {info.name: feeds[info.name].astype(host_type(info.dtype), copy=False) for info in known}
