"""Maps behind LayerNorm, GroupNorm, InstanceNorm and RMSNorm, and the LayerNorm that runtimes recognise."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run

from convbn.fuse.fold import Folding, fold

IMAGE = {"x": [2, 4, 5, 5]}


def check(built: onnx.ModelProto, batchnorms: int) -> Folding:
    result = fold(built)
    assert result.report.batchnorm.after == batchnorms, result.report.kept
    feeds = {
        v.name: random(*[d.dim_value for d in v.type.tensor_type.shape.dim], seed=7)
        for v in built.graph.input
    }
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-5
    return result


def affine(channels: int) -> dict[str, np.ndarray]:
    return {"g": random(channels, seed=3), "b": random(channels, seed=4)}


def test_batchnorm_behind_instance_normalization() -> None:
    nodes = [helper.make_node("InstanceNormalization", ["x", "g", "b"], ["i"]), batchnorm("i", "y")]
    result = check(model(nodes, IMAGE, ["y"], {**affine(4), **batchnorm_parameters(4)}), 0)
    assert result.report.folded[0].rule == "batchnorm-into-normalization"


@pytest.mark.parametrize(("opset", "left"), [(20, 1), (21, 0)])
def test_batchnorm_behind_group_normalization(opset: int, left: int) -> None:
    node = helper.make_node("GroupNormalization", ["x", "g", "b"], ["i"], num_groups=2)
    # One γ a group until opset 21.
    parameters = affine(4 if opset >= 21 else 2)
    check(
        model(
            [node, batchnorm("i", "y")], IMAGE, ["y"], {**parameters, **batchnorm_parameters(4)}, opset=opset
        ),
        left,
    )


def test_layer_scale_behind_layer_normalization() -> None:
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "b"], ["l"], axis=-1),
        helper.make_node("Mul", ["l", "s"], ["m"]),
        helper.make_node("Add", ["m", "t"], ["y"]),
    ]
    parameters = {**affine(6), "s": random(6, seed=5), "t": random(6, seed=6)}
    result = check(model(nodes, {"x": [2, 3, 6]}, ["y"], parameters), 0)
    assert operators(result.model) == ["LayerNormalization"]


def test_layer_normalization_without_a_shift_is_given_one() -> None:
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g"], ["l"]),
        helper.make_node("Add", ["l", "t"], ["y"]),
    ]
    result = check(model(nodes, {"x": [2, 3, 6]}, ["y"], {"g": random(6), "t": random(6, seed=6)}), 0)
    assert operators(result.model) == ["LayerNormalization"]


def test_batchnorm_on_another_axis_than_the_layer_normalization() -> None:
    nodes = [helper.make_node("LayerNormalization", ["x", "g", "b"], ["l"]), batchnorm("l", "y")]
    check(model(nodes, {"x": [2, 6, 6]}, ["y"], {**affine(6), **batchnorm_parameters(6)}), 1)


def test_layer_normalization_over_several_axes_takes_nothing() -> None:
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "b"], ["l"], axis=1),
        helper.make_node("Mul", ["l", "s"], ["y"]),
    ]
    parameters = {"g": random(3, 6), "b": random(3, 6, seed=2), "s": random(6, seed=5)}
    assert "Mul" in operators(check(model(nodes, {"x": [2, 3, 6]}, ["y"], parameters), 0).model)


def test_a_statistic_of_the_layer_normalization_is_not_its_output() -> None:
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "b"], ["l", "mean"]),
        helper.make_node("Mul", ["mean", "s"], ["y"]),
    ]
    parameters = {**affine(6), "s": random(1, seed=5)}
    assert "Mul" in operators(check(model(nodes, {"x": [2, 3, 6]}, ["y", "l"], parameters), 0).model)


def test_rms_normalization_takes_a_scale_and_no_shift() -> None:
    import onnx.reference

    nodes = [
        helper.make_node("RMSNormalization", ["x", "g"], ["l"]),
        helper.make_node("Mul", ["l", "s"], ["y"]),
    ]
    built = model(nodes, {"x": [2, 3, 6]}, ["y"], {"g": random(6), "s": random(6, seed=5)}, opset=23)
    result = fold(built)
    assert operators(result.model) == ["RMSNormalization"]
    x = random(2, 3, 6, seed=7)
    before, after = (onnx.reference.ReferenceEvaluator(m).run(None, {"x": x}) for m in (built, result.model))
    assert relative_error(before, after) < 1e-6
    nodes[1] = helper.make_node("Add", ["l", "s"], ["y"])
    shifted = model(nodes, {"x": [2, 3, 6]}, ["y"], {"g": random(6), "s": random(6, seed=5)}, opset=23)
    assert operators(fold(shifted).model) == ["RMSNormalization", "Add"]


def test_nothing_passes_a_normalization_forwards() -> None:
    nodes = [batchnorm("x", "n"), helper.make_node("InstanceNormalization", ["n", "g", "b"], ["y"])]
    check(model(nodes, IMAGE, ["y"], {**affine(4), **batchnorm_parameters(4)}), 1)


def written_out(tail: list[onnx.NodeProto], axis: int = -1) -> list[onnx.NodeProto]:
    return [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[axis]),
        helper.make_node("Sub", ["x", "m"], ["d"]),
        helper.make_node("Mul", ["d", "d"], ["p"]),
        helper.make_node("ReduceMean", ["p"], ["v"], axes=[axis]),
        helper.make_node("Add", ["v", "eps"], ["ve"]),
        helper.make_node("Sqrt", ["ve"], ["sd"]),
        helper.make_node("Div", ["d", "sd"], ["l"]),
        *tail,
    ]


def test_the_layer_norm_that_runtimes_recognise_keeps_its_tail() -> None:
    tail = [
        helper.make_node("Mul", ["l", "g"], ["lg"]),
        helper.make_node("Add", ["lg", "b"], ["lb"]),
        helper.make_node("MatMul", ["lb", "w"], ["y"]),
    ]
    parameters = {"eps": np.array(1e-5, "f4"), **affine(6), "w": random(6, 5)}
    built = model(written_out(tail), {"x": [2, 3, 6]}, ["y"], parameters, opset=13)
    built = onnx.shape_inference.infer_shapes(built)
    assert operators(check(built, 0).model) == operators(built)


def test_over_channels_of_an_image_its_tail_goes_into_the_next_convolution() -> None:
    tail = [
        helper.make_node("Mul", ["l", "g"], ["lg"]),
        helper.make_node("Add", ["lg", "b"], ["lb"]),
        helper.make_node("Conv", ["lb", "w"], ["y"]),
    ]
    parameters = {
        "eps": np.array(1e-5, "f4"),
        "g": random(4, 1, 1, seed=3),
        "b": random(4, 1, 1, seed=4),
        "w": random(5, 4, 1, 1),
    }
    built = model(written_out(tail, 1), IMAGE, ["y"], parameters, opset=13)
    built = onnx.shape_inference.infer_shapes(built)
    assert operators(check(built, 0).model)[-2:] == ["Div", "Conv"]


def test_a_gate_over_other_axes_is_no_layer_norm() -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[1]),
        helper.make_node("Mul", ["x", "m"], ["l"]),
        helper.make_node("Mul", ["l", "g"], ["lg"]),
        helper.make_node("MatMul", ["lg", "w"], ["y"]),
    ]
    built = model(nodes, {"x": [2, 3, 6]}, ["y"], {"g": random(6), "w": random(6, 5)}, opset=13)
    assert operators(check(onnx.shape_inference.infer_shapes(built), 0).model) == [
        "ReduceMean",
        "Mul",
        "MatMul",
    ]
