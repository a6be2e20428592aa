"""ReLU6 under equalisation: scales pass it exactly, and where they do it has a limit for each channel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from support.graphs import model, operators, random, relative_error, run

from convbn.bench.equivalence.similarity import agreement
from convbn.converting import Conversion, converted
from convbn.export.precision.convert import convert
from convbn.export.precision.graphs import prepared
from convbn.export.precision.int8.activations.channels import channel_ranges
from convbn.export.precision.int8.calibration import calibration_from
from convbn.export.precision.int8.clips import join_clips, split_clips
from convbn.export.precision.int8.equalising import equalised
from convbn.export.precision.options import PrecisionOptions
from convbn.exporting import build_engine
from convbn.fuse.equalise import equalise

SAMPLES = [random(2, 3, 8, 8, seed=seed) for seed in range(4)]


def even(*shape: int, seed: int = 0) -> np.ndarray:
    """Rows of one size."""
    rows = random(*shape, seed=seed)
    return rows / np.linalg.norm(rows.reshape(len(rows), -1), axis=1).reshape(-1, 1, 1, 1)


def block(
    *, spread: float = 100.0, low: float = 0.0, high: float = 6.0, swish: bool = False
) -> onnx.ModelProto:
    """Expand, ReLU6, depthwise, ReLU6, project; of eight channels seven are quieter by `spread`, and made up for."""
    sizes = np.where(np.arange(16) % 8, 1 / spread, 1.0).astype(np.float32)[:, None, None, None]
    weights: dict[str, Any] = {
        "w1": even(16, 3, 1, 1) * 2 * sizes,
        "b1": random(16, seed=1) / 9 * sizes.reshape(-1),
    }
    weights |= {
        "w2": even(16, 1, 3, 3, seed=2),
        "w3": random(6, 16, 1, 1, seed=3) / sizes.reshape(1, 16, 1, 1),
    }
    weights |= {"low": np.float32(low), "high": np.float32(high), "three": np.float32(3)}
    bend = [helper.make_node("Clip", ["c1", "low", "high"], ["r1"], name="act1")]
    if swish:
        bend = [
            helper.make_node("Add", ["c1", "three"], ["a1"], name="add3"),
            helper.make_node("Clip", ["a1", "low", "high"], ["k1"], name="act1"),
            helper.make_node("Mul", ["c1", "k1"], ["m1"], name="gate"),
            helper.make_node("Div", ["m1", "high"], ["r1"], name="sixth"),
        ]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="expand"),
        *bend,
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="depth", group=16, pads=[1] * 4),
        helper.make_node("Clip", ["c2", "low", "high"], ["r2"], name="act2"),
        helper.make_node("Conv", ["r2", "w3"], ["y"], name="project"),
    ]
    return model(nodes, {"x": [2, 3, 8, 8]}, ["y"], weights)


def prepared_with(built: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Any]]:
    ready = prepared(built)
    return equalised(ready, calibration_from(SAMPLES, ready))


def test_a_scale_passes_and_the_limit_goes_along() -> None:
    built = block()
    made, record = prepared_with(built)
    assert {group["layer"]: group["readers"] for group in record["scaled"]} == {
        "expand": ["depth"],
        "depth": ["project"],
    }
    assert record["clips"] == ["act1", "act2"]
    assert operators(made) == ["Conv", "Relu", "Min", "Conv", "Relu", "Min", "Conv"]
    onnx.checker.check_model(made, full_check=True)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    assert not {"low", "high"} & stored.keys()
    limit = stored[next(node for node in made.graph.node if node.name == "act1").input[1]]
    assert limit.shape == (16, 1, 1)
    # The quiet channels grow, and with them what is cut off.
    quiet = np.arange(16) % 8 > 0
    assert limit[quiet].min() > 3 * limit[~quiet].max()
    # Far beyond the calibration data, too, where every channel is cut off.
    for scale in (1.0, 30.0, 1e4):
        feeds = {"x": random(2, 3, 8, 8, seed=9) * np.float32(scale)}
        assert relative_error(run(built, feeds), run(made, feeds)) < 1e-5


def test_int8_is_closer_for_it() -> None:
    built = block()

    def error(*, equalise: bool) -> float:
        options = PrecisionOptions(equalise=equalise, correct_biases=False)
        made = convert(built, "int8", calibration=calibration_from(SAMPLES, built), options=options).model
        return agreement(built, made, calibration_from(SAMPLES, built))[0].rms_error

    assert error(equalise=True) < 0.3 * error(equalise=False)


def test_what_gains_little_stays_a_clip() -> None:
    """A Min is a kernel of its own: it has to gain a bit, a quarter of the noise."""
    built = block(spread=1.0)
    ready = prepared(built)
    ranges = channel_ranges(ready, calibration_from(SAMPLES, ready))
    assert {group.layer for group in equalise(split_clips(ready)[0], ranges).scaled} == {"expand", "depth"}
    made, record = prepared_with(built)
    assert record["scaled"] == record["clips"] == []
    assert [node for node in made.graph.node if node.op_type == "Clip"] == [
        node for node in built.graph.node if node.op_type == "Clip"
    ]


@pytest.mark.parametrize("limits", [{"low": -1.0}, {"low": 1.0}, {"high": float("inf")}])
def test_other_clips_stay(limits: dict[str, float]) -> None:
    split, clips = split_clips(prepared(block(**limits)))
    assert clips == ()
    assert operators(split).count("Clip") == 2


def test_a_hard_swish_stays_recognisable() -> None:
    made, record = prepared_with(block(swish=True))
    assert record["clips"] == ["act2"]
    assert operators(made)[:5] == ["Conv", "Add", "Clip", "Mul", "Div"]


def test_a_limit_that_is_an_input_stays() -> None:
    built = block()
    built.graph.input.append(helper.make_tensor_value_info("high", onnx.TensorProto.FLOAT, []))
    assert split_clips(prepared(built))[1] == ()


def test_untouched_clips_come_back_as_they_were() -> None:
    ready = prepared(block())
    split, clips = split_clips(ready)
    assert operators(split).count("Sub") == 4
    assert relative_error(run(ready, {"x": SAMPLES[0]}), run(split, {"x": SAMPLES[0]})) < 1e-4
    assert join_clips(split, clips) == []
    assert split.graph.node == ready.graph.node
    assert split.graph.initializer == ready.graph.initializer


def test_a_clip_keeps_a_bias_that_could_go_through_it() -> None:
    """Rows that are never negative hand their biases on through a ReLU, behind which a limit would stand apart."""
    built = block()
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in built.graph.initializer}
    built.graph.node[0].input[0] = "p"
    built.graph.node.insert(0, helper.make_node("Relu", ["x"], ["p"], name="first"))
    for tensor in built.graph.initializer:
        if tensor.name in ("w1", "b1"):
            tensor.CopyFrom(numpy_helper.from_array(np.abs(stored[tensor.name]), tensor.name))
    made, record = prepared_with(built)
    assert "act1" not in record["clips"]
    assert "expand" not in [layer["layer"] for layer in record["absorbed"]]
    assert relative_error(run(built, {"x": SAMPLES[0]}), run(made, {"x": SAMPLES[0]})) < 1e-5


def test_tensorrt_and_the_record_take_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    result = converted(block(), Conversion("int8", calibration=SAMPLES))
    assert result.record["equalised"]["clips"] == ["act1", "act2"]
    artifact = build_engine(
        result.model, tmp_path / "a", backend="tensorrt-rtx", precision="int8", conversion=result.record
    )
    assert artifact.sidecar["conversion"] == result.record
