"""Equalisation of a float32 network before it is quantised, checked on the calibration data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from convbn.export.precision.errors import PrecisionError
from convbn.export.precision.int8.activations.channels import channel_ranges
from convbn.export.precision.int8.activations.probe import values
from convbn.export.precision.int8.clips import SplitClip, join_clips, split_clips
from convbn.fuse.equalise import ChannelRange, Equalised, equalise

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

    from convbn.export.precision.int8.samples import Calibration

__all__ = ["equalised"]

#: √ε of float32: half of its digits, as for a fold.
_BOUND = 3.45e-4
_CHECKED_SAMPLES = 4
#: What is left of the noise where a Clip becomes a Relu and a Min, a kernel of its own: so it gains a bit at least.
_WORTH_A_KERNEL = 0.25


def equalised(model: onnx.ModelProto, calibration: Calibration) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A model with alike channels that gives the same outputs, and what goes into the record.

    Args:
        model: prepared, see :func:`convbn.export.precision.graphs.prepared`; left as it is.
        calibration: what channels are measured on, and outputs compared.

    Raises:
        PrecisionError: the outputs differ by more than rounding.
        CalibrationError: onnxruntime cannot run the model on these inputs.
    """
    result, clips = _past_clips(model, channel_ranges(model, calibration))
    record: dict[str, Any] = {
        "scaled": [group.to_dict() for group in result.scaled],
        "absorbed": [layer.to_dict() for layer in result.absorbed],
        "clips": [],
        "error": 0.0,
    }
    if not (result.scaled or result.absorbed):
        return model, record
    record["clips"] = join_clips(result.model, clips)
    record["error"] = _difference(model, result.model, calibration.limited(_CHECKED_SAMPLES))
    if not record["error"] <= _BOUND:
        raise PrecisionError(
            f"equalisation changed the outputs by {record['error']:.1e} of their size, over {_BOUND:.1e}",
            hint="leave it out, --no-equalize",
        )
    return result.model, record


def _past_clips(
    model: onnx.ModelProto, ranges: Mapping[str, ChannelRange]
) -> tuple[Equalised, tuple[SplitClip, ...]]:
    """The equalised model, and the Clips in it that still stand as four nodes.

    A Clip stays whole where the scale that passes it gains too little, and where a bias would go on through it.
    """
    whole = set[str]()
    while True:
        split, clips = split_clips(model, whole)
        result = equalise(split, ranges)
        poor = {
            group.layer for group in result.scaled if group.noise_after > _WORTH_A_KERNEL * group.noise_before
        }
        again = {clip.layer for clip in clips if clip.layer in poor or not clip.alike(result.model)}
        if not again:
            return result, clips
        whole |= again


def _difference(a: onnx.ModelProto, b: onnx.ModelProto, calibration: Calibration) -> float:
    """max |a − b| / max |a|, the largest over the float outputs."""
    gaps, sizes = np.zeros(len(a.graph.output)), np.zeros(len(a.graph.output))
    for ours, theirs in zip(values(a, None, calibration), values(b, None, calibration), strict=True):
        for index, (x, y) in enumerate(zip(ours, theirs, strict=True)):
            if x.dtype.kind == "f":
                finite = np.isfinite(x)
                gaps[index] = max(
                    gaps[index], np.abs(x - y, where=finite, out=np.zeros_like(x)).max(initial=0.0)
                )
                sizes[index] = max(sizes[index], np.abs(x[finite]).max(initial=0.0))
    return float(np.divide(gaps, sizes, out=gaps.copy(), where=sizes > 0).max(initial=0.0))
