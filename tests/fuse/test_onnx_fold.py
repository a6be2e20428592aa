"""Folding ONNX graphs: what folds is equal, what does not says why, and nothing else changes."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.graphs import (
    batchnorm,
    batchnorm_parameters,
    model,
    operators,
    random,
    relative_error,
    run,
)

from convbn.errors import BadInputError, UsageError
from convbn.fuse.fold import Folding, fold
from convbn.fuse.options import FuseOptions
from convbn.fuse.plan.plan import Plan
from convbn.fuse.plan.planner import make_plan

F32_BOUND = 1e-5


def folded(built: onnx.ModelProto, **options: Any) -> Folding:
    """Fold, and check what must hold after every fold."""
    before = built.SerializeToString(deterministic=True)
    result = fold(built, options=FuseOptions(**options))
    assert built.SerializeToString(deterministic=True) == before, "the caller's model was changed"
    onnx.checker.check_model(result.model, full_check=True)
    report = result.report
    assert report.batchnorm.before == len(report.folded) + len(report.kept)
    assert report.batchnorm.after == len(report.kept)
    again = fold(result.model, options=FuseOptions(**options))
    assert again.report.folded == ()
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(
        deterministic=True
    )
    return result


def folds_equally(built: onnx.ModelProto, feeds: dict[str, np.ndarray], *, left: int = 0) -> Folding:
    result = folded(built)
    assert result.report.batchnorm.after == left, result.report.kept
    assert operators(result.model).count("BatchNormalization") == left
    assert relative_error(run(built, feeds), run(result.model, feeds)) < F32_BOUND
    return result


def only_reason(built: onnx.ModelProto, **options: Any) -> str:
    """The one reason for which the one BatchNorm stays."""
    result = folded(built, **options)
    assert not result.report.folded
    (kept,) = result.report.kept
    assert kept.detail
    return str(kept.reason)


def conv_batchnorm(
    *,
    bias: bool = True,
    channels: int = 6,
    spatial: int = 2,
    groups: int = 1,
    opset: int = 20,
    **attributes: Any,
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    weight = random(channels, 6 // groups, *[3] * spatial)
    initializers = {"w": weight, **batchnorm_parameters(channels)}
    if bias:
        initializers["b"] = random(channels, seed=2)
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    conv = helper.make_node("Conv", inputs, ["c"], name="conv", group=groups, **attributes)
    shape = [2, 6, *[9] * spatial]
    built = model([conv, batchnorm("c", "y")], {"x": shape}, ["y"], initializers, opset=opset)
    return built, {"x": random(*shape, seed=3)}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_conv(bias: bool, spatial: int, groups: int) -> None:
    result = folds_equally(*conv_batchnorm(bias=bias, spatial=spatial, groups=groups))
    assert operators(result.model) == ["Conv"]
    (entry,) = result.report.folded
    assert (entry.name, entry.into, entry.rule) == ("bn", ("conv",), "batchnorm-into-conv")


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 1, 1, 1]},
        {"pads": [0, 1, 2, 3], "strides": [2, 1]},
        {"dilations": [2, 2], "pads": [2, 2, 2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "VALID"},
    ],
)
def test_conv_attributes(attributes: dict[str, Any]) -> None:
    folds_equally(*conv_batchnorm(**attributes))


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 14, 15, 20, 23])
def test_opsets(opset: int) -> None:
    folds_equally(*conv_batchnorm(opset=opset))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_conv_transpose(bias: bool, spatial: int, groups: int) -> None:
    """Channels in and out are equal, so that a scale on the wrong axis would go unnoticed by shapes."""
    weight = random(6, 6 // groups, *[3] * spatial)
    initializers = {"w": weight, "b": random(6, seed=2), **batchnorm_parameters(6)}
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    attributes = {"strides": [2] * spatial, "pads": [1] * 2 * spatial, "output_padding": [1] * spatial}
    node = helper.make_node("ConvTranspose", inputs, ["c"], name="up", group=groups, **attributes)
    shape = [2, 6, *[5] * spatial]
    built = model([node, batchnorm("c", "y")], {"x": shape}, ["y"], initializers)
    result = folds_equally(built, {"x": random(*shape, seed=3)})
    assert operators(result.model) == ["ConvTranspose"]


@pytest.mark.parametrize("bias", [None, (6,), (1, 6), (1,), ()])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_gemm(bias: tuple[int, ...] | None, trans_b: int, alpha: float, beta: float) -> None:
    initializers = {"w": random(6, 6), **batchnorm_parameters(6)}
    inputs = ["x", "w"]
    if bias is not None:
        initializers["b"] = random(*bias, seed=2)
        inputs.append("b")
    node = helper.make_node("Gemm", inputs, ["c"], name="fc", transB=trans_b, alpha=alpha, beta=beta)
    built = model([node, batchnorm("c", "y")], {"x": ["n", 6]}, ["y"], initializers)
    folds_equally(built, {"x": random(4, 6, seed=3)})


def test_gemm_transposed_data() -> None:
    node = helper.make_node("Gemm", ["x", "w"], ["c"], name="fc", transA=1)
    initializers = {"w": random(5, 6), **batchnorm_parameters(6)}
    built = model([node, batchnorm("c", "y")], {"x": [5, 3]}, ["y"], initializers)
    folds_equally(built, {"x": random(5, 3, seed=3)})


@pytest.mark.parametrize("shape", [["n", 6], [4, 6]])
def test_matmul_becomes_gemm(shape: list[Any]) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["c"], name="fc")
    initializers = {"w": random(6, 6), **batchnorm_parameters(6)}
    built = model([node, batchnorm("c", "y")], {"x": shape}, ["y"], initializers)
    result = folds_equally(built, {"x": random(4, 6, seed=3)})
    assert operators(result.model) == ["Gemm"]


def test_matmul_of_inferred_rank() -> None:
    """The rank of MatMul's input is stated nowhere: shape inference must say it."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["c"], name="fc"),
        batchnorm("c", "y"),
    ]
    initializers = {"w": random(6, 6), **batchnorm_parameters(6)}
    folds_equally(model(nodes, {"x": [2, 6, 4, 4]}, ["y"], initializers), {"x": random(2, 6, 4, 4)})


def test_matmul_over_a_sequence_stays() -> None:
    """The BatchNorm normalises the sequence; with L == C only the rank tells."""
    node = helper.make_node("MatMul", ["x", "w"], ["c"], name="fc")
    initializers = {"w": random(6, 6), **batchnorm_parameters(6)}
    built = model([node, batchnorm("c", "y")], {"x": [2, 6, 6]}, ["y"], initializers)
    assert only_reason(built) == "axis-not-proven"


def test_matmul_with_the_weight_on_the_left_has_no_channels_along_the_last_axis() -> None:
    node = helper.make_node("MatMul", ["w", "x"], ["c"], name="fc")
    initializers = {"w": random(6, 6), **batchnorm_parameters(6)}
    built = model([node, batchnorm("c", "y")], {"x": [6, 6]}, ["y"], initializers)
    assert only_reason(built) == "reads-the-input"


def test_gemm_with_a_batch_shaped_bias() -> None:
    node = helper.make_node("Gemm", ["x", "w", "b"], ["c"], name="fc")
    initializers = {"w": random(6, 6), "b": random(6, 1), **batchnorm_parameters(6)}
    built = model([node, batchnorm("c", "y")], {"x": [6, 6]}, ["y"], initializers)
    assert operators(folds_equally(built, {"x": random(6, 6, seed=3)}).model) == ["Gemm"]


def test_gemm_that_ignores_its_bias_is_given_one() -> None:
    node = helper.make_node("Gemm", ["x", "w"], ["c"], name="fc", beta=0.0)
    initializers = {"w": random(6, 6), **batchnorm_parameters(6)}
    built = model([node, batchnorm("c", "y")], {"x": [6, 6]}, ["y"], initializers)
    result = folds_equally(built, {"x": random(6, 6, seed=3)})
    assert operators(result.model) == ["Gemm"]


def test_two_batchnorms_become_one_behind_an_activation() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        batchnorm("r", "a", prefix="bn1"),
        batchnorm("a", "y", prefix="bn2"),
    ]
    initializers = {**batchnorm_parameters(6, prefix="bn1"), **batchnorm_parameters(6, prefix="bn2", seed=5)}
    built = model(nodes, {"x": [2, 6, 4, 4]}, ["y"], initializers)
    result = folds_equally(built, {"x": random(2, 6, 4, 4)}, left=1)
    assert result.report.folded[0].rule in ("batchnorm-forward", "batchnorm-into-batchnorm")


def test_two_batchnorms_behind_a_conv_both_go() -> None:
    built, feeds = conv_batchnorm()
    built.graph.node.append(batchnorm("y", "z", prefix="second"))
    built.graph.output[0].name = "z"
    for name, array in batchnorm_parameters(6, prefix="second", seed=9).items():
        built.graph.initializer.append(numpy_helper.from_array(array, name))
    folds_equally(built, feeds)


# --- what must not fold -----------------------------------------------------------------------------


def test_conv_read_by_another_node_stays() -> None:
    built, _ = conv_batchnorm()
    built.graph.node.append(helper.make_node("Relu", ["c"], ["other"], name="branch"))
    built.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [2, 6, 7, 7]))
    result = folded(built)
    assert result.report.kept[0].reason == "several-readers"
    assert "Relu 'branch'" in result.report.kept[0].detail


def test_conv_that_is_an_output_stays() -> None:
    built, _ = conv_batchnorm()
    built.graph.output.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [2, 6, 7, 7]))
    assert only_reason(built) == "observed-elsewhere"


def test_batchnorm_of_an_input_stays() -> None:
    built = model([batchnorm("x", "y")], {"x": [2, 6, 4, 4]}, ["y"], batchnorm_parameters(6))
    assert only_reason(built) == "reads-the-input"


def test_batchnorm_behind_an_activation_stays() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["r"], name="relu"), batchnorm("r", "y")]
    built = model(nodes, {"x": [2, 6, 4, 4]}, ["y"], batchnorm_parameters(6))
    assert only_reason(built) == "producer-not-foldable"


def test_conv_of_another_domain_stays() -> None:
    built, _ = conv_batchnorm()
    built.graph.node[0].domain = "com.example"
    built.opset_import.append(helper.make_opsetid("com.example", 1))
    result = fold(built)
    assert result.report.kept[0].reason == "producer-not-foldable"


def test_training_mode_stays() -> None:
    built, _ = conv_batchnorm(opset=15)
    built.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    built.graph.node[1].output.extend(["running_mean", "running_var"])
    assert only_reason(built) == "training-mode"


def test_training_by_output_count_in_old_opsets_stays() -> None:
    built, _ = conv_batchnorm(opset=9)
    built.graph.node[1].output.extend(["m", "v", "sm", "sv"])
    assert only_reason(built) == "training-mode"


def test_computed_statistics_stay() -> None:
    built, _ = conv_batchnorm()
    built.graph.node.insert(0, helper.make_node("Relu", ["var_in"], ["bn.var_computed"]))
    built.graph.input.append(helper.make_tensor_value_info("var_in", TensorProto.FLOAT, [6]))
    built.graph.node[2].input[4] = "bn.var_computed"
    assert only_reason(built) == "parameters-not-constant"


def test_computed_weight_stays() -> None:
    built, _ = conv_batchnorm()
    built.graph.node.insert(0, helper.make_node("Relu", ["w"], ["w_computed"]))
    built.graph.node[1].input[1] = "w_computed"
    assert only_reason(built) == "weight-not-constant"


@pytest.mark.parametrize("name", ["w", "b", "bn.gamma", "bn.mean"])
def test_overridable_initializer_stays(name: str) -> None:
    built, feeds = conv_batchnorm()
    array = next(numpy_helper.to_array(t) for t in built.graph.initializer if t.name == name)
    built.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape))
    assert only_reason(built) == "overridable-initializer"
    override = {**feeds, name: random(*array.shape, seed=11)}
    assert relative_error(run(built, override), run(folded(built).model, override)) == 0


@pytest.mark.parametrize(("name", "value"), [("bn.var", -1.0), ("bn.var", np.nan), ("bn.gamma", np.inf)])
def test_bad_statistics_stay(name: str, value: float) -> None:
    built, _ = conv_batchnorm()
    for tensor in built.graph.initializer:
        if tensor.name == name:
            array = numpy_helper.to_array(tensor).copy()
            array[0] = value
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    assert only_reason(built) == "bad-statistics"


def test_wrong_number_of_channels_stays() -> None:
    built, _ = conv_batchnorm()
    for name, array in batchnorm_parameters(3).items():
        tensor = next(t for t in built.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(array, name))
    assert fold(built).report.kept[0].reason == "parameters-malformed"


def test_skipped_rule_stays() -> None:
    built, _ = conv_batchnorm()
    assert only_reason(built, skip=("batchnorm-into-conv",)) == "skipped-by-option"
    assert only_reason(built, only=("batchnorm-into-linear",)) == "skipped-by-option"


def test_unknown_rule_is_a_usage_error() -> None:
    built, _ = conv_batchnorm()
    with pytest.raises(UsageError, match="batchnorm-into-conv"):
        fold(built, options=FuseOptions(skip=("nonsense",)))


# --- sharing and names ------------------------------------------------------------------------------


def test_shared_weight_is_cloned() -> None:
    weight, first, second = (
        random(6, 6, 3, 3),
        batchnorm_parameters(6),
        batchnorm_parameters(6, prefix="b2", seed=8),
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c1"], name="conv1"),
        batchnorm("c1", "y1"),
        helper.make_node("Conv", ["x", "w"], ["c2"], name="conv2"),
        batchnorm("c2", "y2", prefix="b2"),
        helper.make_node("Conv", ["x", "w"], ["y3"], name="conv3"),
    ]
    built = model(nodes, {"x": [1, 6, 5, 5]}, ["y1", "y2", "y3"], {"w": weight, **first, **second})
    result = folds_equally(built, {"x": random(1, 6, 5, 5)})
    names = [tensor.name for tensor in result.model.graph.initializer]
    assert len(names) == len(set(names))


def test_weight_that_is_an_output_is_kept_as_it_was() -> None:
    built, feeds = conv_batchnorm()
    built.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [6, 6, 3, 3]))
    folds_equally(built, feeds)


def test_bias_that_is_beta_too() -> None:
    built, feeds = conv_batchnorm()
    built.graph.node[0].input[2] = "bn.beta"
    folds_equally(built, feeds)


def test_new_bias_avoids_names_in_use() -> None:
    built, feeds = conv_batchnorm(bias=False)
    built.graph.node.append(helper.make_node("Relu", ["y"], ["w_bias"], name="clash"))
    built.graph.output[0].name = "w_bias"
    folds_equally(built, feeds)


def test_empty_bias_name() -> None:
    built, feeds = conv_batchnorm()
    built.graph.node[0].input[2] = ""
    folds_equally(built, feeds)


def test_output_keeps_its_name_and_untouched_parts_stay() -> None:
    built, _ = conv_batchnorm()
    built.graph.node[0].doc_string = "from layer 1"
    built.graph.doc_string = "a graph"
    entry = built.metadata_props.add()
    entry.key, entry.value = "author", "someone"
    built.graph.value_info.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [2, 6, 7, 7]))
    result = folded(built).model
    assert [output.name for output in result.graph.output] == ["y"]
    assert result.graph.node[0].doc_string == "from layer 1"
    assert result.graph.doc_string == "a graph"
    assert result.metadata_props[0].value == "someone"
    assert {tensor.name for tensor in result.graph.initializer} == {"w", "b"}
    assert not result.graph.value_info, "the value that went has left its shape behind"


def test_unnamed_nodes_get_names_for_the_report() -> None:
    built, _ = conv_batchnorm()
    for node in built.graph.node:
        node.name = ""
    (entry,) = folded(built).report.folded
    assert (entry.name, entry.into) == ("BatchNormalization(y)", ("Conv(c)",))


# --- constants behind chains ------------------------------------------------------------------------


def test_parameters_behind_chains() -> None:
    """γ through Constant → Cast, β through Expand(CastLike), μ through Reshape, σ² through Squeeze."""
    parameters = batchnorm_parameters(6)
    nodes = [
        helper.make_node(
            "Constant", [], ["g0"], value=numpy_helper.from_array(parameters["bn.gamma"].astype(np.float64))
        ),
        helper.make_node("Cast", ["g0"], ["bn.gamma"], to=TensorProto.FLOAT),
        helper.make_node("Constant", [], ["b0"], value_float=0.25),
        helper.make_node("CastLike", ["b0", "x"], ["b1"]),
        helper.make_node("Shape", ["w"], ["s0"], end=1),
        helper.make_node("Expand", ["b1", "s0"], ["bn.beta"]),
        helper.make_node("Reshape", ["m0", "m1"], ["bn.mean"]),
        helper.make_node("Transpose", ["v0"], ["v1"]),
        helper.make_node("Squeeze", ["v1", "v2"], ["v3"]),
        helper.make_node("Unsqueeze", ["v3", "v2"], ["v4"]),
        helper.make_node("Squeeze", ["v4"], ["v5"]),
        helper.make_node("Identity", ["v5"], ["bn.var"]),
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        batchnorm("c", "y"),
    ]
    initializers = {
        "w": random(6, 3, 3, 3),
        "m0": parameters["bn.mean"].reshape(2, 3),
        "m1": np.int64([-1]),
        "v0": parameters["bn.var"].reshape(6, 1),
        "v2": np.int64([0]),
    }
    built = model(nodes, {"x": [1, 3, 6, 6]}, ["y"], initializers)
    result = folds_equally(built, {"x": random(1, 3, 6, 6)})
    assert operators(result.model) == ["Conv"], "the nodes that only fed the BatchNorm are gone"


def test_chain_that_somebody_else_reads_stays() -> None:
    built, feeds = conv_batchnorm()
    built.graph.node.insert(0, helper.make_node("Identity", ["bn.gamma"], ["g"], name="g"))
    built.graph.node[2].input[1] = "g"
    built.graph.output.append(helper.make_tensor_value_info("g", TensorProto.FLOAT, [6]))
    result = folds_equally(built, feeds)
    assert sorted(operators(result.model)) == ["Conv", "Identity"]


def test_expand_bomb_is_not_computed() -> None:
    nodes = [
        helper.make_node("Expand", ["one", "huge"], ["g"]),
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        batchnorm("c", "y"),
    ]
    nodes[2].input[1] = "g"
    initializers = {
        "w": random(6, 3, 3, 3),
        "one": np.float32([1]),
        "huge": np.int64([2**40]),
        **batchnorm_parameters(6),
    }
    del initializers["bn.gamma"]
    result = fold(model(nodes, {"x": [1, 3, 6, 6]}, ["y"], initializers))
    assert result.report.kept[0].reason == "parameters-not-constant"


# --- scopes -----------------------------------------------------------------------------------------


def if_graph(*, conv_outside: bool) -> onnx.ModelProto:
    """``if flag: bn(conv(x)) else: x₀``, with the conv inside the branch or captured from outside."""
    conv = helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 4)
    branch = helper.make_graph(
        ([] if conv_outside else [conv]) + [batchnorm("c", "then_y")],
        "then",
        [],
        [helper.make_tensor_value_info("then_y", TensorProto.FLOAT, [1, 6, 5, 5])],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["else_y"])],
        "else",
        [],
        [helper.make_tensor_value_info("else_y", TensorProto.FLOAT, [1, 6, 5, 5])],
    )
    node = helper.make_node("If", ["flag"], ["y"], name="if", then_branch=branch, else_branch=other)
    built = model(
        [conv, node] if conv_outside else [node],
        {"x": [1, 6, 5, 5]},
        ["y"],
        {"w": random(6, 6, 3, 3), **batchnorm_parameters(6)},
    )
    built.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    return built


@pytest.mark.parametrize("flag", [True, False])
def test_inside_a_branch_folds(flag: bool) -> None:
    result = folds_equally(if_graph(conv_outside=False), {"x": random(1, 6, 5, 5), "flag": np.array(flag)})
    branch = next(a.g for a in result.model.graph.node[0].attribute if a.name == "then_branch")
    assert [node.op_type for node in branch.node] == ["Conv"]


def test_across_the_border_of_a_branch_stays() -> None:
    assert only_reason(if_graph(conv_outside=True)) == "other-scope"


def test_conv_captured_by_a_branch_stays() -> None:
    built, _ = conv_batchnorm()
    branch = helper.make_graph(
        [helper.make_node("Relu", ["c"], ["t"])],
        "t",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )
    node = helper.make_node("If", ["flag"], ["z"], name="if", then_branch=branch, else_branch=branch)
    built.graph.node.append(node)
    built.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    built.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    assert fold(built).report.kept[0].reason == "several-readers"


# --- dtypes -----------------------------------------------------------------------------------------


def test_float16() -> None:
    initializers = {"w": random(6, 6, 3, 3, dtype=np.float16), **batchnorm_parameters(6, dtype=np.float16)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y")]
    built = model(nodes, {"x": [1, 6, 5, 5]}, ["y"], initializers, elem_type=TensorProto.FLOAT16)
    result = folded(built)
    assert not result.report.kept
    feeds = {"x": random(1, 6, 5, 5, dtype=np.float16)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 5e-3


def test_float16_conv_with_float32_statistics() -> None:
    initializers = {"w": random(6, 6, 3, 3, dtype=np.float16), **batchnorm_parameters(6)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y")]
    built = model(nodes, {"x": [1, 6, 5, 5]}, ["y"], initializers, elem_type=TensorProto.FLOAT16)
    result = folded(built)
    assert not result.report.kept
    assert {t.data_type for t in result.model.graph.initializer} == {TensorProto.FLOAT16}


def test_an_addition_is_of_the_type_of_its_data() -> None:
    """Where only the scale goes, what is left behind a float16 layer is no float32 addition."""
    initializers = {"w": random(6, 6, dtype=np.float16), **batchnorm_parameters(6)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="fc"),
        helper.make_node("Sigmoid", ["x"], ["g"]),
        helper.make_node("Mul", ["m", "g"], ["p"]),
        helper.make_node("Transpose", ["p"], ["c"], perm=[0, 2, 1]),
        batchnorm("c", "y"),
    ]
    built = model(nodes, {"x": [2, 4, 6]}, ["y"], initializers, elem_type=TensorProto.FLOAT16)
    result = folded(built)
    assert operators(result.model) == ["MatMul", "Sigmoid", "Mul", "Transpose", "Add"]
    assert {t.data_type for t in result.model.graph.initializer} == {TensorProto.FLOAT16}


def test_float16_overflow_stays() -> None:
    parameters = batchnorm_parameters(6, dtype=np.float16)
    parameters["bn.var"][:], parameters["bn.gamma"][:] = 1e-7, 1e4
    initializers = {"w": random(6, 6, 3, 3, dtype=np.float16), **parameters}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y", epsilon=1e-9)]
    built = model(nodes, {"x": [1, 6, 5, 5]}, ["y"], initializers, elem_type=TensorProto.FLOAT16)
    assert only_reason(built) == "out-of-range"


def test_bfloat16() -> None:
    import ml_dtypes

    arrays = {"w": random(6, 6, 3, 3), **batchnorm_parameters(6)}
    initializers = {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y")]
    built = model(nodes, {"x": [1, 6, 5, 5]}, ["y"], initializers, elem_type=TensorProto.BFLOAT16, opset=22)
    result = folded(built)
    assert not result.report.kept
    weight = next(numpy_helper.to_array(t) for t in result.model.graph.initializer if t.name == "w")
    assert weight.dtype == ml_dtypes.bfloat16


def test_double() -> None:
    initializers = {"w": random(6, 6, 3, 3, dtype=np.float64), **batchnorm_parameters(6, dtype=np.float64)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y")]
    built = model(nodes, {"x": [1, 6, 5, 5]}, ["y"], initializers, elem_type=TensorProto.DOUBLE)
    result = folded(built)
    feeds = {"x": random(1, 6, 5, 5, dtype=np.float64)}
    evaluate = onnx.reference.ReferenceEvaluator
    assert relative_error(evaluate(built).run(None, feeds), evaluate(result.model).run(None, feeds)) < 1e-11


def test_weights_stored_as_typed_fields() -> None:
    """Not raw bytes but ``float_data``: the folded tensor must not hold both."""
    built, feeds = conv_batchnorm()
    for tensor in built.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(
            helper.make_tensor(tensor.name, tensor.data_type, array.shape, array.reshape(-1).tolist())
        )
    folds_equally(built, feeds)


# --- other kinds of input ---------------------------------------------------------------------------


def test_graphsurgeon_graph_in_and_out() -> None:
    built, feeds = conv_batchnorm()
    graph = gs.import_onnx(built)
    result = fold(graph)
    assert isinstance(result.model, gs.Graph)
    assert [node.op for node in graph.nodes] == ["Conv", "BatchNormalization"]
    assert [node.op for node in result.model.nodes] == ["Conv"]
    exported = gs.export_onnx(result.model)
    exported.ir_version = 10
    assert relative_error(run(built, feeds), run(exported, feeds)) < F32_BOUND
    np.testing.assert_array_equal(
        numpy_helper.to_array(gs.export_onnx(graph).graph.initializer[0]), graph.nodes[0].inputs[1].values
    )


def test_cycles_are_looked_for_less_often_during_a_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def plan(*given: Any) -> Plan:
        seen.append(gc.get_threshold()[0])
        return make_plan(*given)

    monkeypatch.setattr("convbn.fuse.fold.make_plan", plan)
    before = gc.get_threshold()
    fold(conv_batchnorm()[0])
    assert seen == [max(before[0], 100_000)]
    assert gc.get_threshold() == before


def test_no_batchnorm_is_fine() -> None:
    built = model([helper.make_node("Relu", ["x"], ["y"])], {"x": [1, 2]}, ["y"], {})
    result = folded(built)
    assert (result.report.batchnorm.before, result.report.batchnorm.after) == (0, 0)


def test_initializer_that_lies_about_its_size() -> None:
    built, _ = conv_batchnorm()
    built.graph.initializer[0].raw_data = built.graph.initializer[0].raw_data[:-4]
    with pytest.raises(BadInputError, match="initializer 'w' cannot be read"):
        fold(built)


def test_anything_else_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"cannot fold a builtins\.int"):
        fold(3)
