"""What values flow through a network: does float16 hold them?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from convbn.export.precision.casting import narrowed
from convbn.export.precision.float16.underflow import made_from, read_singularly
from convbn.export.precision.graphs import FLOAT, names_of
from convbn.export.precision.int8.activations.probe import values

if TYPE_CHECKING:
    import onnx

    from convbn.export.precision.int8.samples import Calibration

__all__ = ["FLOAT16_MAX", "LOSS", "activations_out_of_range", "weights_out_of_range"]

FLOAT16_MAX: Final = 65504.0
#: The relative error ‖x − float16(x)‖ / ‖x‖ from which a tensor stays in float32. Rounding alone gives at most
#: 2⁻¹¹; more comes from values below 6.1e-5, where float16 runs out of digits. 2⁻⁸ is bfloat16's rounding.
LOSS: Final = 2.0**-8


def weights_out_of_range(model: onnx.ModelProto) -> dict[str, str]:
    """Initializers that float16 cannot hold, each with a sentence; infinities it can."""
    import numpy as np
    from onnx import numpy_helper

    found = {}
    for tensor in model.graph.initializer:
        if tensor.data_type != FLOAT:
            continue
        array = numpy_helper.to_array(tensor)
        finite = array[np.isfinite(array)].astype(np.float64)
        largest = float(np.abs(finite).max(initial=0.0))
        loss = 0.0
        if 0 < largest <= FLOAT16_MAX:
            error = finite - narrowed(finite.astype(np.float32), "float16").astype(np.float64)
            loss = float(np.linalg.norm(error / largest) / np.linalg.norm(finite / largest))
        sentence = _sentence(f"weight {tensor.name!r}", largest, loss)
        if sentence:
            found[tensor.name] = sentence
    return found


def activations_out_of_range(
    model: onnx.ModelProto, types: Mapping[str, int], calibration: Calibration
) -> tuple[dict[str, str], int]:
    """Run a float32 model and look at every tensor on the way.

    Each tensor is reduced to two numbers inside the graph, so that memory is that of one inference.

    Args:
        model: prepared, see :func:`convbn.export.precision.graphs.prepared`.
        types: element type of each tensor.
        calibration: the inputs.

    Returns:
        The tensors that float16 cannot hold, each with a sentence, and how many were looked at.

    Raises:
        CalibrationError: onnxruntime cannot run the model on these inputs.
    """
    probed, probes = _with_probes(model, types)
    largest, loss, lost = (dict.fromkeys(probes, 0.0) for _ in range(3))
    guarded = read_singularly(model)
    for measured in values(probed, None, calibration):
        numbers = list(map(float, measured))
        for index, name in enumerate(probes):
            largest[name] = _worse(largest[name], numbers[3 * index])
            loss[name] = _worse(loss[name], numbers[3 * index + 1])
            lost[name] = _worse(lost[name], numbers[3 * index + 2])
    sentences = {name: _sentence(f"tensor {name!r}", largest[name], loss[name]) for name in probes}
    found = made_from(
        model, {name: _vanishing(name, lost[name]) for name in probes if name in guarded and lost[name]}
    )
    return found | {name: sentence for name, sentence in sentences.items() if sentence}, len(probes)


def _with_probes(
    model: onnx.ModelProto, types: Mapping[str, int]
) -> tuple[onnx.ModelProto, dict[str, tuple[str, str, str]]]:
    """The model with ``max |x|``, ``‖x − float16(x)‖ / ‖x‖`` and the largest |x| that becomes 0 as its outputs."""
    import onnx
    from onnx import helper

    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    names, graph = names_of(probed), probed.graph
    made = [name for node in model.graph.node for name in node.output]
    tensors = [n for n in (*(v.name for v in model.graph.input), *made) if types.get(n) == FLOAT]
    probes: dict[str, tuple[str, str, str]] = {}
    for index, tensor in enumerate(tensors):
        n = {key: names.fresh(f"probe_{index}_{key}") for key in
             ("abs", "max", "low", "back", "gap", "unit", "error", "size", "off", "loss",
              "sign", "one", "zero", "gone", "lost")}  # fmt: skip
        graph.node.extend(
            [
                helper.make_node("Abs", [tensor], [n["abs"]]),
                helper.make_node("ReduceMax", [n["abs"]], [n["max"]], keepdims=0),
                helper.make_node("Cast", [tensor], [n["low"]], to=10),
                helper.make_node("Cast", [n["low"]], [n["back"]], to=FLOAT),
                helper.make_node("Sub", [tensor, n["back"]], [n["gap"]]),
                # In units of the largest value, so that no square leaves float32.
                helper.make_node("Div", [tensor, n["max"]], [n["unit"]]),
                helper.make_node("Div", [n["gap"], n["max"]], [n["error"]]),
                helper.make_node("ReduceL2", [n["unit"]], [n["size"]], keepdims=0),
                helper.make_node("ReduceL2", [n["error"]], [n["off"]], keepdims=0),
                helper.make_node("Div", [n["off"], n["size"]], [n["loss"]]),
                # |x|·(1 − |sign(float16(x))|)
                helper.make_node("Sign", [n["back"]], [n["sign"]]),
                helper.make_node("Abs", [n["sign"]], [n["one"]]),
                helper.make_node("Mul", [n["abs"], n["one"]], [n["zero"]]),
                helper.make_node("Sub", [n["abs"], n["zero"]], [n["gone"]]),
                helper.make_node("ReduceMax", [n["gone"]], [n["lost"]], keepdims=0),
            ]
        )
        probes[tensor] = (n["max"], n["loss"], n["lost"])
    del graph.output[:]
    for three in probes.values():
        graph.output.extend(helper.make_tensor_value_info(name, FLOAT, []) for name in three)
    return probed, probes


def _worse(known: float, new: float) -> float:
    """The larger; NaN, which an empty or all-zero tensor gives, says nothing."""
    return known if math.isnan(new) else max(known, new)


def _vanishing(name: str, lost: float) -> str:
    told = f"tensor {name!r} holds {lost:.1e}, which float16 turns to 0"
    return f"{told}, and is divided by or taken the logarithm of"


def _sentence(what: str, largest: float, loss: float) -> str | None:
    if largest > FLOAT16_MAX:
        return f"{what} reaches {largest:.3g}, and float16 ends at {FLOAT16_MAX:.0f}"
    if loss > LOSS:
        return f"{what} is so small (at most {largest:.1e}) that float16 would change it by {loss:.1%}"
    return None
