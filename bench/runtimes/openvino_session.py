"""ONNX models in OpenVINO's CPU plugin.

On CPUs with such units OpenVINO computes float32 models in bfloat16 by itself. Here it is told to keep to
float32, so that a row called fp32 is that; the level ``auto`` leaves it the choice, and outputs are then judged
by the type it chose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convbn.bench.models.errors import RuntimeMissingError, SessionError
from convbn.bench.runtimes.base import (
    Levels,
    Prepared,
    Runtime,
    Session,
    SessionOptions,
    Variant,
    onnx_source,
)
from convbn.common.dtypes import dtype_of
from convbn.common.text import one_line

if TYPE_CHECKING:
    from convbn.bench.models.inputs import Array, Feeds

__all__ = ["RUNTIMES"]

#: OpenVINO's names of the float types it may compute in, where they are not the element type's own.
_COMPUTE = {"f32": None, "dynamic": None, "f16": "float16", "bf16": "bfloat16"}


def load() -> Any:
    """OpenVINO.

    Raises:
        RuntimeMissingError: it is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise RuntimeMissingError(
            f"OpenVINO cannot be used ({one_line(error, 200)})",
            hint="pip install 'convbn[openvino]'",
        ) from error
    return openvino


def open_session(model: Variant, options: SessionOptions, levels: Levels) -> OpenVinoSession:
    """Compile the ONNX form of a variant for the CPU.

    Args:
        model: the model.
        options: how to run it.
        levels: ``auto`` or nothing.

    Returns:
        The session.

    Raises:
        ModelFormMissingError: the variant has no ONNX form.
        RuntimeMissingError: OpenVINO is not installed.
        SessionError: OpenVINO refuses the model.
    """
    source, openvino = onnx_source(model, "OpenVINO"), load()
    properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if "auto" not in levels:
        properties["INFERENCE_PRECISION_HINT"] = "f32"
    if options.threads is not None:
        properties["INFERENCE_NUM_THREADS"] = options.threads
    try:
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(source), "CPU", properties)
    except Exception as error:  # OpenVINO raises RuntimeError and what its conversion of the model meets
        raise _typed(error, model.name, "load") from error
    return OpenVinoSession(compiled, model.name)


RUNTIMES = (
    Runtime(
        "openvino-cpu",
        "cpu",
        "onnx",
        "the ONNX graph in OpenVINO's CPU plugin, in float32; `@auto` leaves OpenVINO the float type",
        load=load,
        open=open_session,
        levels=(("auto",),),
        folds="OpenVINO folds BatchNorm into convolutions itself when it compiles a model",
        packages=("openvino",),
    ),
)


class OpenVinoSession(Session):
    """A compiled model with one inference request, whose outputs stay where it writes them while it is timed."""

    def __init__(self, compiled: Any, name: str) -> None:
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._name = name
        self.output_names = tuple(min(output.get_names() or {""}) for output in compiled.outputs)
        chosen = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.compute_dtype: str | None = _COMPUTE.get(chosen, chosen)

    def run(self, feeds: Feeds) -> list[Array]:
        """One inference (see :class:`convbn.bench.runtimes.base.Session`)."""
        self._place(feeds)
        return [_array(self._request.get_output_tensor(i)) for i in range(len(self.output_names))]

    def prepare(self, feeds: Feeds) -> Prepared:
        """Put the inputs into the request."""
        self._place(feeds)
        request = self._request
        # Without share_outputs every call would copy the outputs into new arrays.
        return Prepared(lambda: request.infer(share_outputs=True))

    def close(self) -> None:
        """Free the model."""
        self._request = self._compiled = None

    def _place(self, feeds: Feeds) -> None:
        """Set the inputs and run once, so that the outputs have their memory."""
        try:
            for port in self._compiled.inputs:
                name = next((name for name in port.get_names() if name in feeds), None)
                if name is not None:
                    self._request.set_tensor(port, _tensor(feeds[name]))
            self._request.infer(share_outputs=True)
        except Exception as error:  # OpenVINO raises RuntimeError for a wrong shape and for a failing kernel
            raise _typed(error, self._name, "run") from error


def _tensor(array: Array) -> Any:
    import numpy as np
    import openvino

    # The type of an array that was pickled does not count as built in before it is looked up again.
    array = np.ascontiguousarray(array).view(dtype_of(array.dtype.name))
    if array.dtype.name == "bfloat16":
        return openvino.Tensor(array.view(np.uint16), array.shape, openvino.Type.bf16)
    return openvino.Tensor(array)


def _array(tensor: Any) -> Array:
    import numpy as np
    import openvino

    # NumPy has no bfloat16, and OpenVINO shows its bytes as if they were float16.
    data = (
        tensor.data.view(dtype_of("bfloat16")) if tensor.element_type == openvino.Type.bf16 else tensor.data
    )
    return np.array(data)


def _typed(error: Exception, name: str, action: str) -> SessionError:
    text = one_line(error)
    return SessionError(f"OpenVINO cannot {action} the model ({text[:300]})", source=name)
