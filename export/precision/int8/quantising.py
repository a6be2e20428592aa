"""int8 by onnxruntime's static quantisation, set so that TensorRT's parser takes the result.

Left to itself onnxruntime quantises biases to int32, which the parser refuses, and the outputs of convolutions,
which puts a rounding between them and their activation. Here the inputs and weights of the chosen operators
are quantised and nothing else: symmetric, inputs by a QuantizeLinear and DequantizeLinear pair, weights by output
channel and stored as int8. Biases stay float32.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbn.common.text import one_line
from convbn.errors import ConvBNError
from convbn.export.onnx_io.read import load_model, save_model
from convbn.export.precision.errors import CalibrationError, PrecisionError
from convbn.export.precision.int8.names import free_names, give_back
from convbn.export.precision.selection import Kept

if TYPE_CHECKING:
    import onnx

    from convbn.export.precision.int8.samples import Calibration, Feeds
    from convbn.export.precision.options import PrecisionOptions

__all__ = ["activation_ranges", "left_in_float32", "quantise", "quantised_nodes", "through_quantisation"]

#: onnxruntime's mark of a model that went through its own preparation, which folds BatchNorms too. Without it
#: a warning goes to the root logger; it is taken away again.
_MARK = ("onnx.quant.pre_process", "onnxruntime.quant")
_LARGE = 1_500_000_000
_METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}


def left_in_float32(model: onnx.ModelProto, options: PrecisionOptions) -> tuple[Kept, ...]:
    """Nodes of the chosen operators that are not quantised: those named, and those without constant weights."""
    stored = {tensor.name for tensor in model.graph.initializer}
    asked, kept = set(options.keep_fp32), []
    for node in model.graph.node:
        if node.op_type in options.quantise and node.name in asked:
            kept.append(Kept(node.name, node.op_type, "asked for", "the options name it"))
        elif node.op_type in options.quantise and node.op_type != "Add" and node.input[1] not in stored:
            kept.append(Kept(node.name, node.op_type, "operator", "its second input is no constant weight"))
    return tuple(kept)


def quantise(
    model: onnx.ModelProto, calibration: Calibration, options: PrecisionOptions, kept: Sequence[Kept]
) -> onnx.ModelProto:
    """Quantise the inputs and weights of the chosen operators.

    Args:
        model: prepared, see :func:`convbn.export.precision.graphs.prepared`, in opset 13 or later, which scales by
            channel need; left as it is.
        calibration: at least one sample.
        options: method and operators.
        kept: see :func:`left_in_float32`.

    Returns:
        A new model.

    Raises:
        PrecisionError: the model holds none of the operators.
        CalibrationError: onnxruntime cannot calibrate with this data.
    """
    from onnxruntime import quantization as ort

    wanted = [
        n for n in model.graph.node if n.op_type in options.quantise and n.name not in options.keep_fp32
    ]
    if not wanted:
        cause = f"there is nothing to quantise: no {' or '.join(options.quantise)} outside of what stays in float32"
        raise PrecisionError(cause)
    marked = type(model)()
    marked.CopyFrom(model)
    renamed = free_names(marked)
    # A folder of its own, because onnxruntime goes by paths; with it models over 2 GB work too.
    with tempfile.TemporaryDirectory(prefix="convbn-") as folder:
        source, target = Path(folder) / "model.onnx", Path(folder) / "quantised.onnx"
        # onnxruntime infers shapes again, and stops at an annotation that it disagrees with.
        del marked.graph.value_info[:]
        marked.metadata_props.add(key=_MARK[0], value=_MARK[1])
        save_model(marked, source)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # its calibrators print
                ort.quantize_static(
                    str(source),
                    str(target),
                    _reader(calibration, renamed),
                    quant_format=ort.QuantFormat.QDQ,
                    op_types_to_quantize=list(options.quantise),
                    per_channel=True,
                    activation_type=ort.QuantType.QInt8,
                    weight_type=ort.QuantType.QInt8,
                    nodes_to_exclude=[node.node for node in kept],
                    use_external_data_format=model.ByteSize() > _LARGE,
                    calibrate_method=ort.CalibrationMethod[_METHODS[options.method]],
                    extra_options=_extra(options),
                )
        except ConvBNError:  # of a sample that cannot be read
            raise
        except Exception as error:  # onnxruntime's errors share no base class below Exception
            cause = f"onnxruntime cannot calibrate ({one_line(error, 200)})"
            raise CalibrationError(cause, source=calibration.origin) from error
        result = load_model(target)
    give_back(result, renamed)
    del result.metadata_props[:]
    result.metadata_props.extend(model.metadata_props)
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    return result


def quantised_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that compute with quantised inputs."""
    made = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return sorted(node.name for node in model.graph.node if node.input and node.input[0] in made)


def activation_ranges(model: onnx.ModelProto) -> dict[str, float]:
    """The value that 127 stands for, for each quantised activation."""
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in stored and node.input[1] in stored:
            found[node.input[0]] = 127.0 * float(numpy_helper.to_array(stored[node.input[1]]).max())
    return found


def through_quantisation(model: onnx.ModelProto, beyond: Mapping[str, str]) -> dict[str, str]:
    """Values that a type cannot hold, with what they are after a QuantizeLinear and DequantizeLinear.

    Args:
        model: quantised.
        beyond: tensors of the model before, each with a sentence.

    Returns:
        The same, and the outputs of the DequantizeLinear nodes that give those tensors back.
    """
    from convbn.export.precision.int8.ranges import weights_out_of_range

    found = {**beyond, **weights_out_of_range(model)}
    sources = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            source = sources.get(node.input[0], node.input[0].removesuffix("_quantized"))
            if source in beyond:
                found[node.output[0]] = beyond[source]
    return found


def _reader(calibration: Calibration, renamed: Mapping[str, str]) -> Any:
    """Hands samples to onnxruntime, which asks for a window of them at a time."""
    from onnxruntime.quantization import CalibrationDataReader

    makers = calibration.makers

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        window = iter(range(len(makers)))

        def __len__(self) -> int:
            return len(makers)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.window = iter(range(start_index, min(end_index, len(makers))))

        def get_next(self) -> Feeds | None:
            index = next(self.window, None)
            return None if index is None else {renamed.get(k, k): v for k, v in makers[index]().items()}

    return Reader()


def _extra(options: PrecisionOptions) -> dict[str, Any]:
    quantised: Sequence[str] = list(options.quantise)
    return {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        # Weights as int8 with a DequantizeLinear: a quarter of the file, and the same engine.
        "AddQDQPairToWeight": False,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": quantised,
        # One sample at a time: all tensors of all samples at once would fill the memory.
        "CalibStridedMinMax": 1,
        "CalibPercentile": options.percentile,
    }
