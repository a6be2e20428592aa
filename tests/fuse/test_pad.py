"""Pad: what a map may pass, and where zeros stop it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run

from convbn.fuse.fold import Folding, fold

X = {"x": [2, 4, 6, 6]}
AROUND = np.array([0, 0, 1, 2, 0, 0, 2, 1], np.int64)


def pad(source: str, target: str, *more: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Pad", [source, "pads", *more], [target], name="pad", **attributes)


def conv(source: str, target: str, name: str = "w") -> onnx.NodeProto:
    return helper.make_node("Conv", [source, name], [target], name=name)


def check(
    nodes: list[onnx.NodeProto], parameters: dict[str, np.ndarray], left: int, opset: int = 20
) -> Folding:
    built = model(
        nodes, X, ["y"], {"w": random(4, 4, 3, 3), **batchnorm_parameters(4), **parameters}, opset=opset
    )
    result = fold(built)
    assert operators(result.model).count("BatchNormalization") == left, result.report.kept
    feeds = {"x": random(*X["x"], seed=7)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-5
    return result


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
def test_copies_pass_every_map_both_ways(mode: str) -> None:
    behind = [conv("x", "c"), pad("c", "p", mode=mode), batchnorm("p", "y")]
    check(behind, {"pads": AROUND}, 0)
    before = [batchnorm("x", "n"), pad("n", "p", mode=mode), conv("p", "y")]
    check(before, {"pads": AROUND}, 0)


def test_zeros_stop_a_shift() -> None:
    result = check([batchnorm("x", "n"), pad("n", "p"), conv("p", "y")], {"pads": AROUND}, 1)
    assert "puts zeros around its data" in result.report.kept[0].detail
    check([conv("x", "c"), pad("c", "p"), batchnorm("p", "y")], {"pads": AROUND}, 1)


def test_zeros_pass_a_scale() -> None:
    nothing = {"bn.beta": np.zeros(4, "f4"), "bn.mean": np.zeros(4, "f4")}
    check([conv("x", "c"), pad("c", "p"), batchnorm("p", "y")], {"pads": AROUND, **nothing}, 0)


def test_a_crop_passes_every_map() -> None:
    crop = np.array([0, 0, -1, 0, 0, 0, 0, -2], np.int64)
    check([conv("x", "c"), pad("c", "p"), batchnorm("p", "y")], {"pads": crop}, 0)


def test_a_crop_beside_zeros_does_not() -> None:
    mixed = np.array([0, 0, -1, 0, 0, 0, 0, 2], np.int64)
    check([conv("x", "c"), pad("c", "p"), batchnorm("p", "y")], {"pads": mixed}, 1)


def test_other_numbers_than_zero_pass_nothing() -> None:
    nothing = {"bn.beta": np.zeros(4, "f4"), "bn.mean": np.zeros(4, "f4")}
    value = {"pads": AROUND, "value": np.array(1.5, "f4")}
    check([conv("x", "c"), pad("c", "p", "value"), batchnorm("p", "y")], {**value, **nothing}, 1)


def test_the_value_may_be_an_attribute() -> None:
    nothing = {"bn.beta": np.zeros(4, "f4"), "bn.mean": np.zeros(4, "f4")}
    for value, left in ((0.0, 0), (1.5, 1)):
        node = helper.make_node("Pad", ["c"], ["p"], pads=AROUND.tolist(), value=value)
        check([conv("x", "c"), node, batchnorm("p", "y")], nothing, left, opset=9)


def test_padded_channels_stop_it() -> None:
    channels = np.array([0, 1, 0, 0, 0, 0, 0, 0], np.int64)
    wide = {"pads": channels, **batchnorm_parameters(5)}
    check([conv("x", "c"), pad("c", "p", mode="edge"), batchnorm("p", "y")], wide, 1)


def test_axes_given_as_an_input() -> None:
    given = {"pads": np.array([1, 1], np.int64), "axes": np.array([-1], np.int64)}
    check([conv("x", "c"), pad("c", "p", "", "axes", mode="edge"), batchnorm("p", "y")], given, 0)


def test_pads_computed_while_running_stop_it() -> None:
    half = helper.make_node("Add", ["half", "half"], ["pads"])
    built = model(
        [half, conv("x", "c"), pad("c", "p", mode="edge"), batchnorm("p", "y")],
        X,
        ["y"],
        {"half": AROUND // 1, "w": random(4, 4, 3, 3), **batchnorm_parameters(4)},
    )
    assert fold(built).report.batchnorm.after == 1
