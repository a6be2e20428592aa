"""Engines at work: arrays in, arrays out; and one inference at a time for whoever measures."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

from convbn.common.closing import Closing
from convbn.common.text import shape_text
from convbn.errors import FileAccessError, NotSupportedError, UsageError
from convbn.export.dtypes import host_type
from convbn.export.engines.backends.caches import CacheFile, cache_file
from convbn.export.engines.backends.gpus import list_gpus
from convbn.export.engines.backends.logs import BuildLog, collect
from convbn.export.engines.build.builder import TensorInfo
from convbn.export.engines.errors import BuildError, UnsupportedOptionError
from convbn.export.engines.run.buffers import Buffers, checked_input, is_cuda_tensor
from convbn.export.engines.run.cuda import CudaDevice
from convbn.export.engines.run.load import LoadedEngine, load_engine
from convbn.export.files.atomic import sha256_file

__all__ = ["EngineRunner"]


class EngineRunner(Closing):
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
        settled: let TensorRT-RTX compile the kernels for a set of shapes before it first runs on them. By
            default it does so in the background and gets faster meanwhile.

    Attributes:
        backend: name of the TensorRT that runs the engine.
        inputs: names, types and shapes; -1 is dynamic.
        outputs: likewise.
        tf32: whether float32 layers may round their inputs to TF32; None where no sidecar says how the engine
            was built.
        device: the GPU, with the stream that the work is put on.

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
        settled: bool = False,
    ) -> None:
        loaded = load_engine(path, trust=trust)
        self._path, self._profile, self._trt = os.fspath(path), profile, loaded.trt
        count = loaded.engine.num_optimization_profiles
        if not 0 <= profile < count:
            raise UsageError(f"there is no profile {profile}", source=path, hint=f"the engine has {count}")
        self.backend = loaded.backend.name
        self.tf32: bool | None = None if loaded.sidecar is None else bool(loaded.sidecar["tf32"])
        self.inputs, self.outputs = _tensors(loaded, self._path)
        self._cache: Any = None
        self._kept = None if runtime_cache is None else _cache_file(loaded, runtime_cache, self._path)
        self._buffers: Buffers | None = None
        self._graph: int | None = None
        self._loaded: LoadedEngine | None = loaded
        self._context: Any = None
        self.device = CudaDevice()
        try:
            with collect(self._trt) as log:
                self._context = self._make_context(loaded, cuda_graph, settled, log)
                if profile and not self._context.set_optimization_profile_async(profile, self.device.stream):
                    raise BuildError(f"profile {profile} cannot be used: {_told(log)}", source=path)
            self.device.synchronize()
        except BaseException:
            self._context = None
            self.device.close()
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
        buffers = self.place(inputs)
        if self._graph is not None:
            self.device.launch(self._graph)
        else:
            with collect(self._trt) as log:
                self.enqueue(log)
                if self._captures:  # after a run: the first one on new shapes still prepares things
                    self.device.synchronize()
                    self._graph = self.device.capture(lambda: self.enqueue(log))
        devices = [value.device for value in inputs.values() if is_cuda_tensor(value)]
        return buffers.tensors(devices[0]) if devices else buffers.arrays()

    def place(self, inputs: Mapping[str, Any]) -> Buffers:
        """Copy inputs to where :meth:`enqueue` reads them. Memory is allocated once for a set of shapes.

        Raises:
            UsageError: see :meth:`__call__`.
        """
        if self._context is None:
            raise UsageError("the engine was closed", source=self._path)
        values = {info.name: checked_input(info, inputs, self._path) for info in self.inputs}
        unknown = [name for name in inputs if name not in values]
        if unknown:
            hint = f"there are {', '.join(values)}"
            raise UsageError(f"there is no input {unknown[0]!r}", source=self._path, hint=hint)
        self.device.enter()
        shapes = {name: tuple(value.shape) for name, value in values.items()}
        buffers = self._buffers
        if buffers is None or buffers.shapes != shapes:
            with collect(self._trt) as log:
                buffers = self._bind(shapes, log)
        buffers.fill(values)
        return buffers

    def enqueue(self, log: BuildLog | None = None) -> None:
        """Put one inference on the stream, on what was placed last.

        Args:
            log: what TensorRT says meanwhile.

        Raises:
            BuildError: TensorRT could not do it.
        """
        if not self._context.execute_async_v3(self.device.stream):
            raise BuildError(f"TensorRT cannot run this engine: {_told(log)}", source=self._path)

    def close(self) -> None:
        """Give memory back and write the runtime cache; one that cannot be written is a warning."""
        if self._kept is not None and self._cache is not None:
            data = bytes(self._cache.serialize())
            try:
                self._kept.update(lambda old: data)
            except FileAccessError as error:
                warnings.warn(f"The runtime cache was not written: {error}.", RuntimeWarning, stacklevel=2)
            self._kept = None
        if self._context is not None:
            self._release()
            # TensorRT's objects go before the hold on the context that they live in.
            self._context = self._cache = self._loaded = None
            self.device.close()

    def _make_context(self, loaded: LoadedEngine, cuda_graph: bool, settled: bool, log: BuildLog) -> Any:
        trt, engine = loaded.trt, loaded.engine
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
        if settled and hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
            strategies = trt.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
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
        buffers = Buffers(self.device, dict(shapes), outputs, types)
        self._buffers = buffers
        for name, address in buffers.addresses.items():
            if not self._context.set_tensor_address(name, address):
                self._release()
                raise BuildError(f"TensorRT takes no memory for {name!r}: {_told(log)}", source=self._path)
        return buffers

    def _misfit(self, name: str, shape: tuple[int, ...]) -> str:
        engine: Any = None if self._loaded is None else self._loaded.engine
        low, _, high = engine.get_tensor_profile_shape(name, self._profile)
        span = f"{shape_text(low)} to {shape_text(high)}" if tuple(low) != tuple(high) else shape_text(low)
        return f"input {name!r} is {shape_text(shape)}, and profile {self._profile} takes {span}"

    def _release(self) -> None:
        if self._graph is not None:
            self.device.drop(self._graph)
            self._graph = None
        if self._buffers is not None:
            self._buffers.free()
            self._buffers = None


def _tensors(loaded: LoadedEngine, path: str) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """Inputs and outputs of an engine."""
    engine = loaded.engine
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    for name in names:
        if engine.get_tensor_location(name) != loaded.trt.TensorLocation.DEVICE:
            raise NotSupportedError(f"tensor {name!r} holds a shape, which is not built yet", source=path)
    infos = [TensorInfo(n, engine.get_tensor_dtype(n).name, tuple(engine.get_tensor_shape(n))) for n in names]
    inputs = [name for name in names if engine.get_tensor_mode(name) == loaded.trt.TensorIOMode.INPUT]
    return (
        tuple(info for info in infos if info.name in inputs),
        tuple(info for info in infos if info.name not in inputs),
    )


def _cache_file(loaded: LoadedEngine, folder: str | os.PathLike[str], path: str) -> CacheFile:
    cause = "does not honour option runtime-cache: "
    if not hasattr(loaded.engine, "create_runtime_config") or not hasattr(loaded.trt, "IRuntimeCache"):
        cause += "its engines hold their kernels already"
        raise UnsupportedOptionError(cause, source=loaded.backend.name)
    gpus = list_gpus()
    if not gpus:
        cause += "nvidia-smi does not name the GPU"
        raise UnsupportedOptionError(cause, source=loaded.backend.name)
    version = str(loaded.trt.__version__)
    return cache_file(folder, "runtime", version, gpus[0], part=sha256_file(path)[:16])


def _told(log: BuildLog | None) -> str:
    return (log and log.first_error()) or "it gives no reason"
