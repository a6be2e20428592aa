"""Rule by rule, graphs that look as if they would fold: the BatchNorm stays, with its reason, and nothing changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run

from convbn.fuse.fold import fold
from convbn.fuse.refusal import Reason

X = [2, 6, 6, 6]
"""Channels, height and width agree, so that shapes alone would not show a wrong axis."""


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """Names by space; ``_`` for an input that is left out."""
    names = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(op, names, outputs.split(), name=f"{op}_{outputs.split()[0]}", **attributes)


@dataclass(frozen=True)
class Case:
    """A graph over ``x`` with one BatchNorm ``bn``, and why that stays.

    Attributes:
        says: a part of the sentence.
        positive: γ > 0, so that no sign is in the way.
        scale: β = μ = 0, so that no shift is.
    """

    nodes: Sequence[onnx.NodeProto]
    reason: str
    says: str = ""
    outputs: Sequence[str] = ("y",)
    stored: Mapping[str, np.ndarray] = field(default_factory=dict)
    shape: Sequence[Any] = tuple(X)
    channels: int = 6
    positive: bool = True
    scale: bool = False
    left: int = 1


BN = batchnorm("c", "y")
BENT = [node("Tanh", "x", "t"), batchnorm("t", "n")]
"""A BatchNorm that can only go forward."""
COUNTED = [node("Size", "a", "k"), node("Unsqueeze", "k o", "e")]
"""A number that is not known before the model runs, as far as anybody here knows."""
ASIDE = node("Tanh", "c", "z")
YZ = ("y", "z")
CONV = node("Conv", "x w", "a", pads=[1] * 4)
W = {"w": 0.3 * random(6, 6, 3, 3)}
UP = node("ConvTranspose", "x u", "c")
U = {"u": random(6, 6, 2, 2)}
FC = {"w": random(6, 6)}
OTHER = batchnorm_parameters(6, prefix="o", seed=4)

CASES: dict[str, dict[str, Case]] = {
    "conv": {
        "another reader": Case(
            [CONV, batchnorm("a", "y"), node("Tanh", "a", "z")], "several-readers", outputs=YZ, stored=W
        ),
        "an output": Case([CONV, batchnorm("a", "y")], "observed-elsewhere", outputs=("y", "a"), stored=W),
        "weight of the run": Case(
            [node("Tanh", "w", "v"), node("Conv", "x v", "c"), BN], "weight-not-constant", stored=W
        ),
        "weight that is Inf": Case(
            [node("Conv", "x w", "c"), BN],
            "bad-statistics",
            stored={"w": np.full((6, 6, 3, 3), np.inf, np.float32)},
        ),
        "forward: zeros around it": Case(
            [*BENT, node("Conv", "n w", "y", pads=[0, 0, 0, 1])],
            "producer-not-foldable",
            "zeros around",
            stored=W,
        ),
        "forward: as its weight": Case(
            [node("Tanh", "k", "t"), batchnorm("t", "n"), node("Conv", "x n", "y")],
            "producer-not-foldable",
            stored={"k": random(6, 6, 3, 3)},
        ),
    },
    "conv-transpose": {
        "another reader": Case([UP, BN, ASIDE], "several-readers", outputs=YZ, stored=U),
        "an output": Case([UP, BN], "observed-elsewhere", outputs=("y", "c"), stored=U),
        "weight of the run": Case(
            [node("Tanh", "u", "v"), node("ConvTranspose", "x v", "c"), BN], "weight-not-constant", stored=U
        ),
        "forward: a shift": Case(
            [*BENT, node("ConvTranspose", "n u", "y")], "producer-not-foldable", "unevenly", stored=U
        ),
    },
    "linear": {
        "over a sequence": Case(
            [node("MatMul", "x w", "c"), BN], "axis-not-proven", shape=[2, 6, 6], stored=FC
        ),
        "a weight of rank 3": Case(
            [node("MatMul", "x w", "c"), BN],
            "axis-not-proven",
            shape=[2, 6, 6],
            stored={"w": random(2, 6, 6)},
        ),
        "another reader": Case(
            [node("Gemm", "x w", "c"), BN, ASIDE], "several-readers", outputs=YZ, shape=[4, 6], stored=FC
        ),
        "two values": Case([node("MatMul", "x x", "c"), BN], "weight-not-constant", shape=[6, 6]),
        "forward: from the left": Case(
            [*BENT, node("MatMul", "w n", "y")], "producer-not-foldable", shape=[6, 6], stored=FC
        ),
        "forward: transposed data": Case(
            [*BENT, node("Gemm", "n w", "y", transA=1)], "producer-not-foldable", shape=[6, 6], stored=FC
        ),
    },
    "batchnorm": {
        "one that trains": Case(
            [
                helper.make_node(
                    "BatchNormalization",
                    ["x", *[f"o.{n}" for n in ("gamma", "beta", "mean", "var")]],
                    ["c", "m", "v"],
                    name="o",
                    training_mode=1,
                ),
                BN,
            ],
            "training-mode",
            stored=OTHER,
            left=2,
        ),
        "one that is an output": Case(
            [batchnorm("x", "c", prefix="o"), BN],
            "observed-elsewhere",
            outputs=("y", "c"),
            stored=OTHER,
            left=2,
        ),
        "one with its own reader": Case(
            [batchnorm("x", "c", prefix="o"), BN, ASIDE], "several-readers", outputs=YZ, stored=OTHER, left=2
        ),
    },
    "elementwise": {
        "a constant over its data": Case(
            [CONV, node("Sigmoid", "a", "s"), node("Div", "k s", "c"), BN],
            "producer-not-foldable",
            stored={**W, "k": np.float32(2)},
        ),
        "two values and a shift": Case(
            [CONV, node("Mul", "a x", "c"), BN], "producer-not-foldable", "cannot take a shift", stored=W
        ),
        "twice the same value": Case([CONV, node("Add", "a a", "c"), BN], "axis-not-proven", stored=W),
        "a product with 0": Case(
            [node("Tanh", "x", "a"), node("Mul", "a k", "c"), BN],
            "producer-not-foldable",
            stored={"k": np.float32([0, 1, 2, 3, 4, 5]).reshape(6, 1, 1)},
        ),
        "a factor along the width": Case(
            [CONV, node("Mul", "a k", "c"), BN],
            "producer-not-foldable",
            "differs within a channel",
            stored={**W, "k": 1 + random(6) ** 2},
        ),
        "a factor a pixel": Case(
            [CONV, node("Mul", "a k", "c"), BN],
            "producer-not-foldable",
            "differs within a channel",
            stored={**W, "k": 1 + random(1, 1, 6, 6) ** 2},
        ),
        "one operand is an input": Case(
            [CONV, node("Tanh", "x", "t"), node("Add", "a t", "c"), BN],
            "producer-not-foldable",
            "Tanh",
            stored=W,
        ),
        "data of lower rank": Case(
            [node("Conv", "x w", "a", pads=[1, 1]), node("Add", "a k", "c"), BN],
            "axis-not-proven",
            shape=[6, 6, 6],
            stored={"w": random(6, 6, 3), "k": random(2, 6, 6, 6)},
        ),
    },
    "concat": {
        "one value twice": Case(
            [CONV, node("Concat", "a a", "c", axis=1), BN], "several-readers", "twice", channels=12, stored=W
        ),
        "one part is an input": Case(
            [CONV, node("Concat", "a x", "c", axis=1), BN], "reads-the-input", channels=12, stored=W
        ),
        "one part is read elsewhere": Case(
            [
                CONV,
                node("Conv", "x w", "b", pads=[1] * 4),
                node("Concat", "a b", "c", axis=1),
                BN,
                node("Tanh", "b", "z"),
            ],
            "several-readers",
            outputs=YZ,
            channels=12,
            stored=W,
        ),
        "forward: the others would need it": Case(
            [*BENT, node("Concat", "n x", "j", axis=2), node("Conv", "j v", "y")],
            "producer-not-foldable",
            "another axis",
            stored={"v": random(6, 6, 1, 1)},
        ),
    },
    "split": {
        "backward: along another axis": Case(
            [CONV, node("Split", "a", "c z", axis=2, num_outputs=2), BN],
            "axis-not-proven",
            says="other pieces",
            outputs=YZ,
            stored=W,
        ),
        "forward: one piece is an output": Case(
            [*BENT, node("Split", "n", "p z", axis=1, num_outputs=2), node("Conv", "p v", "y")],
            "producer-not-foldable",
            outputs=YZ,
            stored={"v": random(6, 3, 1, 1)},
        ),
        "forward: one piece is bent": Case(
            [
                *BENT,
                node("Split", "n", "p q", axis=1, num_outputs=2),
                node("Conv", "p v", "y"),
                node("Tanh", "q", "z"),
            ],
            "producer-not-foldable",
            outputs=YZ,
            stored={"v": random(6, 3, 1, 1)},
        ),
    },
    "slice": {
        "backward: what it slices is an output": Case(
            [CONV, node("Slice", "a b e i", "c"), BN],
            "observed-elsewhere",
            outputs=("y", "a"),
            channels=3,
            stored={**W, "b": np.int64([0]), "e": np.int64([3]), "i": np.int64([1])},
        ),
        "backward: how many channels is computed": Case(
            [CONV, *COUNTED, node("Slice", "a b e i", "c"), BN],
            "axis-not-proven",
            "how many channels Slice 'Slice_c' reads and gives is not known",
            stored={**W, "o": np.int64([0]), "b": np.int64([0]), "i": np.int64([1])},
        ),
        "forward: how many channels is computed": Case(
            [
                *BENT,
                node("Identity", "t", "a"),
                *COUNTED,
                node("Slice", "n b e i", "p"),
                node("Conv", "p v", "y"),
            ],
            "several-readers",
            "how many channels Slice 'Slice_p' reads and gives is not known",
            stored={"o": np.int64([0]), "b": np.int64([0]), "i": np.int64([1]), "v": random(6, 6, 1, 1)},
        ),
    },
    "gather": {
        "backward: a channel comes twice": Case(
            [CONV, node("Gather", "a i", "c", axis=1), BN],
            "axis-not-proven",
            "Gather 'Gather_c' reads a channel twice",
            stored={**W, "i": np.int64([0, 1, 2, 3, 4, 4])},
        ),
        "backward: which channels is computed": Case(
            [CONV, *COUNTED, node("Sub", "e e", "i"), node("Gather", "a i", "c", axis=1), BN],
            "axis-not-proven",
            channels=1,
            stored={**W, "o": np.int64([0])},
        ),
        "forward: a piece is bent": Case(
            [*BENT, node("Gather", "n i", "p", axis=2), node("Tanh", "p", "y")],
            "producer-not-foldable",
            stored={"i": np.int64([0])},
        ),
    },
    "depth-to-space": {
        "backward: the channels of a block do not agree": Case(
            [CONV, node("SpaceToDepth", "a", "c", blocksize=2), BN],
            "axis-not-proven",
            channels=24,
            stored=W,
        ),
        "backward: what it regroups is an output": Case(
            [
                CONV,
                node("SpaceToDepth", "a", "d", blocksize=2),
                node("DepthToSpace", "d", "c", blocksize=2),
                BN,
            ],
            "observed-elsewhere",
            outputs=("y", "d"),
            stored=W,
        ),
        "forward: the image is bent": Case(
            [*BENT, node("SpaceToDepth", "n", "p", blocksize=2), node("Tanh", "p", "y")],
            "producer-not-foldable",
        ),
    },
    "pool": {
        "a maximum and a negative scale": Case(
            [CONV, node("MaxPool", "a", "c", kernel_shape=[2, 2]), BN],
            "negative-scale",
            positive=False,
            stored=W,
        ),
        "a global maximum and a negative scale": Case(
            [CONV, node("GlobalMaxPool", "a", "c"), BN], "negative-scale", positive=False, stored=W
        ),
        "counted padding and a shift": Case(
            [CONV, node("AveragePool", "a", "c", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1), BN],
            "shift-into-padding",
            stored=W,
        ),
        "a window over the edge": Case(
            [
                CONV,
                node(
                    "AveragePool",
                    "a",
                    "c",
                    kernel_shape=[3, 3],
                    strides=[2, 2],
                    ceil_mode=1,
                    count_include_pad=1,
                ),
                BN,
            ],
            "shift-into-padding",
            stored=W,
        ),
        "no mean at all": Case(
            [CONV, node("LpPool", "a", "c", kernel_shape=[2, 2]), BN],
            "producer-not-foldable",
            "LpPool",
            stored=W,
        ),
        "the places of the maxima are used": Case(
            [
                CONV,
                node("MaxPool", "a", "c i", kernel_shape=[2, 2]),
                BN,
                node("Cast", "i", "z", to=TensorProto.FLOAT),
            ],
            "negative-scale",
            outputs=YZ,
            positive=False,
            stored=W,
        ),
    },
    "activation": {
        "a shift": Case([CONV, node("Relu", "a", "c"), BN], "producer-not-foldable", "no shift", stored=W),
        "a negative scale": Case(
            [CONV, node("Relu", "a", "c"), BN], "negative-scale", positive=False, scale=True, stored=W
        ),
        "a slope that is normalised": Case(
            [node("Tanh", "k", "t"), batchnorm("t", "n"), node("PRelu", "x n", "y")],
            "producer-not-foldable",
            scale=True,
            stored={"k": random(1, 6, 1, 1)},
        ),
        "no multiple of itself": Case(
            [CONV, node("Elu", "a", "c"), BN], "producer-not-foldable", "Elu", scale=True, stored=W
        ),
    },
    "transpose": {
        "height for channels": Case(
            [CONV, node("Transpose", "a", "c", perm=[0, 2, 1, 3]), BN],
            "axis-not-proven",
            "normalises axis 2",
            stored=W,
        ),
        "batch for channels": Case(
            [CONV, node("Transpose", "a", "c", perm=[1, 0, 2, 3]), BN],
            "axis-not-proven",
            shape=[6, 6, 6, 6],
            stored=W,
        ),
        "read twice": Case(
            [CONV, node("Transpose", "a", "c", perm=[0, 1, 3, 2]), BN, ASIDE],
            "several-readers",
            outputs=YZ,
            stored=W,
        ),
    },
    "reshape": {
        "batch and channels in one": Case(
            [CONV, node("Reshape", "a s", "c"), BN],
            "axis-not-proven",
            stored={**W, "s": np.int64([1, 12, 6, 6])},
            channels=12,
        ),
        "other channels": Case(
            [CONV, node("Reshape", "a s", "c"), BN],
            "axis-not-proven",
            stored={**W, "s": np.int64([2, 4, 9, 6])},
            channels=4,
        ),
        "pixels for channels": Case(
            [CONV, node("Reshape", "a s", "r"), node("Transpose", "r", "c", perm=[0, 2, 1]), BN],
            "axis-not-proven",
            stored={**W, "s": np.int64([2, 6, 36])},
            channels=36,
        ),
        "sizes that nobody knows": Case(
            [CONV, node("Shape", "x", "d"), node("Mul", "d k", "s"), node("Reshape", "a s", "c"), BN],
            "axis-not-proven",
            shape=["n", 6, "h", "w"],
            stored={**W, "k": np.int64([1, 1, 1, 1])},
        ),
    },
    "mean": {
        "over the channels": Case(
            [CONV, node("ReduceMean", "a k", "c"), BN],
            "axis-not-proven",
            stored={**W, "k": np.int64([1])},
            channels=1,
        ),
        "without the channels": Case(
            [CONV, node("ReduceMean", "a k", "c", keepdims=0), BN],
            "axis-not-proven",
            stored={**W, "k": np.int64([1])},
        ),
        "a product": Case(
            [CONV, node("ReduceProd", "a k", "c"), BN],
            "producer-not-foldable",
            "ReduceProd",
            stored={**W, "k": np.int64([2, 3])},
        ),
    },
    "passage": {
        "interpolation that extrapolates": Case(
            [
                CONV,
                node(
                    "Resize",
                    "a r s",
                    "c",
                    mode="linear",
                    coordinate_transformation_mode="tf_crop_and_resize",
                    extrapolation_value=1.0,
                ),
                BN,
            ],
            "producer-not-foldable",
            stored={**W, "r": np.float32([0, 0, -0.5, 0, 1, 1, 1.5, 1]), "s": np.float32([1, 1, 2, 2])},
        ),
        "weights left out at the border": Case(
            [CONV, node("Resize", "a _ s", "c", mode="cubic", exclude_outside=1), BN],
            "producer-not-foldable",
            stored={**W, "s": np.float32([1, 1, 2, 2])},
        ),
        "more channels": Case(
            [CONV, node("Resize", "a _ s", "c", mode="nearest"), BN],
            "producer-not-foldable",
            stored={**W, "s": np.float32([1, 2, 1, 1])},
            channels=12,
        ),
        "a mask that is used": Case(
            [CONV, node("Dropout", "a", "c m"), BN, node("Cast", "m", "z", to=TensorProto.FLOAT)],
            "producer-not-foldable",
            outputs=YZ,
            stored=W,
        ),
    },
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=f"{rule}: {name}") for rule, cases in CASES.items() for name, c in cases.items()],
)
def test_it_stays(case: Case) -> None:
    parameters = batchnorm_parameters(case.channels)
    if case.positive:
        parameters["bn.gamma"] = np.abs(parameters["bn.gamma"])
    if case.scale:
        parameters["bn.beta"] *= 0
        parameters["bn.mean"] *= 0
    built = model(case.nodes, {"x": case.shape}, case.outputs, {**case.stored, **parameters})
    result = fold(built)
    kept = {entry.name: entry for entry in result.report.kept}
    assert kept["bn"].reason == case.reason, kept["bn"]
    assert case.says in kept["bn"].detail
    assert operators(result.model).count("BatchNormalization") == case.left
    feeds = {"x": random(*[n if isinstance(n, int) else 6 for n in case.shape], seed=7)}
    reference, given = run(built, feeds), run(result.model, feeds)
    if all(np.isfinite(array).all() for array in reference):
        assert relative_error(reference, given) < 1e-5


LAYERS = {
    "conv": (node("Conv", "x w", "c"), {"w": random(6, 6, 3, 3)}, X),
    "conv-transpose": (node("ConvTranspose", "x w", "c", group=2), {"w": random(6, 3, 2, 2)}, X),
    "linear": (node("Gemm", "x w b", "c"), {"w": random(6, 6), "b": random(6)}, [4, 6]),
    "a product": (node("Mul", "x w", "c"), {"w": random(6, 1, 1)}, X),
    "another BatchNorm": (batchnorm("x", "c", prefix="o"), OTHER, X),
}
"""A layer over ``x`` that would take a map, its constants, and the shape of ``x``."""


def kept_behind(layer: str, change: Mapping[str, Any], dtype: Any = np.float32) -> set[str]:
    """Why ``bn`` stays behind a layer; ``change`` sets single numbers of its parameters."""
    first, stored, shape = LAYERS[layer]
    arrays = {**batchnorm_parameters(6), **stored}
    arrays = {name: array.astype(dtype).copy() for name, array in arrays.items()}
    for name, value in change.items():
        arrays[name].reshape(-1)[2] = value
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    built = model([first, batchnorm("c", "y", epsilon=1e-12)], {"x": shape}, ["y"], arrays, elem_type=element)
    result = fold(built)
    assert "bn" not in {entry.name for entry in result.report.folded}
    return {str(entry.reason) for entry in result.report.kept if entry.name == "bn"}


@pytest.mark.parametrize("layer", ["conv", "conv-transpose", "linear"])
def test_a_scale_that_half_precision_cannot_hold(layer: str) -> None:
    """γ = 60000 over a variance of 6e-8: the scale is 2.4e8, and no float16."""
    assert kept_behind(layer, {"bn.gamma": 6e4, "bn.var": 6e-8}, np.float16) == {"out-of-range"}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    "change",
    [{"bn.var": -1.0}, {"bn.var": np.nan}, {"bn.gamma": np.inf}, {"bn.mean": -np.inf}, {"bn.beta": np.nan}],
)
def test_statistics_that_are_no_numbers(layer: str, change: dict[str, float]) -> None:
    assert kept_behind(layer, change) == {"bad-statistics"}


@pytest.mark.parametrize(
    ("layer", "name"), [("conv", "w"), ("conv-transpose", "w"), ("linear", "w"), ("linear", "b")]
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(layer: str, name: str, value: float) -> None:
    assert kept_behind(layer, {name: value}) == {"bad-statistics"}


@pytest.mark.parametrize("shape", [(6,), (1, 6), (6, 6), (6, 1, 6), (1, 1, 6, 6), (2, 1, 1, 1), (2, 6, 1, 1)])
@pytest.mark.parametrize("operation", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("order", ["left", "right"])
@pytest.mark.parametrize("way", ["backward", "forward"])
def test_a_constant_along_another_axis_is_no_number_a_channel(
    way: str, order: str, operation: str, shape: tuple[int, ...]
) -> None:
    """Channels, height and width are 6: only the rules of broadcasting say along which the constant lies."""
    k = 1.5 + np.abs(random(*shape, seed=4))
    source, target = ("a", "c") if way == "backward" else ("n", "m")
    inputs = f"k {source}" if order == "left" else f"{source} k"
    middle = node(operation, inputs, target)
    # Far from 0, where a quotient has no digits.
    gate = [node("Conv", "x w", "g", pads=[1] * 4), node("Sigmoid", "g", "h"), node("Conv", "h v", "a")]
    if way == "backward":
        nodes = [*gate, middle, BN]
    else:
        nodes = [node("Sigmoid", "x", "t"), batchnorm("t", "n"), middle, node("Conv", "m v", "y")]
    parameters = batchnorm_parameters(6)
    parameters["bn.gamma"] = np.abs(parameters["bn.gamma"])
    parameters["bn.beta"] = np.float32(6) + np.abs(parameters["bn.beta"])
    stored = {**W, "v": np.abs(random(6, 6, 1, 1, seed=5)), "k": k, **parameters}
    built = model(nodes, {"x": X}, ["y"], stored)
    result = fold(built)
    if operation == "Mul" or (operation == "Div" and order == "right"):
        # No shift passes such a factor; a scale that passed would leave the BatchNorm there all the same.
        assert result.report.batchnorm.after == 1, result.report.folded
    feeds = {"x": random(*X, seed=7)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-5


def test_every_rule_has_three() -> None:
    assert all(len(cases) >= 3 for cases in CASES.values())


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(("size", "left"), [("H", 1), (2, 0), (1, 1)])
def test_a_window_with_gaps_may_lie_in_the_padding_alone(operator: str, size: int | str, left: int) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node(
            operator, ["c"], ["p"], name="pool", kernel_shape=[2, 2], dilations=[2, 2], pads=[1] * 4
        ),
        batchnorm("p", "y"),
    ]
    held = {"w": random(6, 3, 1, 1), **batchnorm_parameters(6)}
    held["bn.gamma"] = np.abs(held["bn.gamma"])  # a maximum lets no sign through
    built = model(nodes, {"x": [1, 3, size, size]}, ["y"], held)
    report = fold(built).report
    assert report.batchnorm.after == left
    if left:
        assert report.kept[0].reason is Reason.SHIFT_INTO_PADDING
