"""ONNX models in onnxruntime: its CPU, CUDA and TensorRT providers.

The level after ``@`` is onnxruntime's graph optimisation level: ``off`` runs the graph as it stands,
``basic`` folds constants and fuses what any device can, ``all`` is its default. A provider that leaves a part
of the model to another is refused: the time would be that of a mixture.
"""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from convbn.bench.models.errors import KernelMissingError, ModelFormMissingError, SessionError
from convbn.bench.models.inputs import Array, Feeds
from convbn.bench.runtimes.base import Prepared, SessionOptions, Side
from convbn.bench.runtimes.onnxruntime_providers import PROVIDERS, import_onnxruntime, require_provider
from convbn.common.dtypes import dtype_of

if TYPE_CHECKING:
    from convbn.bench.runtimes.gpu_stream import GpuStream

__all__ = ["load_library", "open_session"]

_LEVELS = {"off": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "all": "ORT_ENABLE_ALL"}
_ERRORS_ONLY = 3


def load_library(device: str, variant: str) -> None:
    """Import onnxruntime.

    Raises:
        RuntimeMissingError: it or its provider is missing.
    """
    import_onnxruntime(variant)


def open_session(
    side: Side, options: SessionOptions, device: str, variant: str, level: str | None
) -> OnnxRuntimeSession:
    """Load the ONNX form of a side.

    Args:
        side: the model; its ``onnx`` is used, a path goes to onnxruntime as a path.
        options: how to run it.
        device: ``cpu`` or ``cuda``.
        variant: the provider: ``cpu``, ``cuda`` or ``tensorrt``.
        level: ``off``, ``basic`` or ``all``; None is ``all``.

    Returns:
        The session.

    Raises:
        ModelFormMissingError: the side has no ONNX form.
        RuntimeMissingError: onnxruntime or its provider is missing, or would not take all of the model.
        KernelMissingError: onnxruntime has no kernel for an operator in the type the model uses.
        SessionError: onnxruntime refuses the model.
    """
    if side.onnx is None:
        raise ModelFormMissingError(
            "onnxruntime needs an ONNX model",
            source=side.name,
            hint="export one first, or give an .onnx file",
        )
    onnxruntime = import_onnxruntime(variant)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _ERRORS_ONLY
    settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[level or "all"])
    # An idle session's threads would go on spinning into the next block and slow the other side down: seen
    # on two cores as a median of 10 ms for a model that takes 1.3 ms alone.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
    source = str(side.onnx) if isinstance(side.onnx, str | Path) else _serialized(side)
    gpu = None
    provider: Any = PROVIDERS[variant]
    if device == "cuda":
        from convbn.bench.runtimes.gpu_stream import GpuStream

        gpu = GpuStream(options.l2)
        # The stream is ours, so that events on it stand right before and after an inference.
        provider = (provider, {"user_compute_stream": str(gpu.stream)})
    with ExitStack() as undo:
        if gpu is not None:
            undo.callback(gpu.close)
        try:
            session = onnxruntime.InferenceSession(source, settings, providers=[provider])
        except Exception as error:  # onnxruntime's errors share no base class below Exception
            raise _typed(error, side.name, "load") from error
        if gpu is not None:
            require_provider(session, PROVIDERS[variant], side.name)
        undo.pop_all()
    return OnnxRuntimeSession(session, side.name, gpu)


class OnnxRuntimeSession:
    """A model in onnxruntime. Outputs stay on the device while it is timed."""

    def __init__(self, session: Any, name: str, gpu: GpuStream | None) -> None:
        self._session = session
        self._name = name
        self._gpu = gpu
        self.output_names = tuple(str(output.name) for output in session.get_outputs())
        # TF32 is on by default in the CUDA provider: a 10-bit mantissa, as float16 has.
        self.compute_dtype: str | None = None if gpu is None else "float16"

    def run(self, feeds: Feeds) -> list[Array]:
        """One inference (see :class:`convbn.bench.runtimes.base.Session`)."""
        try:
            outputs = self._session.run_with_ort_values(None, self._values(feeds, "cpu"))
            return [_array(value) for value in outputs]
        except SessionError:
            raise
        except Exception as error:  # onnxruntime's errors share no base class below Exception
            raise _typed(error, self._name, "run") from error

    def prepare(self, feeds: Feeds) -> Prepared:
        """Bind inputs and outputs to the device."""
        session = self._session
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
        return self._gpu.prepared(lambda: session.run_with_iobinding(binding, run), "enqueue")

    def close(self) -> None:
        """Free the model."""
        self._session = None
        if self._gpu is not None:
            self._gpu.close()
            self._gpu = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _values(self, feeds: Feeds, device: str) -> dict[str, Any]:
        return {
            str(i.name): _value(feeds[i.name], device) for i in self._session.get_inputs() if i.name in feeds
        }


def _value(array: Array, device: str) -> Any:
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
    there.update_inplace(array)
    return there


def _array(value: Any) -> Array:
    from onnx import helper

    if not value.is_tensor():
        raise SessionError("an output is not a tensor, so it cannot be compared")
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.element_type()))
    if dtype.isbuiltin == 1 or dtype.kind == "O":
        return np.asarray(value.numpy())
    size = value.tensor_size_in_bytes()
    raw = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(raw, dtype=dtype).reshape(value.shape())


def _serialized(side: Side) -> bytes:
    from onnx import TensorProto

    model: Any = side.onnx
    outside = [t.name for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    if outside:
        raise SessionError(
            f"tensor {outside[0]!r} lies in another file, which a model in memory has no path to",
            source=side.name,
            hint="give the path of the .onnx file instead of the model",
        )
    try:
        data: bytes = model.SerializeToString()
    except Exception as error:  # protobuf's error type for a message over 2 GB differs between releases
        raise SessionError(
            "is over 2 GB in memory", source=side.name, hint="save it with external data and give its path"
        ) from error
    return data


def _typed(error: Exception, name: str, action: str) -> SessionError:
    text = " ".join(str(error).split()) or type(error).__name__
    missing = type(error).__name__ == "NotImplemented" or "NOT_IMPLEMENTED" in text
    kind = KernelMissingError if missing else SessionError
    return kind(f"onnxruntime cannot {action} the model ({text[:300]})", source=name)
