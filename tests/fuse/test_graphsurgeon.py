"""onnx-graphsurgeon graphs in and out: what graphsurgeon itself keeps comes through a fold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues
from support.graphs import batchnorm, batchnorm_parameters, model, random, relative_error, run

from convbn.errors import BadInputError
from convbn.fuse.fold import fold

SHAPE = [1, 4, 5, 5]


def conv(**more: np.ndarray) -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y")]
    return model(nodes, {"x": SHAPE}, ["y"], {"w": random(4, 4, 3, 3), **batchnorm_parameters(4), **more})


def body(name: str, *nodes: onnx.NodeProto, out: str) -> onnx.GraphProto:
    output = helper.make_tensor_value_info(out, TensorProto.FLOAT, [1, 4, 3, 3])
    return helper.make_graph(list(nodes), name, [], [output])


def test_what_describes_the_model_stays() -> None:
    built = conv()
    built.graph.name, built.graph.doc_string = "net", "what it is for"
    built.producer_name, built.producer_version, built.ir_version = "trainer", "3.1", 9
    built.opset_import.add(domain="com.example", version=4)
    graph = gs.import_onnx(built)
    folded = fold(graph).model
    for attribute in ("name", "doc_string", "producer_name", "producer_version", "ir_version", "opset"):
        assert getattr(folded, attribute) == getattr(graph, attribute), attribute
    assert {(entry.domain, entry.version) for entry in folded.import_domains} == {
        ("", 20),
        ("com.example", 4),
    }
    assert [(t.name, t.dtype, list(t.shape)) for t in folded.inputs] == [("x", np.float32, SHAPE)]
    assert [t.name for t in folded.outputs] == ["y"]
    assert [node.name for node in folded.nodes] == ["conv"]
    assert folded.nodes[0].inputs[1].name == "w"


def test_control_flow_and_functions_stay() -> None:
    inner = helper.make_function(
        "own",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 20)],
    )
    then = body(
        "then", helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "t"), out="t"
    )
    other = body("else", helper.make_node("Conv", ["x", "w"], ["e"], name="plain"), out="e")
    nodes = [
        helper.make_node("If", ["flag"], ["h"], name="if", then_branch=then, else_branch=other),
        helper.make_node("Twice", ["h"], ["y"], domain="own", name="twice"),
    ]
    built = model(
        nodes, {"x": SHAPE}, ["y"], {"w": random(4, 4, 3, 3), **batchnorm_parameters(4)}, functions=[inner]
    )
    built.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    built.opset_import.add(domain="own", version=1)
    folded = fold(gs.import_onnx(built)).model
    first, second = folded.nodes
    assert [node.op for node in first.attrs["then_branch"].nodes] == ["Conv"]
    assert [node.op for node in first.attrs["else_branch"].nodes] == ["Conv"]
    assert (second.op, second.domain, folded.functions[0].name) == ("Twice", "own", "Twice")
    exported = gs.export_onnx(folded)
    for flag in (True, False):
        feeds = {"x": random(*SHAPE, seed=2), "flag": np.array(flag)}
        assert relative_error(run(built, feeds), run(exported, feeds)) < 2e-6


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_constants_keep_their_type(dtype: type) -> None:
    arrays = {"w": random(4, 4, 3, 3), **batchnorm_parameters(4)}
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y")]
    typed = {name: array.astype(dtype) for name, array in arrays.items()}
    built = model(nodes, {"x": SHAPE}, ["y"], typed, elem_type=kind, opset=22)
    (node,) = fold(gs.import_onnx(built)).model.nodes
    exported = gs.export_onnx(fold(gs.import_onnx(built)).model)
    assert {tensor.data_type for tensor in exported.graph.initializer} == {kind}
    (expected,) = [t for t in fold(built).model.graph.initializer if t.name == "w"]
    (found,) = [t for t in exported.graph.initializer if t.name == node.inputs[1].name]
    assert numpy_helper.to_array(found).tobytes() == numpy_helper.to_array(expected).tobytes()


def test_what_nobody_reads_stays_lazy_and_the_graph_as_it_was() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        batchnorm("c", "n"),
        helper.make_node("Mul", ["n", "n"], ["m"]),
        helper.make_node("Conv", ["m", "v"], ["y"], name="last"),
    ]
    weights = {"w": random(4, 4, 3, 3), "v": random(4, 4, 1, 1), **batchnorm_parameters(4)}
    graph = gs.import_onnx(model(nodes, {"x": SHAPE}, ["y"], weights))
    before = gs.export_onnx(graph).SerializeToString()
    folded = fold(graph).model
    (last,) = [node for node in folded.nodes if node.name == "last"]
    assert isinstance(last.inputs[1]._values, LazyValues)
    assert all(
        isinstance(t._values, LazyValues) for t in graph.tensors().values() if isinstance(t, gs.Constant)
    )
    assert gs.export_onnx(graph).SerializeToString() == before


def test_weights_that_a_script_gave_it() -> None:
    graph = gs.import_onnx(conv())
    graph.nodes[0].inputs[1].values = np.ones((4, 4, 3, 3), np.float32)
    (node,) = fold(graph).model.nodes
    per_channel = node.inputs[1].values.reshape(4, -1)
    assert (per_channel == per_channel[:, :1]).all()


def test_a_graph_that_cannot_be_exported() -> None:
    graph = gs.import_onnx(conv())
    graph.nodes[0].attrs["odd"] = object()
    with pytest.raises(BadInputError, match="cannot be exported"):
        fold(graph)


def test_an_onnx_file_is_folded_without_graphsurgeon(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(conv(), path)
    code = (
        "import sys, convbn\n"
        "result = convbn.fuse(sys.argv[1])\n"
        "assert not result.report.kept\n"
        "sys.exit('onnx_graphsurgeon' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == 0
