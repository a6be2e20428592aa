"""Model-local functions: written out where a BatchNorm is concerned, left alone where none is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.graphs import (
    OPSET,
    batchnorm,
    batchnorm_parameters,
    model,
    operators,
    random,
    relative_error,
    run,
)

from convbn.errors import BadInputError
from convbn.fuse.fold import Folding, fold

PARAMETERS = ["gamma", "beta", "mean", "var"]
X = {"x": [2, 6, 5, 5]}


def function(
    name: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    nodes: Sequence[onnx.NodeProto],
    *,
    opset: int = OPSET,
    attributes: Sequence[str] = (),
    defaults: Sequence[onnx.AttributeProto] = (),
) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    return helper.make_function(
        "local", name, inputs, outputs, nodes, opsets, attributes=attributes, attribute_protos=defaults
    )


def call(
    name: str, inputs: Sequence[str], outputs: Sequence[str], label: str = "", **attributes: object
) -> onnx.NodeProto:
    return helper.make_node(name, inputs, outputs, name=label, domain="local", **attributes)


def names(prefix: str) -> list[str]:
    return [f"{prefix}.{name}" for name in PARAMETERS]


def normalise(name: str = "norm") -> onnx.FunctionProto:
    """A function that is one BatchNorm."""
    node = helper.make_node("BatchNormalization", ["a", *PARAMETERS], ["b"], name="bn")
    return function(name, ["a", *PARAMETERS], ["b"], [node])


def block(name: str = "block") -> onnx.FunctionProto:
    """A function that is a convolution and its BatchNorm."""
    conv = helper.make_node("Conv", ["a", "w"], ["c"], name="conv", pads=[1] * 4)
    bn = helper.make_node("BatchNormalization", ["c", *PARAMETERS], ["b"], name="bn")
    return function(name, ["a", "w", *PARAMETERS], ["b"], [conv, bn])


def evaluate(built: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What onnx says a model computes, where onnxruntime refuses it."""
    return list(onnx.reference.ReferenceEvaluator(built).run(None, feeds))


def check(built: onnx.ModelProto, left: int = 0, run: Any = run) -> Folding:
    before = built.SerializeToString(deterministic=True)
    result = fold(built)
    assert built.SerializeToString(deterministic=True) == before
    assert result.report.batchnorm.after == left, result.report.kept
    onnx.checker.check_model(result.model, full_check=True)
    feeds = {"x": random(*X["x"], seed=7)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-5
    again = fold(result.model)
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(
        deterministic=True
    )
    return result


def untouched(built: onnx.ModelProto) -> Folding:
    result = fold(built)
    assert result.model.SerializeToString(deterministic=True) == built.SerializeToString(deterministic=True)
    assert not result.report.folded
    return result


def test_a_function_called_twice_with_other_weights() -> None:
    nodes = [
        call("block", ["x", "w1", *names("bn1")], ["h"], "first"),
        call("block", ["h", "w2", *names("bn2")], ["y"], "second"),
    ]
    initializers = {
        "w1": random(6, 6, 3, 3),
        "w2": random(6, 6, 3, 3, seed=2),
        **batchnorm_parameters(6, prefix="bn1"),
        **batchnorm_parameters(6, prefix="bn2", seed=3),
    }
    result = check(model(nodes, X, ["y"], initializers, functions=[block()]))
    assert operators(result.model) == ["Conv", "Conv"]
    assert not result.model.functions
    assert [(f.name, f.into) for f in result.report.folded] == [
        ("first/bn", ("first/conv",)),
        ("second/bn", ("second/conv",)),
    ]
    assert any("block (2×)" in note for note in result.report.notes)


def test_one_weight_for_both_calls_is_cloned() -> None:
    nodes = [
        call("block", ["x", "w", *names("bn1")], ["h"]),
        call("block", ["h", "w", *names("bn2")], ["y"]),
    ]
    initializers = {
        "w": random(6, 6, 3, 3),
        **batchnorm_parameters(6, prefix="bn1"),
        **batchnorm_parameters(6, prefix="bn2", seed=3),
    }
    result = check(model(nodes, X, ["y"], initializers, functions=[block()]))
    assert [f.name for f in result.report.folded] == ["block/bn", "block_2/bn"]


def test_conv_and_batchnorm_in_functions_of_their_own() -> None:
    convolve = function("convolve", ["a", "w"], ["b"], [helper.make_node("Conv", ["a", "w"], ["b"])])
    relu = function("relu", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])])
    nodes = [
        call("convolve", ["x", "w"], ["c"], "layer"),
        call("norm", ["c", *names("bn")], ["n"], "normed"),
        call("relu", ["n"], ["y"], "active"),
    ]
    built = model(
        nodes,
        X,
        ["y"],
        {"w": random(6, 6, 3, 3), **batchnorm_parameters(6)},
        functions=[convolve, normalise(), relu],
    )
    assert operators(check(built).model)[:2] == ["Conv", "Relu"]


@pytest.mark.parametrize("conv_inside", [True, False])
def test_one_inside_and_one_outside(conv_inside: bool) -> None:
    convolve = function("convolve", ["a", "w"], ["b"], [helper.make_node("Conv", ["a", "w"], ["b"])])
    conv = helper.make_node("Conv", ["x", "w"], ["c"], name="conv")
    nodes = (
        [call("convolve", ["x", "w"], ["c"]), batchnorm("c", "y")]
        if conv_inside
        else [conv, call("norm", ["c", *names("bn")], ["y"])]
    )
    functions = [convolve if conv_inside else normalise()]
    built = model(nodes, X, ["y"], {"w": random(6, 6, 3, 3), **batchnorm_parameters(6)}, functions=functions)
    assert operators(check(built).model) == ["Conv"]


def test_functions_that_call_functions() -> None:
    outer = function(
        "outer",
        ["a", "w", *PARAMETERS],
        ["b"],
        [call("block", ["a", "w", *PARAMETERS], ["h"], "inner"), call("double", ["h"], ["b"], "twice")],
    )
    double = function("double", ["a"], ["b"], [helper.make_node("Erf", ["a"], ["b"])])
    nodes = [call("outer", ["x", "w", *names("bn")], ["y"], "net")]
    built = model(
        nodes,
        X,
        ["y"],
        {"w": random(6, 6, 3, 3), **batchnorm_parameters(6)},
        functions=[outer, block(), double],
    )
    result = check(built)
    assert [f.name for f in result.report.folded] == ["net/inner/bn"]
    assert operators(result.model) == ["Conv", "double"]
    assert [f.name for f in result.model.functions] == ["double"]


def test_a_function_far_from_any_batchnorm_stays() -> None:
    """Behind the layer that takes the map in there is nothing to write out."""
    gelu = function(
        "half", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Neg", ["r"], ["b"])]
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        batchnorm("c", "n"),
        helper.make_node("Sigmoid", ["n"], ["s"]),
        call("half", ["s"], ["y"]),
    ]
    built = model(nodes, X, ["y"], {"w": random(6, 6, 3, 3), **batchnorm_parameters(6)}, functions=[gelu])
    result = check(built)
    assert operators(result.model) == ["Conv", "Sigmoid", "half"]
    assert [f.name for f in result.model.functions] == ["half"]


def test_no_batchnorm_leaves_the_functions() -> None:
    relu = function("relu", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])])
    untouched(model([call("relu", ["x"], ["y"])], X, ["y"], {}, functions=[relu]))


def test_a_batchnorm_that_stays_leaves_the_functions() -> None:
    body = [
        helper.make_node("Sigmoid", ["a"], ["s"]),
        helper.make_node("BatchNormalization", ["s", *PARAMETERS], ["b"], name="bn"),
    ]
    gate = function("gate", ["a", *PARAMETERS], ["b"], body)
    nodes = [call("gate", ["x", *names("bn")], ["y"], "last")]
    result = untouched(model(nodes, X, ["y"], batchnorm_parameters(6), functions=[gate]))
    (kept,) = result.report.kept
    assert (kept.name, kept.reason) == ("last/bn", "producer-not-foldable")


def test_attributes_by_reference_and_by_default() -> None:
    conv = helper.make_node("Conv", ["a", "w"], ["c"], name="conv")
    for name, kind in (("group", onnx.AttributeProto.INT), ("pads", onnx.AttributeProto.INTS)):
        conv.attribute.append(onnx.AttributeProto(name=name, type=kind, ref_attr_name=f"my_{name}"))
    bn = helper.make_node("BatchNormalization", ["c", *PARAMETERS], ["b"], name="bn")
    for name in ("epsilon", "momentum"):
        bn.attribute.append(
            onnx.AttributeProto(name=name, type=onnx.AttributeProto.FLOAT, ref_attr_name=f"my_{name}")
        )
    made = function(
        "made",
        ["a", "w", *PARAMETERS],
        ["b"],
        [conv, bn],
        attributes=["my_group", "my_pads", "my_momentum"],
        defaults=[helper.make_attribute("my_epsilon", 0.5)],
    )
    nodes = [
        call("made", ["x", "w", *names("bn")], ["h"], "a", my_group=2, my_pads=[1] * 4),
        call("made", ["h", "w", *names("bn")], ["y"], "b", my_group=2, my_epsilon=0.25),
    ]
    built = model(nodes, X, ["y"], {"w": random(6, 3, 3, 3), **batchnorm_parameters(6)}, functions=[made])
    result = check(built)
    attributes = [
        {a.name: helper.get_attribute_value(a) for a in node.attribute} for node in result.model.graph.node
    ]
    assert attributes == [{"group": 2, "pads": [1] * 4}, {"group": 2}]


def test_optional_inputs_and_outputs_that_are_left_out() -> None:
    conv = helper.make_node("Conv", ["a", "w", "bias"], ["c"], name="conv")
    bn = helper.make_node("BatchNormalization", ["c", *PARAMETERS], ["b"], name="bn")
    aside = helper.make_node("Shape", ["c"], ["size"], name="aside")
    made = function("made", ["a", "w", *PARAMETERS, "bias"], ["size", "b"], [conv, bn, aside])
    nodes = [call("made", ["x", "w", *names("bn")], ["", "y"], "m")]
    built = model(nodes, X, ["y"], {"w": random(6, 6, 3, 3), **batchnorm_parameters(6)}, functions=[made])
    result = fold(built)
    assert [f.name for f in result.report.folded] == ["m/bn"] or result.report.kept[0].reason
    feeds = {"x": random(*X["x"])}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-5


def test_an_output_that_is_an_input() -> None:
    made = function(
        "made",
        ["a", *PARAMETERS],
        ["b", "a"],
        [helper.make_node("BatchNormalization", ["a", *PARAMETERS], ["b"], name="bn")],
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        call("made", ["c", *names("bn")], ["n", "same"], "m"),
        helper.make_node("Conv", ["n", "w2"], ["p"], name="next"),
        helper.make_node("Relu", ["same"], ["q"]),
    ]
    built = model(
        nodes,
        X,
        ["p", "q"],
        {"w": random(6, 6, 3, 3), "w2": random(6, 6, 1, 1, seed=2), **batchnorm_parameters(6)},
        functions=[made],
    )
    check(built, run=evaluate)


def test_a_body_inside_a_function() -> None:
    """The branches' names are new at every call, what they capture is the call's own."""
    conv = helper.make_node("Conv", ["a", "w"], ["c"], name="conv", pads=[1] * 4)
    bn = helper.make_node("BatchNormalization", ["c", *PARAMETERS], ["t"], name="bn")
    then = helper.make_graph(
        [conv, bn], "then", [], [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)]
    )
    one = numpy_helper.from_array(np.float32([2]), "two")
    other = helper.make_graph(
        [helper.make_node("Mul", ["a", "two"], ["e"], name="mul")],
        "else",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)],
        [one],
    )
    made = function(
        "made",
        ["flag", "a", "w", *PARAMETERS],
        ["b"],
        [helper.make_node("If", ["flag"], ["b"], name="if", then_branch=then, else_branch=other)],
    )
    nodes = [
        call("made", ["yes", "x", "w", *names("bn")], ["h"], "first"),
        call("made", ["no", "h", "w", *names("bn")], ["i"], "second"),
        call("made", ["yes", "i", "w2", *names("bn")], ["y"], "third"),
    ]
    initializers = {
        "yes": np.array(True),
        "no": np.array(False),
        "w": random(6, 6, 3, 3),
        "w2": random(6, 6, 3, 3, seed=4),
        **batchnorm_parameters(6),
    }
    result = check(model(nodes, X, ["y"], initializers, functions=[made]))
    assert [f.name for f in result.report.folded] == ["first/if/bn", "second/if/bn", "third/if/bn"] or len(
        result.report.folded
    ) == 3


def test_a_call_inside_a_body_of_the_graph() -> None:
    branch = helper.make_graph(
        [call("block", ["x", "w", *names("bn")], ["t"], "inner")],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["e"])],
        "else",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)],
    )
    nodes = [helper.make_node("If", ["flag"], ["y"], name="if", then_branch=branch, else_branch=other)]
    initializers = {"flag": np.array(True), "w": random(6, 6, 3, 3), **batchnorm_parameters(6)}
    built = model(nodes, X, ["y"], initializers, functions=[block()])
    assert [f.name for f in check(built).report.folded] == ["inner/bn"]


def test_names_that_are_taken() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["block/c"], name="block/conv"),
        call("block", ["block/c", "w", *names("bn")], ["h"]),
        call("block", ["h", "w", *names("bn")], ["y"], "block_2"),
    ]
    built = model(nodes, X, ["y"], {"w": random(6, 6, 3, 3), **batchnorm_parameters(6)}, functions=[block()])
    check(built)


# --- what stays, and what is refused ----------------------------------------------------------------


@pytest.mark.parametrize("detour", [0, 1, 3])
def test_recursion_is_an_error(detour: int) -> None:
    chain = [f"f{i}" for i in range(detour + 1)]
    functions = [
        function(name, ["a"], ["b"], [call(chain[(i + 1) % len(chain)], ["a"], ["b"])])
        for i, name in enumerate(chain)
    ]
    built = model([helper.make_node("Relu", ["x"], ["y"])], X, ["y"], {})
    built.functions.extend(functions)
    built.graph.node.append(call("f0", ["x"], ["z"]))
    with pytest.raises(BadInputError, match=r"f\d' calls itself"):
        fold(built)


def bomb(depth: int, calls: int) -> onnx.ModelProto:
    """``calls`` to the power of ``depth`` BatchNorms, in a file of some kilobytes."""
    functions = [normalise("f0")]
    for i in range(1, depth + 1):
        inner = [
            call(f"f{i - 1}", ["a" if k == 0 else f"v{k}", *PARAMETERS], [f"v{k + 1}"]) for k in range(calls)
        ]
        functions.append(function(f"f{i}", ["a", *PARAMETERS], [f"v{calls}"], inner))
    nodes = [call(f"f{depth}", ["x", *names("bn")], ["y"], "top")]
    # Functions come last: onnx's shape inference follows every call.
    built = model([helper.make_node("Relu", ["x"], ["y"])], X, ["y"], batchnorm_parameters(6))
    del built.graph.node[:]
    built.graph.node.extend(nodes)
    built.functions.extend(functions)
    built.opset_import.append(helper.make_opsetid("local", 1))
    return built


@pytest.mark.parametrize(
    ("depth", "calls", "says"), [(40, 2, "100000 nodes"), (200, 1, "nested more than 64")]
)
def test_a_bomb_is_not_written_out(depth: int, calls: int, says: str) -> None:
    built = bomb(depth, calls)
    result = untouched(built)
    assert {str(kept.reason) for kept in result.report.kept} == {"inside-a-local-function"}
    assert any(says in note for note in result.report.notes)


def test_a_bomb_beside_a_fold() -> None:
    """No BatchNorm of the bomb can go, and nothing waits for the shapes behind it."""
    built = bomb(40, 2)
    built.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 6, 5, 5]))
    built.graph.node.extend(
        [helper.make_node("Conv", ["z", "w"], ["c"], name="conv"), batchnorm("c", "o", prefix="bn")]
    )
    built.graph.initializer.append(numpy_helper.from_array(random(6, 6, 3, 3), "w"))
    built.graph.output.append(helper.make_tensor_value_info("o", TensorProto.FLOAT, None))
    assert [f.name for f in fold(built).report.folded] == ["bn"]


def test_large_constants_are_not_written_out_many_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convbn.fuse.frontends.onnx.local_functions.inline._MOST_BYTES", 10_000)
    weight = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(random(6, 6, 3, 3)))
    made = block("made")
    del made.input[1]
    made.node.insert(0, weight)
    nodes = [
        call("made", [f"h{i}" if i else "x", *names("bn")], [f"h{i + 1}"], f"call{i}") for i in range(10)
    ]
    result = untouched(model(nodes, X, ["h10"], batchnorm_parameters(6), functions=[made]))
    assert any("MiB" in note for note in result.report.notes)


def test_a_function_of_another_opset() -> None:
    """ReduceMean took its axes as an attribute until opset 18: written out it would be another operator."""
    old = function(
        "old",
        ["a", *PARAMETERS],
        ["b"],
        [
            helper.make_node("ReduceMean", ["a"], ["m"], axes=[2, 3]),
            helper.make_node("BatchNormalization", ["m", *PARAMETERS], ["b"], name="bn"),
        ],
        opset=17,
    )
    nodes = [call("old", ["x", *names("bn")], ["y"])]
    built = model(nodes, X, ["y"], batchnorm_parameters(6), functions=[old])
    result = untouched(built)
    assert any("ReduceMean is that of opset 17" in note for note in result.report.notes)


def test_a_function_of_another_opset_whose_operators_are_the_same() -> None:
    made = block()
    made.opset_import[0].version = 19
    nodes = [call("block", ["x", "w", *names("bn")], ["y"])]
    built = model(nodes, X, ["y"], {"w": random(6, 6, 3, 3), **batchnorm_parameters(6)}, functions=[made])
    assert not check(built).model.functions


def test_a_function_under_the_name_of_an_operator_is_no_such_operator() -> None:
    """``Relu`` of the model's own: it negates, and no scale may pass it as if it were ONNX's."""
    relu = helper.make_function(
        "", "Relu", ["a"], ["b"], [helper.make_node("Sin", ["a"], ["b"])], [helper.make_opsetid("", OPSET)]
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="own"),
        batchnorm("r", "y"),
    ]
    built = model(nodes, X, ["y"], {"w": random(6, 6, 3, 3), **batchnorm_parameters(6)})
    built.functions.append(relu)
    (kept,) = fold(built).report.kept
    assert "Sin" in kept.detail


def test_in_a_graphsurgeon_graph_they_stay() -> None:
    nodes = [call("block", ["x", "w", *names("bn")], ["y"])]
    built = model(nodes, X, ["y"], {"w": random(6, 6, 3, 3), **batchnorm_parameters(6)}, functions=[block()])
    (kept,) = fold(gs.import_onnx(built)).report.kept
    assert kept.reason == "inside-a-local-function"


def test_the_names_are_the_same_at_every_run() -> None:
    nodes = [call("block", ["x", "w", *names("bn")], ["h"]), call("block", ["h", "w", *names("bn")], ["y"])]
    built = model(nodes, X, ["y"], {"w": random(6, 6, 3, 3), **batchnorm_parameters(6)}, functions=[block()])
    first, second = fold(built).model, fold(built).model
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_a_function_of_an_operator_that_nobody_knows() -> None:
    """Whether it is the same in the model's opset cannot be told."""
    nodes = [call("block", ["x", "w", *names("bn")], ["y"])]
    built = model(nodes, X, ["y"], {"w": random(6, 6, 3, 3), **batchnorm_parameters(6)}, functions=[block()])
    made = built.functions[0]
    made.opset_import[0].version = OPSET - 1
    made.node[1].output[0] = "n"
    made.node.append(helper.make_node("Unknown", ["n"], ["b"]))
    result = untouched(built)
    assert any(f"Unknown is that of opset {OPSET - 1}" in note for note in result.report.notes)


def test_an_opset_that_only_a_function_imports() -> None:
    made = block()
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    made.node[1].output[0] = "n"
    made.node.append(helper.make_node("Gelu", ["n"], ["b"], domain="com.microsoft"))
    nodes = [call("block", ["x", "w", *names("bn")], ["y"])]
    built = model(nodes, X, ["y"], {"w": random(6, 6, 3, 3), **batchnorm_parameters(6)}, functions=[made])
    result = fold(built)
    assert operators(result.model) == ["Conv", "Gelu"]
    assert {entry.domain for entry in result.model.opset_import} == {"", "local", "com.microsoft"}
    feeds = {"x": random(*X["x"], seed=7)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-5


def test_a_function_that_one_which_stays_calls_is_kept_for_it() -> None:
    relu = function("relu", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])])
    old = function(
        "old",
        ["a"],
        ["b"],
        [call("relu", ["a"], ["s"]), helper.make_node("ReduceMean", ["s"], ["b"], axes=[2, 3])],
        opset=17,
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        batchnorm("c", "n"),
        call("relu", ["n"], ["r"]),
        call("old", ["r"], ["y"]),
    ]
    arrays = {"w": random(6, 6, 1, 1), **batchnorm_parameters(6)}
    built = model(nodes, X, ["y"], arrays, functions=[relu, old])
    result = fold(built)
    feeds = {"x": random(*X["x"], seed=7)}
    assert relative_error(evaluate(built, feeds), evaluate(result.model, feeds)) < 1e-5
    assert [made.name for made in result.model.functions] == ["relu", "old"]
    assert operators(result.model) == ["Conv", "Relu", "old"]
