"""How much each layer loses by being quantised: the network with that layer alone in int8, against itself without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convbn.common.encoding import JsonReady
from convbn.common.progress import Progress
from convbn.export.precision.int8.activations.outputs import outputs_of, rms_error
from convbn.export.precision.int8.quantising import activations_of, chosen_nodes, left_in_float32, quantise

if TYPE_CHECKING:
    import onnx

    from convbn.export.precision.int8.samples import Calibration
    from convbn.export.precision.options import PrecisionOptions

__all__ = ["LayerLoss", "layer_losses"]

_SAMPLES = 4


@dataclass(frozen=True, slots=True)
class LayerLoss(JsonReady):
    """What a layer loses: ``‖a − b‖ / ‖a‖`` of the network's outputs, with it alone quantised."""

    node: str
    operator: str
    error: float


def layer_losses(
    model: onnx.ModelProto,
    ends: Mapping[str, float],
    calibration: Calibration,
    options: PrecisionOptions,
    progress: Progress | None = None,
) -> tuple[LayerLoss, ...]:
    """Every quantised layer, the one that loses most first.

    Args:
        model: in float32, prepared and equalised as it is quantised.
        ends: the value that 127 stands for, by the name of a value.
        calibration: the inputs; four of them are looked at.
        options: which layers are quantised.
        progress: is told of each layer.

    Raises:
        CalibrationError: onnxruntime cannot run the model on these inputs.
    """
    few = calibration.limited(_SAMPLES)
    nodes = chosen_nodes(model, options, left_in_float32(model, options))
    reads = activations_of(model, nodes)
    reference = outputs_of(model, few)
    found = []
    for number, node in enumerate(nodes):
        if progress is not None:
            progress("sensitivity", number, len(nodes))
        alone = quantise(model, [node.name], reads, ends).model
        found.append(LayerLoss(node.name, node.op_type, rms_error(reference, outputs_of(alone, few))))
    return tuple(sorted(found, key=lambda layer: -layer.error))
