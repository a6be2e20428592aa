"""Whether two ONNX files differ by nothing but the order of boxes whose scores are equal up to rounding.

A detector sorts boxes by their scores. Where two scores differ by less than two roundings of the same number do, the
original and the folded file may put the boxes in another order, and every output behind that is another one's. Shown
is that this is all: at each TopK the scores are equal within the bound, boxes that changed places lie no further apart
than twice the largest difference of a score, and with the original's choice the folded file gives its outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["BOUND", "Ties", "ties_between"]

Arrays = dict[str, np.ndarray[Any, Any]]

BOUND = 3.5e-4
"""Of a difference, relative to the largest value of a tensor: that of the proof."""


@dataclass(frozen=True)
class Ties:
    """What was found.

    Attributes:
        places: positions at which the files choose differently.
        margin: the largest difference between the original's scores of two boxes that changed places.
        noise: the largest difference between a score in one file and in the other.
        error: of the outputs once both choose alike, relative to the largest value of each.
    """

    places: int
    margin: float
    noise: float
    error: float

    @property
    def explain_all(self) -> bool:
        """Whether the files are equal but for ties."""
        return self.places > 0 and self.margin <= 2 * self.noise and self.error <= BOUND


def ties_between(before: onnx.ModelProto, after: onnx.ModelProto, feeds: Mapping[str, Any]) -> Ties | None:
    """The ties between two files of the same network; None where the scores themselves are not equal.

    Args:
        before: the original. Neither is changed.
        after: the folded one, with TopKs of the same names.
        feeds: an input.
    """
    sorts = [node for node in before.graph.node if node.op_type == "TopK"]
    asked = [name for node in sorts for name in (node.input[0], node.output[1])]
    outputs = [output.name for output in before.graph.output]
    wanted = _run(before, feeds, [*outputs, *asked])
    forced = onnx.ModelProto()
    forced.CopyFrom(after)
    places, margin, noise = 0, 0.0, 0.0
    for node in sorts:
        (own,) = (other for other in forced.graph.node if other.name == node.name)
        got = _run(forced, feeds, [own.input[0], own.output[1]])
        scores, others = wanted[node.input[0]], got[own.input[0]]
        if _error(scores, others) > BOUND:
            return None
        ours, theirs = wanted[node.output[1]], got[own.output[1]]
        axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
        apart = np.take_along_axis(scores, ours, axis) - np.take_along_axis(scores, theirs, axis)
        places += int((ours != theirs).sum())
        margin = max(margin, float(np.abs(apart).max()))
        noise = max(noise, float(np.abs(scores - others).max()))
        _choose(forced, own, ours, axis)
    got = _run(forced, feeds, outputs)
    return Ties(places, margin, noise, max(_error(wanted[name], got[name]) for name in outputs))


def _choose(model: onnx.ModelProto, sort: onnx.NodeProto, indices: np.ndarray[Any, Any], axis: int) -> None:
    """Let a file take what it is told instead of sorting."""
    place = list(model.graph.node).index(sort)
    values, chosen = sort.output
    gather = helper.make_node("GatherElements", [sort.input[0], chosen], [values], sort.name, axis=axis)
    model.graph.initializer.append(numpy_helper.from_array(indices, chosen))
    model.graph.node.remove(sort)
    if values:
        model.graph.node.insert(place, gather)


def _run(model: onnx.ModelProto, feeds: Mapping[str, Any], names: Sequence[str]) -> Arrays:
    """Values of a file by name, in onnxruntime without its optimisations."""
    import onnxruntime

    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    del asked.graph.output[:]
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(asked.SerializeToString(), options)
    return dict(zip(dict.fromkeys(names), session.run(None, dict(feeds)), strict=True))


def _error(expected: np.ndarray[Any, Any], actual: np.ndarray[Any, Any]) -> float:
    largest = float(np.abs(expected).max(initial=0.0)) or 1.0
    return float(np.abs(expected.astype(np.float64) - actual).max(initial=0.0)) / largest
