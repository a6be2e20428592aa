"""Engines at work: arrays in, arrays out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from convbn.errors import FileAccessError, NotSupportedError, UsageError
from convbn.export.engines.backends.caches import CacheFile, cache_file
from convbn.export.engines.backends.gpus import list_gpus
from convbn.export.engines.backends.logs import BuildLog, collect
from convbn.export.engines.errors import BuildError, UnsupportedOptionError
from convbn.export.engines.run.buffers import Buffers, host_type, is_cuda_tensor
from convbn.export.engines.run.cuda import Device
from convbn.export.engines.run.interface import checked_input, dims_text, engine_tensors
from convbn.export.engines.run.load import load_engine
from convbn.export.files.atomic import sha256_file

__all__ = ["EngineRunner"]


class EngineRunner:
    """Runs an engine on NumPy arrays or on PyTorch's CUDA tensors.

    Inputs are copied into memory of the runner's own, so that addresses stay the same and the work can be
    replayed as a CUDA graph. Not for use from several threads at once.

    Args:
        path: the engine.
        trust: an engine is a program; true says that this one comes from a trusted place.
        profile: index of the optimisation profile.
        cuda_graph: replay the work as a CUDA graph after the first run on a set of shapes. TensorRT-RTX
            does so itself.
        runtime_cache: TensorRT-RTX compiles kernels when an engine first runs. A folder keeps them for
            the next time, ``auto`` is the user's own; None keeps nothing.

    Attributes:
        inputs: names, types and shapes; -1 is dynamic.
        outputs: likewise.

    Raises:
        UntrustedEngineError: `trust` is false.
        UnsupportedOptionError: classic TensorRT has no runtime cache.
        ConvBNError: see :func:`convbn.export.engines.run.load.load_engine`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        trust: bool = False,
        profile: int = 0,
        cuda_graph: bool = True,
        runtime_cache: str | os.PathLike[str] | None = None,
    ) -> None:
        self._loaded = load_engine(path, trust=trust)
        self._path, self._profile = os.fspath(path), profile
        engine = self._loaded.engine
        if not 0 <= profile < engine.num_optimization_profiles:
            count = engine.num_optimization_profiles
            raise UsageError(f"there is no profile {profile}", source=path, hint=f"the engine has {count}")
        self.inputs, self.outputs = engine_tensors(self._loaded)
        self._cache: Any = None
        self._kept = None if runtime_cache is None else self._cache_file(runtime_cache)
        self._device = Device()
        self._open = True
        self._buffers: Buffers | None = None
        self._graph: int | None = None
        try:
            with collect(self._loaded.trt) as log:
                self._context = self._make_context(cuda_graph, log)
                if profile and not self._context.set_optimization_profile_async(profile, self._device.stream):
                    raise BuildError(f"profile {profile} cannot be used: {_told(log)}", source=path)
            self._device.synchronize()
        except BaseException:
            self._device.close()
            raise
        self._captures = cuda_graph and not self._graphs_itself

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run the engine once.

        Args:
            inputs: an array or tensor for each input, of its exact type.

        Returns:
            The outputs: CUDA tensors if there was one among the inputs, else NumPy arrays.

        Raises:
            UsageError: inputs are missing, unknown, or of another type or shape than the engine takes.
            CaptureError: the work cannot be captured in a CUDA graph.
            BuildError: TensorRT could not run it.
        """
        values = {info.name: checked_input(info, inputs, self._path) for info in self.inputs}
        unknown = [name for name in inputs if name not in values]
        if unknown:
            known = ", ".join(values)
            raise UsageError(
                f"there is no input {unknown[0]!r}", source=self._path, hint=f"there are {known}"
            )
        shapes = {name: tuple(value.shape) for name, value in values.items()}
        buffers = self._buffers
        if buffers is None or buffers.shapes != shapes:
            with collect(self._loaded.trt) as log:
                buffers = self._bind(shapes, log)
        buffers.fill(values)
        if self._graph is not None:
            self._device.launch(self._graph)
        else:
            with collect(self._loaded.trt) as log:
                self._enqueue(log)
        devices = [value.device for value in values.values() if is_cuda_tensor(value)]
        return buffers.tensors(devices[0]) if devices else buffers.arrays()

    def close(self) -> None:
        """Give memory back and write the runtime cache; one that cannot be written is a warning."""
        if self._kept is not None and self._cache is not None:
            data = bytes(self._cache.serialize())
            try:
                self._kept.update(lambda old: data)
            except FileAccessError as error:
                warnings.warn(f"The runtime cache was not written: {error}.", RuntimeWarning, stacklevel=2)
            self._kept = None
        if self._open:
            self._release()
            self._device.close()
            self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cache_file(self, folder: str | os.PathLike[str]) -> CacheFile:
        if not hasattr(self._loaded.engine, "create_runtime_config") or not hasattr(
            self._loaded.trt, "IRuntimeCache"
        ):
            cause = "does not honour option runtime-cache: its engines hold their kernels already"
            raise UnsupportedOptionError(cause, source=self._loaded.backend.name)
        gpus = list_gpus()
        if not gpus:
            cause = "does not honour option runtime-cache: nvidia-smi does not name the GPU"
            raise UnsupportedOptionError(cause, source=self._loaded.backend.name)
        version = str(self._loaded.trt.__version__)
        return cache_file(folder, "runtime", version, gpus[0], part=sha256_file(self._path)[:16])

    def _make_context(self, cuda_graph: bool, log: BuildLog) -> Any:
        trt, engine = self._loaded.trt, self._loaded.engine
        config: Any = engine.create_runtime_config() if hasattr(engine, "create_runtime_config") else None
        self._graphs_itself = config is not None and hasattr(config, "cuda_graph_strategy")
        if self._kept is not None:
            self._cache = config.create_runtime_cache()
            data = self._kept.read()
            if data is not None:
                self._cache.deserialize(data)  # refuses by itself what is of another version or GPU
            config.set_runtime_cache(self._cache)
        if self._graphs_itself and cuda_graph:
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        context = engine.create_execution_context(config) if config else engine.create_execution_context()
        if context is None:
            raise BuildError(f"TensorRT cannot run this engine: {_told(log)}", source=self._path)
        return context

    def _bind(self, shapes: Mapping[str, tuple[int, ...]], log: BuildLog) -> Buffers:
        self._release()
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise UsageError(self._misfit(name, shape), source=self._path)
        outputs = {}
        for info in self.outputs:
            shape = tuple(self._context.get_tensor_shape(info.name))
            if any(dim < 0 for dim in shape):
                cause = f"the shape of output {info.name!r} depends on values, which is not built yet"
                raise NotSupportedError(cause, source=self._path)
            outputs[info.name] = shape
        types = {info.name: host_type(info.dtype) for info in (*self.inputs, *self.outputs)}
        self._buffers = buffers = Buffers(self._device, dict(shapes), outputs, types)
        for name, address in buffers.addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise BuildError(f"TensorRT takes no memory for {name!r}: {_told(log)}", source=self._path)
        return buffers

    def _enqueue(self, log: BuildLog) -> None:
        def enqueue() -> bool:
            return bool(self._context.execute_async_v3(self._device.stream))

        if not enqueue():
            raise BuildError(f"TensorRT cannot run this engine: {_told(log)}", source=self._path)
        if self._captures:  # after a run: the first one on new shapes still prepares things
            self._device.synchronize()
            self._graph = self._device.capture(enqueue)

    def _misfit(self, name: str, shape: tuple[int, ...]) -> str:
        low, _, high = self._loaded.engine.get_tensor_profile_shape(name, self._profile)
        span = f"{dims_text(low)} to {dims_text(high)}" if tuple(low) != tuple(high) else dims_text(low)
        return f"input {name!r} is {dims_text(shape)}, and profile {self._profile} takes {span}"

    def _release(self) -> None:
        if self._graph is not None:
            self._device.drop(self._graph)
            self._graph = None
        if self._buffers is not None:
            self._buffers.free()
            self._buffers = None


def _told(log: BuildLog) -> str:
    return log.first_error() or "it gives no reason"
