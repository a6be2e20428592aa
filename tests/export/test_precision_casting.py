"""Half precision: the cast graph is valid, close to the original, and overflows nowhere that was looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.graphs import batchnorm, batchnorm_parameters, model, random, relative_error, run

from convbn.bench.equivalence.half_emulation import rounded_graph
from convbn.errors import UsageError
from convbn.export.precision.carried import carried_precision
from convbn.export.precision.convert import Converted, convert
from convbn.export.precision.errors import PrecisionError
from convbn.export.precision.graphs import element_types
from convbn.export.precision.int8.calibration import calibration_from
from convbn.export.precision.int8.samples import Calibration
from convbn.export.precision.options import PrecisionOptions

X = {"x": random(2, 3, 8, 8, seed=3)}


def network(*, opset: int = 20, weight: np.ndarray | None = None) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "head", "bias"], ["y"], name="gemm", transB=1),
    ]
    weights = {"b": random(6, seed=1), "head": random(4, 6, seed=2), "bias": random(4, seed=4)}
    weights["w"] = random(6, 3, 3, 3) if weight is None else weight
    return model(nodes, {"x": [2, 3, 8, 8]}, ["y"], weights, opset=opset)


def checked(built: onnx.ModelProto, precision: str = "fp16", **arguments: Any) -> Converted:
    before = built.SerializeToString()
    result = convert(built, precision, **arguments)
    assert built.SerializeToString() == before
    onnx.checker.check_model(result.model, full_check=True)
    return result


def kept(result: Converted) -> dict[str, str]:
    return {entry["node"]: entry["reason"] for entry in result.record["kept"]}


def types(built: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in built.graph.initializer}


def data(built: onnx.ModelProto, *arrays: np.ndarray) -> Calibration:
    return calibration_from(list(arrays) or [X["x"]], built)


@pytest.mark.parametrize("opset", [13, 17, 22])
def test_fp16_keeps_the_interface_and_the_function(opset: int) -> None:
    built = network(opset=opset)
    result = checked(built, calibration=data(built))
    assert set(types(result.model).values()) == {TensorProto.FLOAT16}
    assert [
        v.type.tensor_type.elem_type for v in (*result.model.graph.input, *result.model.graph.output)
    ] == [1, 1]
    assert result.record["cast_nodes"] == 5
    assert result.record["added_casts"] == 2
    assert kept(result) == {}
    assert relative_error(run(built, X), run(result.model, X)) < 2e-3


def test_inputs_and_outputs_too() -> None:
    result = checked(network(), options=PrecisionOptions(keep_io_types=False))
    graph = result.model.graph
    assert [v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)] == [10, 10]
    assert result.record["added_casts"] == 0
    half = run(result.model, {"x": X["x"].astype(np.float16)})
    assert half[0].dtype == np.float16
    assert relative_error(run(network(), X), half) < 5e-3


def test_an_output_that_is_read_inside_keeps_its_name() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"], name="first"),
        helper.make_node("Sigmoid", ["y"], ["z"], name="second"),
    ]
    built = model(nodes, {"x": [2, 3]}, ["y", "z"], {})
    for keep, io in ((("first",), True), (("second",), True), ((), False), (("first",), False)):
        result = checked(built, options=PrecisionOptions(keep_io_types=io, keep_fp32=keep))
        assert [v.name for v in result.model.graph.output] == ["y", "z"]
        feeds = {"x": random(2, 3).astype(np.float32 if io else np.float16)}
        assert relative_error(run(built, {"x": random(2, 3)}), run(result.model, feeds)) < 2e-3


def test_between_two_nodes_in_float32_nothing_is_rounded() -> None:
    """10^6 does not fit into float16; through it, the square root would be infinite."""
    nodes = [
        helper.make_node("Mul", ["x", "million"], ["large"], name="mul"),
        helper.make_node("Sqrt", ["large"], ["root"], name="sqrt"),
        helper.make_node("Relu", ["root"], ["y"], name="relu"),
    ]
    built = model(nodes, {"x": [4]}, ["y"], {"million": np.array([1e6], np.float32)})
    x = {"x": np.array([1, 2, 3, 4], np.float32)}
    result = checked(built, calibration=data(built, x["x"]))
    assert kept(result) == {"mul": "range", "sqrt": "range"}
    assert "million" in result.record["kept"][0]["detail"]
    assert relative_error(run(built, x), run(result.model, x)) < 1e-3


def test_an_activation_beyond_float16_is_found_on_the_data() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"], name="square"),
        helper.make_node("Sqrt", ["square"], ["y"], name="root"),
    ]
    built = model(nodes, {"x": [4]}, ["y"], {})
    x = {"x": np.array([1, 2, 300, 4], np.float32)}
    blind = checked(built)
    assert blind.record["activations"] is None
    rounded = rounded_graph(blind.model)
    assert rounded is not None
    assert np.isinf(run(rounded, x)[0]).any()
    result = convert(built, "fp16", calibration=data(built, np.ones(4, np.float32)))
    assert result.record["activations"] == {"tensors": 3, "out_of_range": 0}
    with pytest.raises(PrecisionError, match="no node can compute in float16"):
        convert(built, "fp16", calibration=data(built, x["x"]))


def test_values_too_small_for_float16_stay() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["tiny"], name="square"),
        helper.make_node("Mul", ["tiny", "back"], ["large"], name="scale"),
        helper.make_node("Relu", ["large"], ["y"], name="relu"),
    ]
    built = model(nodes, {"x": [4]}, ["y"], {"back": np.array([1e6], np.float32) / 100})
    x = {"x": np.array([1e-3, 2e-3, 3e-4, 4e-4], np.float32)}
    result = checked(built, calibration=data(built, x["x"]))
    assert kept(result) == {"square": "range", "scale": "range"}
    assert "so small" in result.record["kept"][0]["detail"]
    assert relative_error(run(built, x), run(result.model, x)) < 1e-3


@pytest.mark.parametrize(("scale", "told"), [(1e6, "reaches"), (1e-9, "so small")])
def test_weights_that_float16_cannot_hold(scale: float, told: str) -> None:
    built = network(weight=random(6, 3, 3, 3) * np.float32(scale))
    result = checked(built)
    assert kept(result)["conv"] == "range"
    assert told in next(e["detail"] for e in result.record["kept"] if e["node"] == "conv")
    assert types(result.model)["w"] == TensorProto.FLOAT
    bf16 = checked(built, "bf16")
    assert kept(bf16) == {}


def test_infinite_weights_are_no_reason() -> None:
    nodes = [
        helper.make_node("Add", ["x", "mask"], ["m"], name="add"),
        helper.make_node("Softmax", ["m"], ["y"], name="softmax"),
    ]
    built = model(nodes, {"x": [2, 4]}, ["y"], {"mask": np.array([0, 0, -np.inf, 0], np.float32)})
    result = checked(built)
    assert kept(result) == {}
    assert relative_error(run(built, {"x": random(2, 4)}), run(result.model, {"x": random(2, 4)})) < 2e-3


def test_a_weight_with_readers_in_both_types_exists_twice() -> None:
    nodes = [
        helper.make_node("Add", ["x", "w"], ["a"], name="low"),
        helper.make_node("Mul", ["a", "w"], ["y"], name="high"),
    ]
    built = model(nodes, {"x": [3]}, ["y"], {"w": np.array([0.1, 0.2, 0.3], np.float32)})
    result = checked(built, options=PrecisionOptions(keep_fp32=("high",)))
    assert kept(result) == {"high": "asked for"}
    assert types(result.model) == {"w": TensorProto.FLOAT, "w_float16": TensorProto.FLOAT16}
    np.testing.assert_array_equal(
        numpy_helper.to_array(result.model.graph.initializer[0]), np.array([0.1, 0.2, 0.3], np.float32)
    )


def test_constants_of_nodes_in_float32_are_not_rounded() -> None:
    value = numpy_helper.from_array(np.array([1e-7], np.float32))
    nodes = [
        helper.make_node("Constant", [], ["eps"], value=value),
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Add", ["r", "eps"], ["y"], name="add"),
    ]
    built = model(nodes, {"x": [3]}, ["y"], {})
    result = checked(built, options=PrecisionOptions(keep_fp32=("add",)))
    assert run(result.model, {"x": -np.ones(3, np.float32)})[0][0] == np.float32(1e-7)


def test_what_an_operator_takes_only_in_float32_stays() -> None:
    nodes = [helper.make_node("Resize", ["x", "", "scales"], ["y"], name="resize", mode="nearest")]
    built = model(nodes, {"x": [1, 1, 2, 2]}, ["y"], {"scales": np.array([1, 1, 2, 2], np.float32)})
    result = checked(built)
    assert types(result.model)["scales"] == TensorProto.FLOAT
    assert kept(result) == {}
    x = {"x": np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)}
    np.testing.assert_array_equal(run(built, x)[0], run(result.model, x)[0])


def test_sizes_are_not_rounded() -> None:
    """4097 is no float16 number."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Cast", ["shape"], ["floats"], to=1),
        helper.make_node("Mul", ["floats", "two"], ["doubled"], name="mul"),
        helper.make_node("Cast", ["doubled"], ["sizes"], to=7),
        helper.make_node("Expand", ["x", "sizes"], ["wide"], name="expand"),
        helper.make_node("Relu", ["wide"], ["y"]),
    ]
    built = model(nodes, {"x": [4097, 1]}, ["y"], {"two": np.array([1, 2], np.float32)})
    result = checked(built)
    assert kept(result)["mul"] == "shape arithmetic"
    assert run(result.model, {"x": random(4097, 1)})[0].shape == (4097, 2)


def test_a_table_looked_up_by_a_size_is_no_size() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], start=0, end=1),
        helper.make_node("Gather", ["table", "shape"], ["row"], name="gather"),
        helper.make_node("Add", ["x", "row"], ["y"], name="add"),
    ]
    built = model(nodes, {"x": [3, 4]}, ["y"], {"table": random(5, 4)})
    result = checked(built)
    assert kept(result) == {}
    assert types(result.model)["table"] == TensorProto.FLOAT16


def test_a_body_reads_float32() -> None:
    """What an If captures is given to it in float32, whatever it is outside."""
    branch = helper.make_graph(
        [helper.make_node("Mul", ["r", "w"], ["t"])],
        "then",
        [],
        [helper.make_tensor_value_info("t", 1, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["r"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, None)]
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("If", ["flag"], ["i"], name="if", then_branch=branch, else_branch=other),
        helper.make_node("Add", ["i", "w"], ["y"], name="add"),
    ]
    built = model(nodes, {"x": [3]}, ["y"], {"w": random(3), "flag": np.array(True)})
    result = checked(built)
    assert kept(result) == {"if": "control flow"}
    x = {"x": np.array([1, 2, 3], np.float32)}
    assert relative_error(run(built, x), run(result.model, x)) < 2e-3


def test_an_unknown_operator_stays_and_so_do_its_readers() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Odd", ["r"], ["s"], name="odd", domain="mine"),
        helper.make_node("Relu", ["s"], ["t"], name="after"),
        helper.make_node("Cast", ["t"], ["y"], name="cast", to=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, [3])],
        [helper.make_tensor_value_info("y", 1, [3])],
    )
    built = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("mine", 1)]
    )
    result = convert(built, "fp16")
    assert kept(result)["odd"] == "operator"
    assert [node.input[0] for node in result.model.graph.node if node.name == "odd"] == ["r_float32"]
    assert [node.input[0] for node in result.model.graph.node if node.name == "after"] == ["s"]


def test_local_functions_are_taken_apart() -> None:
    function = helper.make_function(
        "mine",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 20)],
    )
    nodes = [helper.make_node("Twice", ["x"], ["y"], domain="mine")]
    built = model(nodes, {"x": [3]}, ["y"], {}, functions=[function])
    result = checked(built)
    assert not result.model.functions
    x = {"x": random(3)}
    assert relative_error(run(built, x), run(result.model, x)) < 2e-3


def test_an_overridable_initializer_stays_an_input() -> None:
    built = network()
    built.graph.input.append(helper.make_tensor_value_info("bias", 1, [4]))
    result = checked(built)
    assert types(result.model)["bias"] == TensorProto.FLOAT
    other = {**X, "bias": np.full(4, 100, np.float32)}
    assert relative_error(run(built, other), run(result.model, other)) < 2e-3


def test_batchnorms_that_stay_are_cast_with_their_parameters() -> None:
    nodes = [batchnorm("x", "n"), helper.make_node("Relu", ["n"], ["y"])]
    built = model(nodes, {"x": [2, 3, 8, 8]}, ["y"], batchnorm_parameters(3))
    result = checked(built)
    assert set(types(result.model).values()) == {TensorProto.FLOAT16}
    assert relative_error(run(built, X), run(result.model, X)) < 3e-3


@pytest.mark.parametrize("opset", [13, 20, 22])
def test_bf16_is_valid_and_runs_in_the_reference_evaluator(opset: int) -> None:
    from onnx.reference import ReferenceEvaluator

    built = network(opset=opset)
    result = checked(built, "bf16")
    assert set(types(result.model).values()) == {TensorProto.BFLOAT16}
    assert next(o.version for o in result.model.opset_import if o.domain == "") == 22
    outputs = [np.asarray(array) for array in ReferenceEvaluator(result.model).run(None, X)]
    assert relative_error(run(built, X), outputs) < 3e-2


def test_metadata_and_names_stay() -> None:
    built = network()
    built.metadata_props.add(key="who", value="me")
    built.graph.doc_string = "a graph"
    result = checked(built).model
    assert {p.key: p.value for p in result.metadata_props} == {"who": "me"}
    assert result.graph.doc_string == "a graph"
    assert {"w", "b", "head", "bias"} == set(types(result))
    assert {"conv", "gemm"} <= {node.name for node in result.graph.node}


def test_a_wrong_annotation_of_a_weight_is_left_out() -> None:
    built = network()
    built.graph.value_info.append(helper.make_tensor_value_info("bias", 1, [1]))
    assert kept(checked(built)) == {}


def test_a_name_that_is_taken_is_not_taken_twice() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["x_float16"], name="x_float16_cast"),
        helper.make_node("Relu", ["x_float16"], ["y"], name="x_float16_cast"),
    ]
    built = model(nodes, {"x": [3]}, ["y"], {})
    result = checked(built)
    names = [node.name for node in result.model.graph.node]
    assert len(set(names)) == len(names)


def test_what_carries_a_precision_already_is_left_alone() -> None:
    half = convert(network(), "fp16").model
    for precision in ("as-is", "fp16"):
        result = convert(half, precision)
        assert result.model is half
        assert not result.changed
        assert "left as it is" in result.record["note"]
    for precision in ("fp32", "bf16", "int8"):
        with pytest.raises(PrecisionError, match=f"{precision} was asked for, but the model carries fp16"):
            convert(half, precision)


def test_fp32_of_a_float32_model_is_the_model() -> None:
    built = network()
    result = convert(built, "fp32")
    assert result.model is built
    assert result.record["note"] is None


def test_mistakes_in_the_options() -> None:
    with pytest.raises(UsageError, match="no precision 'fp8'"):
        convert(network(), "fp8")
    with pytest.raises(UsageError, match="no node 'nonsense' to keep"):
        convert(network(), "fp16", options=PrecisionOptions(keep_fp32=("nonsense",)))
    for arguments, told in (
        ({"method": "magic"}, "no calibration method 'magic'"),
        ({"percentile": 0.5}, "0.5 is not above 50"),
        ({"quantise": ("Softmax",)}, "'Softmax' cannot be quantised"),
        ({"quantise": ()}, "no operator cannot be quantised"),
    ):
        with pytest.raises(UsageError, match=told):
            PrecisionOptions(**arguments)


@pytest.mark.parametrize("kind", ["Log", "Div", "Sqrt", "Reciprocal", "Pow"])
def test_an_epsilon_that_float16_turns_to_0(kind: str) -> None:
    """The sum and what reads it stay in float32; so does what it is made of, where it gets so small."""
    nodes = [
        helper.make_node("Conv", ["x", "u"], ["p"], name="before"),
        helper.make_node("Conv", ["p", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Add", ["r", "epsilon"], ["a"], name="add"),
    ]
    ends = {
        "Log": [helper.make_node("Log", ["a"], ["y"], name="end")],
        "Reciprocal": [helper.make_node("Reciprocal", ["a"], ["y"], name="end")],
        "Div": [helper.make_node("Div", ["r", "a"], ["y"], name="end")],
        "Pow": [helper.make_node("Pow", ["a", "power"], ["y"], name="end")],
        "Sqrt": [
            helper.make_node("Sqrt", ["a"], ["s"], name="sqrt"),
            helper.make_node("Div", ["r", "s"], ["y"], name="end"),
        ],
    }
    after = [helper.make_node("Conv", ["y", "v"], ["z"], name="after")]
    weights = {"w": random(6, 3, 1, 1), "v": random(6, 6, 1, 1, seed=1), "u": random(3, 3, 1, 1, seed=5)}
    weights |= {"epsilon": np.array(1e-10, np.float32), "power": np.array(-0.5, np.float32)}
    built = model([*nodes, *ends[kind], *after], {"x": [2, 3, 8, 8]}, ["z"], weights)
    result = checked(built)
    assert {"add", "end"} <= kept(result).keys()
    assert "relu" not in kept(result)
    assert "tensor 'a' is kept from 0 by 1.0e-10 in Add 'add'" in str(result.record["kept"])
    looked_at = checked(built, calibration=data(built))
    assert {"add", "end"} <= kept(looked_at).keys()
    # A root of it is no longer so small, and what is made of it is as good as its inputs.
    assert {"conv", "relu"}.issubset(kept(looked_at)) is (kind != "Sqrt")
    assert "before" not in kept(looked_at)
    if kind == "Log":
        rounded = rounded_graph(looked_at.model)
        assert rounded is not None
        assert relative_error(run(rounded, X)[0], run(built, X)[0]) < 0.02


def mixed(kind: str) -> onnx.ModelProto:
    built = network(opset=22)
    graph = built.graph
    half = TensorProto.FLOAT16
    if kind == "input":
        graph.input[0].type.tensor_type.elem_type = half
        graph.node[0].input[0] = "wide"
        graph.node.insert(0, helper.make_node("Cast", ["x"], ["wide"], name="cast", to=1))
    elif kind == "stored":
        for tensor in list(graph.initializer):
            name = tensor.name
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}.half")
            )
            graph.node.insert(
                0, helper.make_node("Cast", [f"{name}.half"], [name], name=f"cast {name}", to=1)
            )
    else:
        graph.node[1].input[0] = "back"
        there = helper.make_node("Cast", ["c"], ["there"], name="there", to=half)
        for node in (helper.make_node("Cast", ["there"], ["back"], name="back", to=1), there):
            graph.node.insert(1, node)
    return built


@pytest.mark.parametrize("kind", ["input", "stored", "cast"])
def test_a_float32_network_with_float16_in_it_is_converted(kind: str) -> None:
    """Precision is what the arithmetic runs in."""
    built = mixed(kind)
    assert carried_precision(built) == "fp32"
    assert convert(built, "fp32").model is built
    for precision, low in (("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)):
        result = checked(built, precision)
        assert result.record["carried"] == "fp32"
        assert "the model held float16 beside float32" in result.record["note"]
        kinds = element_types(result.model)
        read = [
            kinds[name] for n in result.model.graph.node if n.op_type in ("Conv", "Gemm") for name in n.input
        ]
        assert set(read) == {low}
        assert convert(result.model, precision).model is result.model


def test_a_network_that_is_float16_in_part_is_converted() -> None:
    part = convert(network(), "fp16", options=PrecisionOptions(keep_fp32=("gemm",))).model
    assert carried_precision(part) == "fp32"
    assert carried_precision(checked(part).model) == "fp16"
