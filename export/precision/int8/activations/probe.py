"""Runs a model on calibration data and hands out values from inside it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from convbn.common.progress import Progress
from convbn.common.text import one_line
from convbn.errors import ConvBNError
from convbn.export.onnx_io.read import save_model
from convbn.export.precision.errors import CalibrationError
from convbn.export.precision.int8.samples import Array

if TYPE_CHECKING:
    from convbn.export.precision.int8.samples import Calibration

__all__ = ["values"]


def _with_outputs(model: onnx.ModelProto, wanted: Sequence[str]) -> onnx.ModelProto:
    """A copy whose outputs are these values; inputs and outputs of the model may be among them."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    known = {value.name: value for value in (*made.graph.input, *made.graph.output)}
    outputs = [known.get(name) or onnx.ValueInfoProto(name=name) for name in wanted]
    outputs = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in outputs]
    del made.graph.output[:]
    made.graph.output.extend(outputs)
    return made


def values(
    model: onnx.ModelProto,
    wanted: Sequence[str] | None,
    calibration: Calibration,
    *,
    phase: str = "",
    progress: Progress | None = None,
) -> Iterator[list[Array]]:
    """The values of each sample, in the order in which they are named.

    Args:
        model: left as it is.
        wanted: names of values of its main graph; None for its outputs.
        calibration: the samples.
        phase: what `progress` is told.
        progress: called before each sample.

    Raises:
        CalibrationError: onnxruntime cannot run the model on these inputs.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Left on, they might take a cast there and back for nothing, or what is quantised into kernels of their own.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory(prefix="convbn-") as folder:
        path = Path(folder) / "probed.onnx"
        save_model(model if wanted is None else _with_outputs(model, wanted), path)
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for number, sample in enumerate(calibration.samples()):
                if progress is not None:
                    progress(phase, number, len(calibration))
                yield list(session.run(None, dict(sample)))
        except (ConvBNError, GeneratorExit):  # of a sample that cannot be read
            raise
        except Exception as error:  # onnxruntime's errors share no base class below Exception
            cause = f"onnxruntime cannot run the model on the calibration data ({one_line(error, 200)})"
            raise CalibrationError(cause, source=calibration.origin) from error
