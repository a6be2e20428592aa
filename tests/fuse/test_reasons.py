"""The sentences of reports, each held against a model for which it is said: what it claims, and what it advises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run

from convbn.fuse.fold import Folding, fold
from convbn.fuse.frontends.onnx.model.skeleton import infer_shapes
from convbn.fuse.options import FuseOptions

X = [2, 6, 6, 6]


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), output.split(), name=f"{op} {output}", **attributes)


def folding(
    nodes: Sequence[onnx.NodeProto],
    stored: Mapping[str, np.ndarray] | None = None,
    *,
    inputs: Mapping[str, Sequence[Any]] | None = None,
    outputs: Sequence[str] = ("y",),
    channels: int = 6,
    **options: Any,
) -> Folding:
    """The fold of a graph over ``x`` whose outputs are those of before; γ > 0."""
    parameters = batchnorm_parameters(channels)
    parameters["bn.gamma"] = np.abs(parameters["bn.gamma"])
    known = {**parameters, "w": random(6, 6, 3, 3) / 5, "k": random(6, 6, 1, 1), **(stored or {})}
    given = {"x": X} if inputs is None else dict(inputs)
    used = {name for one in nodes for name in one.input} - {name for one in nodes for name in one.output}
    built = model(
        nodes, given, outputs, {k: v for k, v in known.items() if k in used - set(given)}, **options
    )
    result = fold(built)
    feeds = {
        name: np.abs(random(*[n if isinstance(n, int) else 6 for n in shape], seed=7))
        for name, shape in given.items()
    }
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-5
    return result


def said(*given: Any, **options: Any) -> tuple[str, str]:
    """Why ``bn`` stays."""
    (kept,) = (one for one in folding(*given, **options).report.kept if one.name == "bn")
    return str(kept.reason), kept.detail


def goes(*given: Any, **options: Any) -> bool:
    return "BatchNormalization" not in operators(folding(*given, **options).model)


CONV = node("Conv", "x w", "c", pads=[1] * 4)
BN = batchnorm("c", "y")
BENT = [node("Sigmoid", "x", "t"), batchnorm("t", "n")]


# --- weights and parameters that are no constants -----------------------------------------------------------------


def test_a_weight_that_is_fed() -> None:
    reason, detail = said([CONV, BN], inputs={"x": X, "w": [6, 6, 3, 3]})
    assert reason == "weight-not-constant"
    assert "the weight 'w' of Conv 'Conv c' is an input of the model" in detail


def test_a_weight_that_hangs_on_the_data() -> None:
    reason, detail = said(
        [node("ReduceMean", "x", "m"), node("Mul", "w m", "v"), node("Conv", "x v", "c"), BN]
    )
    assert reason == "weight-not-constant"
    assert "the weight 'v' of Conv 'Conv c' is computed while the model runs" in detail


def test_a_weight_of_constants_alone_which_goes_once_it_is_stored() -> None:
    """Nothing of it depends on the data: to say that the run computes it would send people after the wrong thing."""
    nodes = [node("Tanh", "w", "u"), node("Abs", "u", "v"), node("Conv", "x v", "c"), BN]
    reason, detail = said(nodes)
    assert reason == "weight-not-constant"
    assert (
        "the weight 'v' of Conv 'Conv c' is computed from constants alone, by operators of which Tanh 'Tanh u' "
        "is not evaluated here; it would go if the result were stored"
    ) in detail
    assert goes(nodes[2:], {"v": np.abs(np.tanh(random(6, 6, 3, 3) / 5))})


def test_a_weight_of_random_numbers_is_computed_in_the_run() -> None:
    nodes = [
        helper.make_node("RandomNormal", [], ["v"], shape=[6, 6, 3, 3], name="noise"),
        node("Conv", "x v", "c"),
        batchnorm("c", "y"),
    ]
    built = model(nodes, {"x": X}, ["y"], batchnorm_parameters(6))
    (kept,) = fold(built).report.kept
    assert "is computed while the model runs" in kept.detail


@pytest.mark.parametrize("name", ["bn.gamma", "bn.beta", "bn.mean", "bn.var"])
def test_a_parameter_that_is_fed(name: str) -> None:
    reason, detail = said([CONV, BN], inputs={"x": X, name: [6]})
    assert reason == "parameters-not-constant"
    assert f"'{name}' of BatchNorm 'bn' is an input of the model" in detail


def test_a_parameter_from_another_branch() -> None:
    nodes = [node("ReduceMean", "x axes", "bn.gamma", keepdims=0), CONV, BN]
    reason, detail = said(nodes, {"axes": np.int64([0, 2, 3])})
    assert (reason, "'bn.gamma' of BatchNorm 'bn' is computed while the model runs" in detail) == (
        "parameters-not-constant",
        True,
    )


def test_a_parameter_of_constants_alone_which_goes_once_it_is_stored() -> None:
    reason, detail = said([node("Tanh", "g", "bn.gamma"), CONV, BN], {"g": np.abs(random(6))})
    assert reason == "parameters-not-constant"
    assert "is computed from constants alone, by operators of which Tanh 'Tanh bn.gamma'" in detail
    assert goes([CONV, BN], {"bn.gamma": np.tanh(np.abs(random(6)))})


# --- what cannot be passed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["Mul", "Div"])
def test_a_mask_takes_no_shift_and_the_axis_is_proven(operator: str) -> None:
    nodes = [CONV, node(operator, "c mask", "m"), batchnorm("m", "y")]
    mask = np.linspace(1, 2, 36, dtype="f4").reshape(1, 1, 6, 6)
    reason, detail = said(nodes, {"mask": mask})
    assert reason == "producer-not-foldable"
    assert (
        f"the constant of {operator} '{operator} m' differs within a channel, so no shift passes it" in detail
    )
    assert goes(nodes, {"mask": mask, "bn.beta": np.zeros(6, "f4"), "bn.mean": np.zeros(6, "f4")})
    assert goes(nodes, {"mask": np.linspace(1, 2, 6, dtype="f4").reshape(6, 1, 1)})


def test_padding_that_is_left_to_the_runtime() -> None:
    def nodes(weight: str, **attributes: Any) -> list[onnx.NodeProto]:
        return [*BENT, node("Conv", f"n {weight}", "y", **attributes)]

    _, detail = said(nodes("w", auto_pad="SAME_UPPER"))
    assert "Conv 'Conv y' leaves its padding to the runtime, and a shift would lack in the zeros" in detail
    _, detail = said(nodes("w", pads=[1] * 4))
    assert "Conv 'Conv y' puts zeros around its data, where the shift would lack" in detail
    assert goes(nodes("k", auto_pad="SAME_UPPER", strides=[2, 2]))
    assert goes(nodes("w", auto_pad="VALID"))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_transposed_convolution_is_reached_by_other_positions_of_its_kernel(stride: int) -> None:
    """With as many steps as positions nothing overlaps, and each place still has a position of its own."""
    stored = {"u": random(6, 6, 2, 2)}
    nodes = [*BENT, node("ConvTranspose", "n u", "y", strides=[stride] * 2)]
    _, detail = said(nodes, stored)
    assert "spreads a shift unevenly, by which positions of its kernel reach a place" in detail
    assert "overlap" not in detail
    assert goes([*BENT, node("ConvTranspose", "n k", "y")])


def test_a_recurrent_layer_has_weights_and_takes_nothing_behind_it() -> None:
    nodes = [
        node("RNN", "x wx wh", "r", hidden_size=6),
        node("Squeeze", "r one", "c"),
        node("Transpose", "c", "d", perm=[1, 2, 0]),
        batchnorm("d", "y"),
    ]
    stored = {"wx": random(1, 6, 5), "wh": random(1, 6, 6), "one": np.int64([1])}
    reason, detail = said(nodes, stored, inputs={"x": [4, 2, 5]})
    assert reason == "producer-not-foldable"
    assert "comes from RNN 'RNN r', which takes no scale and shift behind it" in detail


# --- axes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (2,), (3, 2)])
def test_matrices_from_the_left(batch: tuple[int, ...]) -> None:
    """Their rows are the channels, not the last axis, however many matrices there are."""
    data = [*(batch or (2,)), 4, 3]
    nodes = [node("MatMul", "left x", "c"), BN]
    stored = {"left": random(*batch, 6 if len(data) == 3 else 5, 4)}
    if len(data) == 3:
        assert goes(nodes, stored, inputs={"x": data})
    else:
        result = folding(nodes, {**stored, **batchnorm_parameters(2)}, inputs={"x": data}, channels=2)
        assert "axis of" not in result.report.kept[0].detail if result.report.kept else True


def test_a_stack_that_is_broadcast_is_named_for_what_it_is() -> None:
    nodes = [node("MatMul", "left x", "c"), BN]
    reason, detail = said(nodes, {"left": random(1, 6, 4)}, inputs={"x": [2, 4, 3]})
    assert reason == "producer-not-foldable"
    assert "comes from MatMul 'MatMul c'" in detail
    assert "channel axis" not in detail


def ranked(nodes: Sequence[onnx.NodeProto], stored: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """A model that says nothing of the rank of its input."""
    built = model(nodes, {"x": [2]}, [], {**batchnorm_parameters(6), **stored})
    built.graph.input[0].type.tensor_type.ClearField("shape")
    built.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    return built


@pytest.mark.parametrize(("shape", "left"), [((5, 4), 0), ((5, 6, 4), 1)])
def test_a_rank_that_is_not_stated_is_settled_by_the_shape_of_the_input(
    shape: tuple[int, ...], left: int
) -> None:
    built = ranked([node("MatMul", "x m", "c"), BN], {"m": random(4, 6)})
    (kept,) = fold(built).report.kept
    assert str(kept.reason) == "axis-not-proven"
    advice = "because its rank is not (example inputs, --input-shape or stored shapes would settle it)"
    assert advice in kept.detail
    result = fold(built, input_shapes={"x": shape})
    assert result.report.batchnorm.after == left
    feeds = {"x": random(*shape, seed=7)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-5


def test_what_is_open_stays_open() -> None:
    """A size counts if it is the same at other sizes of what the model leaves open, and never by coincidence."""
    nodes = [
        node("Conv", "x k", "c"),
        node("Add", "z one", "e"),
        node("Shape", "z", "s"),
        node("Slice", "s zero three", "to"),
        node("Reshape", "c to", "r", allowzero=0),
        node("GlobalAveragePool", "c", "y"),
    ]
    stored = {"k": random(6, 6, 1, 1), "one": np.float32([1]), "zero": np.int64([0]), "three": np.int64([3])}
    built = model(nodes, {"x": ["N", 6, "H", 6]}, [], stored)
    built.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    plain = infer_shapes(built)
    assert (plain["c"][0], plain["c"][3]) == ("N", 6)
    assert isinstance(plain["c"][2], str)
    assert "e" not in plain
    found = infer_shapes(built, {"x": (2, 6, 6, 6), "z": (2, 6, 36), "other": (1,)})
    assert found["c"] == plain["c"]
    assert found["e"] == (None, 6, 36)
    assert len(found["r"]) == 3
    assert infer_shapes(built, {"x": (2, 6, 6)})["c"] == plain["c"]  # of another rank than the model says


def test_a_reshape_whose_sizes_are_known_is_not_said_to_lack_them() -> None:
    nodes = [CONV, node("Reshape", "c to", "r"), batchnorm("r", "y")]
    reason, detail = said(nodes, {"to": np.int64([2, 4, 9, 6])}, channels=4)
    assert reason == "axis-not-proven"
    assert "the BatchNorm's channels are not, or not provably, one axis on both sides of Reshape" in detail


def test_rows_that_are_put_along_the_axis() -> None:
    nodes = [
        node("MatMul", "x m", "d"),
        node("Transpose", "d", "e", perm=[1, 0]),
        node("ScatterElements", "e i e", "c", axis=1),
        batchnorm("c", "y"),
    ]
    stored = {"m": random(6, 4), "i": np.tile(np.int64([1, 0, 3, 2, 5, 4]), (4, 1))}
    nodes.insert(2, node("Neg", "e", "u"))
    nodes[3] = node("ScatterElements", "e i u", "c", axis=1)
    reason, detail = said(nodes, stored, inputs={"x": [6, 6]})
    assert reason == "axis-not-proven"
    assert "the indices of ScatterElements 'ScatterElements c' run over the BatchNorm's axis" in detail


# --- bounds, outputs, options ---------------------------------------------------------------------------------------


def test_a_way_that_is_too_deep_and_one_that_is_too_wide() -> None:
    deep = [CONV, *(node("Identity", "c" if i == 0 else f"i{i - 1}", f"i{i}") for i in range(62))]
    reason, detail = said([*deep, batchnorm("i61", "y")])
    assert reason == "too-far"
    assert "more than 60 operators in a row" in detail
    wide = [node("Conv", "x k", f"c{i}") for i in range(402)]
    joined = node("Concat", " ".join(f"c{i}" for i in range(402)), "j", axis=2)
    reason, detail = said([*wide, joined, batchnorm("j", "y")])
    assert reason == "too-far"
    assert "more than 400 operators" in detail


def test_an_output_that_nobody_needs_can_be_dropped() -> None:
    reason, detail = said([CONV, BN], outputs=("y", "c"))
    assert reason == "observed-elsewhere"
    assert "the output of Conv 'Conv c' is also an output of the model" in detail
    assert goes([CONV, BN])


def test_half_precision_goes_in_float32() -> None:
    """γ = 60000 over a variance of 6e-8 is 2.4e8, and no float16."""

    def left(dtype: Any) -> list[str]:
        stored = {**batchnorm_parameters(6), "w": random(6, 6, 3, 3)}
        stored = {name: array.astype(dtype) for name, array in stored.items()}
        stored["bn.gamma"][2], stored["bn.var"][2] = 6e4, 6e-8
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        built = model([CONV, batchnorm("c", "y", epsilon=1e-12)], {"x": X}, ["y"], stored, elem_type=kind)
        return [str(kept.reason) for kept in fold(built).report.kept]

    assert left(np.float16) == ["out-of-range"]
    assert left(np.float32) == []


def test_in_training_it_is_no_fixed_map_and_in_evaluation_it_goes() -> None:
    names = [f"bn.{name}" for name in ("gamma", "beta", "mean", "var")]

    def nodes(mode: int) -> list[onnx.NodeProto]:
        made = ["y", "m", "v"][: 1 + 2 * mode]
        return [
            CONV,
            helper.make_node("BatchNormalization", ["c", *names], made, name="bn", training_mode=mode),
        ]

    (kept,) = fold(
        model(nodes(1), {"x": X}, ["y"], {"w": random(6, 6, 3, 3), **batchnorm_parameters(6)})
    ).report.kept
    assert str(kept.reason) == "training-mode"
    assert goes(nodes(0))


def test_an_initializer_that_is_fed_too_is_frozen() -> None:
    built = model([CONV, BN], {"x": X}, ["y"], {"w": random(6, 6, 3, 3), **batchnorm_parameters(6)})
    built.graph.input.append(helper.make_tensor_value_info("bn.gamma", TensorProto.FLOAT, [6]))
    (kept,) = fold(built).report.kept
    assert (str(kept.reason), "a caller may feed another value" in kept.detail) == (
        "overridable-initializer",
        True,
    )
    assert fold(built, options=FuseOptions(freeze=True)).report.kept == ()
