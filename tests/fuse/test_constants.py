"""BatchNorms, sums, products and means over constants alone: what they give is stored, and they go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run

from convbn.fuse.fold import Folding, fold
from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.elementwise import Arithmetic, Elementwise
from convbn.fuse.operators.evaluation import evaluated
from convbn.fuse.operators.mean import Mean
from convbn.fuse.options import FuseOptions
from convbn.fuse.view.dataflow import Constant, Value

X = {"x": [2, 6, 8, 8]}
RULE = "batchnorm-of-constants"


def standardised(target: str = "v", weight: str = "w", tag: str = "") -> list[onnx.NodeProto]:
    """``v``: the weight normalised by its own mean and variance, as timm's ScaledStdConv2d is exported."""

    def name(text: str) -> str:
        return text + tag

    def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [name(output)], name=f"{op}_{name(output)}", **attributes)

    return [
        node("Reshape", [weight, "rows"], "r"),
        node("ReduceMean", [name("r"), "axes"], "mean", keepdims=0),
        node("ReduceMean", [name("r"), "axes"], "kept", keepdims=1),
        node("Sub", [name("r"), name("kept")], "d"),
        node("Mul", [name("d"), name("d")], "q"),
        node("ReduceMean", [name("q"), "axes"], "var", keepdims=0),
        node("Mul", ["gain", "factor"], "gamma"),
        helper.make_node(
            "BatchNormalization",
            [name("r"), name("gamma"), "beta", name("mean"), name("var")],
            [name("b")],
            name=name("bn"),
        ),
        helper.make_node("Reshape", [name("b"), "shape"], [target], name=f"back{tag}"),
    ]


def stored(**more: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "w": random(6, 6, 3, 3),
        "rows": np.int64([1, 6, -1]),
        "axes": np.int64([0, 2]),
        "shape": np.int64([6, 6, 3, 3]),
        "gain": random(6, seed=4),
        "factor": np.float32(0.2),
        "beta": np.zeros(6, np.float32),
        **more,
    }


def conv(source: str, target: str, weight: str = "v", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, weight], [target], name=f"conv_{target}", **attributes)


def check(built: onnx.ModelProto, left: int = 0, **options: Any) -> Folding:
    before = built.SerializeToString(deterministic=True)
    result = fold(built, options=FuseOptions(**options))
    assert built.SerializeToString(deterministic=True) == before
    report = result.report
    assert report.batchnorm.after == left == operators(result.model).count("BatchNormalization"), report.kept
    assert report.batchnorm.before == len(report.folded) + len(report.kept)
    onnx.checker.check_model(result.model, full_check=True)
    feeds = {"x": random(2, 6, 8, 8, seed=7)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-5
    again = fold(result.model, options=FuseOptions(**options))
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(
        deterministic=True
    )
    return result


def test_weight_standardisation() -> None:
    result = check(model([*standardised(), conv("x", "y")], X, ["y"], stored()))
    assert operators(result.model) == ["Conv"]
    (entry,) = result.report.folded
    assert (entry.name, entry.into, entry.rule) == ("bn", ("conv_y",), RULE)
    assert [tensor.name for tensor in result.model.graph.initializer] == ["v"]


def test_a_batchnorm_behind_the_standardised_convolution_goes_too() -> None:
    built = model(
        [*standardised(), conv("x", "c"), batchnorm("c", "y", prefix="b2")],
        X,
        ["y"],
        stored(**batchnorm_parameters(6, prefix="b2", seed=5)),
    )
    result = check(built)
    assert operators(result.model) == ["Conv"]
    # Constants first: the other order would leave the first one without anything it went into.
    into = {entry.name: (entry.into, entry.rule) for entry in result.report.folded}
    assert into["bn"] == (("conv_c",), RULE)
    assert into["b2"][0] == ("conv_c",)


def test_rounded_once_although_folded_twice() -> None:
    """Float16 weights standardised and then scaled: the result is that of float64, to half a unit."""
    parameters = {n: a.astype(np.float16) for n, a in batchnorm_parameters(6, prefix="b2", seed=5).items()}
    arrays = {
        name: array.astype(np.float16) if array.dtype.kind == "f" else array
        for name, array in stored().items()
    }
    built = model(
        [*standardised(), conv("x", "c"), batchnorm("c", "y", prefix="b2")],
        X,
        ["y"],
        {**arrays, **parameters},
        elem_type=TensorProto.FLOAT16,
    )
    result = fold(built)
    weight = next(t for t in result.model.graph.initializer if tuple(t.dims) == (6, 6, 3, 3))
    w = arrays["w"].astype(np.float64).reshape(6, -1)
    s = arrays["gain"].astype(np.float64) * arrays["factor"].astype(np.float64)
    exact = (w - w.mean(1, keepdims=True)) / np.sqrt(w.var(1, keepdims=True) + np.float32(1e-5)) * s[:, None]
    p = {name.removeprefix("b2."): array.astype(np.float64) for name, array in parameters.items()}
    exact *= (p["gamma"] / np.sqrt(p["var"] + np.float32(1e-5)))[:, None]
    np.testing.assert_array_equal(numpy_helper.to_array(weight), exact.reshape(6, 6, 3, 3).astype(np.float16))


def test_one_standardised_weight_for_two_convolutions() -> None:
    built = model([*standardised(), conv("x", "a"), conv("a", "y")], X, ["y"], stored())
    result = check(built)
    assert operators(result.model) == ["Conv", "Conv"]
    assert result.report.folded[0].into == ("conv_a", "conv_y")
    assert len(result.model.graph.initializer) == 1


def test_the_plain_weight_is_read_beside_the_standardised_one() -> None:
    """And its own BatchNorm is folded into it, after the other was computed from it."""
    nodes = [
        *standardised(),
        conv("x", "a"),
        conv("x", "c", "w"),
        batchnorm("c", "n", prefix="b2"),
        helper.make_node("Relu", ["n"], ["m"]),
        batchnorm("a", "o", prefix="b3"),
        helper.make_node("Concat", ["o", "m"], ["y"], axis=1),
    ]
    more = {**batchnorm_parameters(6, prefix="b2", seed=5), **batchnorm_parameters(6, prefix="b3", seed=6)}
    check(model(nodes, X, ["y"], stored(**more)))


def test_a_standardised_weight_that_is_an_output_stays() -> None:
    result = check(model([*standardised(), conv("x", "y")], X, ["y", "v"], stored()), 1)
    assert result.report.kept[0].reason == "observed-elsewhere"


def test_the_rule_can_be_switched_off() -> None:
    result = check(model([*standardised(), conv("x", "y")], X, ["y"], stored()), 1, skip=(RULE,))
    assert result.report.kept[0].reason == "skipped-by-option"


def test_data_that_is_no_constant_stays() -> None:
    """The weight comes in from outside; only its shape is known."""
    arrays = stored()
    del arrays["w"]
    built = model([*standardised(), conv("x", "y")], {**X, "w": [6, 6, 3, 3]}, ["y"], arrays)
    (kept,) = fold(built).report.kept
    assert kept.reason == "parameters-not-constant"


def test_data_that_a_caller_may_feed_stays() -> None:
    built = model([*standardised(), conv("x", "y")], X, ["y"], stored())
    built.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [6, 6, 3, 3]))
    assert fold(built).report.batchnorm.after == 1
    assert fold(built, options=FuseOptions(freeze=True)).report.batchnorm.after == 0


def test_in_training_mode_the_batch_is_the_constant() -> None:
    """As the legacy exporter writes weight standardisation."""
    nodes = [*standardised(), conv("x", "y")]
    nodes[7].attribute.append(helper.make_attribute("training_mode", 1))
    nodes[7].output.extend(["running_mean", "running_var"])
    check(model(nodes, X, ["y"], stored()))


def test_in_training_mode_statistics_that_are_read_keep_it() -> None:
    nodes = [*standardised(), conv("x", "y"), helper.make_node("Neg", ["running_mean"], ["z"])]
    nodes[7].attribute.append(helper.make_attribute("training_mode", 1))
    nodes[7].output.extend(["running_mean", "running_var"])
    (kept,) = fold(model(nodes, X, ["y", "z"], stored())).report.kept
    assert kept.reason == "extra-outputs-used"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_stay(value: float) -> None:
    arrays = stored()
    arrays["w"][2, 1, 0, 0] = value
    (kept,) = fold(model([*standardised(), conv("x", "y")], X, ["y"], arrays)).report.kept
    assert kept.reason == "bad-statistics"


def test_a_constant_that_leaves_its_dtype_stays() -> None:
    arrays = {n: a.astype(np.float16) if a.dtype.kind == "f" else a for n, a in stored().items()}
    arrays["gain"] = np.full(6, 6e4, np.float16)
    arrays["factor"] = np.float16(100)
    built = model([*standardised(), conv("x", "y")], X, ["y"], arrays, elem_type=TensorProto.FLOAT16)
    (kept,) = fold(built).report.kept
    assert kept.reason == "out-of-range"


def test_a_constant_that_nobody_reads_stays() -> None:
    nodes = [*standardised(), helper.make_node("Relu", ["x"], ["y"])]
    (kept,) = fold(model(nodes, X, ["y"], stored())).report.kept
    assert kept.reason == "reads-the-input"


def test_inside_a_branch() -> None:
    """The constant is computed outside and read by both branches."""
    branches = [
        helper.make_graph(
            [helper.make_node("Conv", ["x", "v"], [name], name=name)],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for name in ("then", "else")
    ]
    node = helper.make_node(
        "If", ["flag"], ["y"], name="if", then_branch=branches[0], else_branch=branches[1]
    )
    result = check(model([*standardised(), node], X, ["y"], stored(flag=np.array(True))))
    assert operators(result.model) == ["If"]


def test_squares_of_squares_are_not_computed() -> None:
    """Each step reads the last one twice: without a bound sixty steps are 2⁶⁰ products."""
    nodes = [helper.make_node("Mul", [f"w{i}", f"w{i}"], [f"w{i + 1}"]) for i in range(60)]
    nodes += [conv("x", "c", "w60"), batchnorm("c", "y")]
    built = model(nodes, X, ["y"], {"w0": random(6, 6, 3, 3), **batchnorm_parameters(6)})
    (kept,) = fold(built).report.kept
    assert kept.reason == "weight-not-constant"


# --- the operators by themselves ---------------------------------------------------------------------


def values(*arrays: np.ndarray) -> list[Value]:
    return [Value(str(i), array.shape, constant=Constant.of(array)) for i, array in enumerate(arrays)]


@pytest.mark.parametrize("operation", list(Arithmetic))
def test_arithmetic_broadcasts(operation: Arithmetic) -> None:
    a, b = random(2, 3, 4), random(3, 1, seed=1)
    constant = evaluated(Elementwise(operation), values(a, b))
    assert constant is not None
    numpy = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[operation]
    np.testing.assert_array_equal(constant.exact(), numpy(a.astype(np.float64), b.astype(np.float64)))
    assert (constant.dtype, constant.array().dtype, constant.shape) == (np.float32, np.float32, (2, 3, 4))


@pytest.mark.parametrize(
    "arrays",
    [
        (random(2, 3), random(4)),
        (random(2), random(2, dtype=np.float64)),
        (np.int64([1, 2]), np.int64([3, 4])),
        (np.broadcast_to(np.float32(1), (1 << 13, 1)), np.broadcast_to(np.float32(1), (1, 1 << 13))),
    ],
    ids=["shapes", "dtypes", "integers", "size"],
)
def test_arithmetic_that_is_left_alone(arrays: tuple[np.ndarray, ...]) -> None:
    assert evaluated(Elementwise(Arithmetic.ADD), values(*arrays)) is None


def test_a_mean_over_nothing_is_left_alone() -> None:
    assert evaluated(Mean((1,), 2, False), values(np.zeros((3, 0), np.float32))) is None
    assert evaluated(Mean((1,), 3, False), values(np.zeros((3, 2), np.float32))) is None


@pytest.mark.parametrize("op", [BatchNorm(1e-5, channel_axis=2), BatchNorm(1e-5, channel_axis=0)])
def test_a_batchnorm_of_other_channels_is_left_alone(op: BatchNorm) -> None:
    ones = np.ones(3, np.float32)
    assert evaluated(op, values(random(2, 3), ones, ones, ones, ones)) is None


def test_in_training_the_statistics_are_those_of_the_data() -> None:
    data, ones = random(5, 3, 4), np.ones(3, np.float32)
    constant = evaluated(BatchNorm(1e-5, training=True), values(data, ones, ones, 9 * ones, 9 * ones))
    assert constant is not None
    wide = data.astype(np.float64)
    mean, variance = wide.mean((0, 2), keepdims=True), wide.var((0, 2), keepdims=True)
    np.testing.assert_allclose(constant.exact(), (wide - mean) / np.sqrt(variance + 1e-5) + 1, rtol=1e-12)


def test_one_input_that_flows_is_enough() -> None:
    flowing = Value("x", (3,))
    assert evaluated(Elementwise(Arithmetic.ADD), [*values(random(3)), flowing]) is None
    assert evaluated(Elementwise(Arithmetic.ADD), [flowing, *values(random(3))]) is None
