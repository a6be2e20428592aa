"""Initializers that are inputs too: left alone, or made constants where the user says that nobody feeds them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run

from convbn.fuse.fold import fold
from convbn.fuse.options import FuseOptions

FEEDS = {"x": random(1, 6, 5, 5, seed=3)}


def overridable(*names: str) -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y")]
    initializers = {"w": random(6, 6, 3, 3), **batchnorm_parameters(6)}
    built = model(nodes, {"x": [1, 6, 5, 5]}, ["y"], initializers)
    for name in names:
        built.graph.input.append(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, initializers[name].shape)
        )
    return built


def inputs(built: onnx.ModelProto) -> list[str]:
    return [value.name for value in built.graph.input]


@pytest.mark.parametrize("names", [("w",), ("bn.gamma",), ("w", "bn.mean", "bn.var")])
def test_frozen_it_folds(names: tuple[str, ...]) -> None:
    built = overridable(*names)
    before = built.SerializeToString(deterministic=True)
    result = fold(built, options=FuseOptions(freeze=True))
    assert built.SerializeToString(deterministic=True) == before
    assert operators(result.model) == ["Conv"]
    assert inputs(result.model) == ["x"]
    assert relative_error(run(built, FEEDS), run(result.model, FEEDS)) < 1e-5
    assert any(f"are constants now: {len(names)}" in note for note in result.report.notes)
    assert result.report.options.to_dict()["freeze"] is True


def test_what_was_frozen_cannot_be_fed_any_more() -> None:
    """Not ignored in silence: the runtime refuses it."""
    built = overridable("w")
    fed = {**FEEDS, "w": random(6, 6, 3, 3, seed=9)}
    run(built, fed)
    with pytest.raises(InvalidArgument, match="Invalid input name: w"):
        run(fold(built, options=FuseOptions(freeze=True)).model, fed)


def test_frozen_although_nothing_folds() -> None:
    """The user said what they are, whatever the fold makes of it."""
    built = overridable("w")
    built.graph.node[0].op_type = "Sigmoid"
    del built.graph.node[0].input[1:]
    result = fold(built, options=FuseOptions(freeze=True))
    assert inputs(result.model) == ["x"]


def test_not_frozen_it_stays() -> None:
    (kept,) = fold(overridable("w")).report.kept
    assert kept.reason == "overridable-initializer"


def test_inputs_without_an_initializer_stay_inputs() -> None:
    built = overridable("w")
    del built.graph.initializer[:1]
    result = fold(built, options=FuseOptions(freeze=True))
    assert inputs(result.model) == ["x", "w"]
    assert [str(kept.reason) for kept in result.report.kept] == ["weight-not-constant"]


@pytest.mark.parametrize("freeze", [False, True])
def test_before_ir_4_they_are_constants_anyway(freeze: bool) -> None:
    """And stay inputs: the format wanted every initializer to be one."""
    names = ["w", "bn.gamma", "bn.beta", "bn.mean", "bn.var"]
    built = overridable(*names)
    built.ir_version = 3
    built.opset_import[0].version = 8
    onnx.checker.check_model(built, full_check=True)
    result = fold(built, options=FuseOptions(freeze=freeze))
    onnx.checker.check_model(result.model, full_check=True)
    assert operators(result.model) == ["Conv"]
    assert {"x", "w", "w_bias"} <= set(inputs(result.model))
    assert relative_error(run(built, FEEDS), run(result.model, FEEDS)) < 1e-5


def test_before_ir_4_a_file_that_declares_none_stays_so() -> None:
    built = overridable()
    built.ir_version = 3
    result = fold(built)
    assert inputs(result.model) == ["x"]
    assert relative_error(run(built, FEEDS), run(result.model, FEEDS)) < 1e-5


def test_a_sparse_initializer_that_is_an_input_is_none_either() -> None:
    built = overridable()
    weight = numpy_helper.to_array(built.graph.initializer[0]).copy()
    weight[:, 1:] = 0
    flat = np.flatnonzero(weight)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(weight.reshape(-1)[flat], "w"),
        numpy_helper.from_array(flat.astype(np.int64), "w_indices"),
        list(weight.shape),
    )
    del built.graph.initializer[0]
    built.graph.sparse_initializer.append(sparse)
    assert not fold(built).report.kept
    built.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, weight.shape))
    (kept,) = fold(built).report.kept
    assert kept.reason == "overridable-initializer"
    assert not fold(built, options=FuseOptions(freeze=True)).report.kept
