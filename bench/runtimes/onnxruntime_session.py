"""ONNX models in onnxruntime: its CPU, CUDA and TensorRT providers.

The level after ``@`` is onnxruntime's graph optimisation level: ``off`` runs the graph as it stands,
``basic`` folds constants and fuses what any device can, ``all`` is its default. In the CUDA provider float32 is
computed in float32; ``tf32`` allows a 10-bit mantissa while a model is timed, ``cuda-graph`` replays a captured
CUDA graph, and ``nhwc`` lets it choose kernels for channels-last data. Outputs are compared without any of the
three. A provider that leaves a part of the model to another is refused: the time would be that of a mixture.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from convbn.bench.models.errors import KernelMissingError, SessionError
from convbn.bench.runtimes.base import (
    Levels,
    Prepared,
    Runtime,
    Session,
    SessionOptions,
    Variant,
    onnx_source,
)
from convbn.bench.runtimes.onnxruntime_providers import PROVIDERS, import_onnxruntime, require_provider
from convbn.common.dtypes import dtype_of
from convbn.common.text import one_line

if TYPE_CHECKING:
    import onnx

    from convbn.bench.models.inputs import Array, Feeds
    from convbn.bench.runtimes.gpu.nvml import GpuMode
    from convbn.bench.runtimes.gpu.stream import GpuStream

__all__ = ["RUNTIMES", "OnnxRuntimeSession", "load_session"]

_LEVELS = {"off": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "all": "ORT_ENABLE_ALL"}
#: Options of the CUDA provider by the level that sets them.
_CUDA_LEVELS = {"tf32": "use_tf32", "cuda-graph": "enable_cuda_graph", "nhwc": "prefer_nhwc"}
_ERRORS_ONLY = 3


def open_session(variant: str, model: Variant, options: SessionOptions, levels: Levels) -> OnnxRuntimeSession:
    """Load the ONNX form of a variant.

    Args:
        variant: the provider: ``cpu``, ``cuda`` or ``tensorrt``.
        model: the model; its ``onnx`` is used, a path goes to onnxruntime as a path.
        options: how to run it.
        levels: see :data:`RUNTIMES`; without a level of optimisation it is ``all``.

    Returns:
        The session.

    Raises:
        ModelFormMissingError: the variant has no ONNX form.
        RuntimeMissingError: onnxruntime or its provider is missing, or would not take all of the model.
        KernelMissingError: onnxruntime has no kernel for an operator in the type the model uses.
        SessionError: onnxruntime refuses the model.
    """
    source = onnx_source(model, "onnxruntime")
    onnxruntime = import_onnxruntime(variant)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _ERRORS_ONLY
    optimisation = next((_LEVELS[level] for level in levels if level in _LEVELS), _LEVELS["all"])
    settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, optimisation)
    # An idle session's threads would go on spinning into the next block and slow the other variant down: seen
    # on two cores as a median of 10 ms for a model that takes 1.3 ms alone.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
    gpu = None
    if variant != "cpu":
        from convbn.bench.runtimes.gpu.stream import GpuStream

        gpu = GpuStream(options.l2)
    provider = PROVIDERS[variant]

    def make(chosen: Levels) -> Any:
        given = (provider, provider_options(variant, chosen, None if gpu is None else gpu.stream))
        try:
            session = onnxruntime.InferenceSession(source, settings, providers=[given])
        except Exception as error:  # onnxruntime's errors share no base class below Exception
            raise _typed(error, model.name, "load") from error
        if gpu is not None:
            require_provider(session, provider, model.name)
        return session

    with ExitStack() as undo:
        if gpu is not None:
            undo.callback(gpu.close)
        session = make(())
        undo.pop_all()
    timed = tuple(level for level in levels if level in _CUDA_LEVELS)
    return OnnxRuntimeSession(
        session, model.name, gpu, variant, timed, partial(make, timed) if timed else None
    )


def load_session(
    model: onnx.ModelProto | bytes, name: str, *, folder: Path | None = None, level: str = "off"
) -> OnnxRuntimeSession:
    """A model on the CPU, given as such or serialized.

    Args:
        model: the model.
        name: what errors call it.
        folder: where its external data lies.
        level: ``off``, ``basic`` or ``all``.

    Raises:
        KernelMissingError, SessionError: as in :func:`open_session`.
    """
    onnxruntime = import_onnxruntime("cpu")
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _ERRORS_ONLY
    settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[level])
    if folder is not None:
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    try:
        data = model if isinstance(model, bytes) else model.SerializeToString()
        session = onnxruntime.InferenceSession(data, settings, providers=[PROVIDERS["cpu"]])
    except Exception as error:  # onnxruntime's errors share no base class below Exception
        raise _typed(error, name, "load") from error
    return OnnxRuntimeSession(session, name, None)


def provider_options(variant: str, levels: Levels, stream: int | None) -> dict[str, str]:
    """What a provider is told.

    Args:
        variant: ``cpu``, ``cuda`` or ``tensorrt``.
        levels: those of the CUDA provider that are on; its own defaults do not count.
        stream: on which it runs. It is ours, so that events on it stand right before and after an inference.
    """
    told = {} if stream is None else {"user_compute_stream": str(stream)}
    if variant == "cuda":
        told |= {option: str(int(level in levels)) for level, option in _CUDA_LEVELS.items()}
    return told


def _runtime(variant: Literal["cpu", "cuda", "tensorrt"], runs: str, *further: Levels) -> Runtime:
    library = "TensorRT" if variant == "tensorrt" else "onnxruntime"
    when = "builds an engine" if variant == "tensorrt" else "loads a model"
    return Runtime(
        f"onnxruntime-{variant}",
        "cpu" if variant == "cpu" else "cuda",
        "onnx",
        runs,
        load=partial(import_onnxruntime, variant),
        open=partial(open_session, variant),
        levels=(tuple(_LEVELS), *further),
        folds=f"{library} folds BatchNorm into convolutions itself when it {when}",
        as_it_stands=None if variant == "tensorrt" else "off",
        self_fused={"off": "all", "basic": "all"},
        packages=("onnxruntime", "onnxruntime-gpu"),
    )


RUNTIMES = (
    _runtime("cpu", "the ONNX graph at that level of its optimiser; `@all` is the default"),
    _runtime("cuda", "likewise, in onnxruntime's CUDA provider", *((level,) for level in _CUDA_LEVELS)),
    _runtime("tensorrt", "likewise, in onnxruntime's TensorRT provider"),
)


class OnnxRuntimeSession(Session):
    """A model in onnxruntime. Outputs stay on the device while it is timed.

    Args:
        session: runs the model to compare it.
        name: of the variant, for errors.
        gpu: its stream; None on a CPU.
        variant: the provider.
        timed: levels that hold for the timing alone.
        make: loads the model at these levels; None if there are none.
    """

    def __init__(
        self,
        session: Any,
        name: str,
        gpu: GpuStream | None,
        variant: str = "cpu",
        timed: Levels = (),
        make: Callable[[], Any] | None = None,
    ) -> None:
        self._session = session
        self._name = name
        self._gpu = gpu
        self._timed = timed
        self._make = make
        self.output_names = tuple(str(output.name) for output in session.get_outputs())
        # TensorRT may use TF32, a 10-bit mantissa as float16 has, and the provider has no option against it.
        self._tf32 = variant == "tensorrt" or "tf32" in timed
        self.compute_dtype: str | None = "float16" if variant == "tensorrt" else None

    def run(self, feeds: Feeds, only: Sequence[str] | None = None) -> list[Array]:
        """One inference (see :class:`convbn.bench.runtimes.base.Session`), of some outputs if they are named."""
        try:
            outputs = self._session.run_with_ort_values(only, self._values(feeds, "cpu"))
            return [_array(value) for value in outputs]
        except SessionError:
            raise
        except Exception as error:  # onnxruntime's errors share no base class below Exception
            raise _typed(error, self._name, "run") from error

    def prepare(self, feeds: Feeds) -> Prepared:
        """Bind inputs and outputs to the device."""
        session = self._session if self._make is None else self._make()
        binding = session.io_binding()
        device = "cpu" if self._gpu is None else "cuda"
        try:
            for name, value in self._values(feeds, device).items():
                binding.bind_ortvalue_input(name, value)
            for name in self.output_names:
                binding.bind_output(name, device)
            session.run_with_iobinding(binding)
            outputs = binding.get_outputs()
            # From here on each run writes into the memory of the first: no allocation inside the timing.
            for name, value in zip(self.output_names, outputs, strict=True):
                if value.is_tensor():
                    binding.bind_ortvalue_output(name, value)
            session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's errors share no base class below Exception
            raise _typed(error, self._name, "run") from error
        if self._gpu is None:
            return Prepared(lambda: session.run_with_iobinding(binding))
        import onnxruntime

        run = onnxruntime.RunOptions()
        # The events wait for the stream; a wait inside each run would be timed as if it were work.
        run.add_run_config_entry("disable_synchronize_execution_providers", "1")
        prepared = self._gpu.prepared(lambda: session.run_with_iobinding(binding, run), "enqueue")
        mode: GpuMode = "graph" if "cuda-graph" in self._timed else "enqueue"
        there = prepared.device and replace(prepared.device, mode=mode, tf32=self._tf32)
        return replace(prepared, device=there)

    def close(self) -> None:
        """Free the model."""
        self._session = self._make = None
        if self._gpu is not None:
            self._gpu.close()
            self._gpu = None

    def _values(self, feeds: Feeds, device: str) -> dict[str, Any]:
        return {
            str(i.name): _value(feeds[i.name], device) for i in self._session.get_inputs() if i.name in feeds
        }


def _value(array: Array, device: str) -> Any:
    import numpy as np
    import onnxruntime
    from onnx import helper

    # The type of an array that was pickled does not count as built in before it is looked up again.
    array = np.ascontiguousarray(array).view(dtype_of(array.dtype.name))
    if array.dtype.isbuiltin == 1:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)
    # bfloat16 and the 8-bit floats are no numpy types, so onnxruntime has to be told what the bytes are.
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    value = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, kind)
    if device == "cpu":
        return value
    there = onnxruntime.OrtValue.ortvalue_from_shape_and_type(array.shape, kind, device, 0)
    # It takes the types that numpy has: the bytes travel as integers of their size.
    there.update_inplace(array.view(f"u{array.dtype.itemsize}"))
    return there


def _array(value: Any) -> Array:
    import numpy as np
    from onnx import helper

    if not value.is_tensor():
        raise SessionError("an output is not a tensor, so it cannot be compared")
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.element_type()))
    if dtype.isbuiltin == 1 or dtype.kind == "O":
        return np.asarray(value.numpy())
    size = value.tensor_size_in_bytes()
    raw = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(raw, dtype=dtype).reshape(value.shape())


def _typed(error: Exception, name: str, action: str) -> SessionError:
    text = one_line(error)
    missing = type(error).__name__ == "NotImplemented" or "NOT_IMPLEMENTED" in text
    kind = KernelMissingError if missing else SessionError
    return kind(f"onnxruntime cannot {action} the model ({text[:300]})", source=name)
