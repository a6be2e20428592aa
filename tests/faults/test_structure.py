"""Graphs that are none, graphs that only look odd, and old ways to say that a BatchNorm is being trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run

from convbn.cli import main
from convbn.errors import BadInputError
from convbn.fuse.fold import fold

Break = Callable[[onnx.ModelProto], None]

COMMANDS = {
    "inspect": ("inspect", "model.onnx"),
    "fuse": ("fuse", "model.onnx", "-o", "out.onnx"),
    "verify": ("verify", "model.onnx", "model.onnx"),
    "export": ("export", "model.onnx", "-o", "out.onnx"),
    "bench": ("bench", "model.onnx", "--runtime", "onnxruntime-cpu@off", "--budget", "0.2"),
}


def sound(opset: int = 17) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        batchnorm("c", "n"),
        helper.make_node("Relu", ["n"], ["y"], name="relu"),
    ]
    return model(
        nodes,
        {"x": [2, 3, 6, 6]},
        ["y"],
        {"w": random(6, 3, 3, 3), **batchnorm_parameters(6)},
        opset=opset,
    )


def cycle(m: onnx.ModelProto) -> None:
    m.graph.node[0].input[0] = "y"


def dangling(m: onnx.ModelProto) -> None:
    m.graph.node[0].input[0] = "nowhere"


def output_made_twice(m: onnx.ModelProto) -> None:
    m.graph.node[2].output[0] = "c"
    m.graph.output[0].name = "c"


def output_of_nobody(m: onnx.ModelProto) -> None:
    m.graph.output[0].name = "nowhere"


def no_opset(m: onnx.ModelProto) -> None:
    del m.opset_import[:]


def opset_of_the_future(m: onnx.ModelProto) -> None:
    m.opset_import[0].version = 9999


def negative_opset(m: onnx.ModelProto) -> None:
    m.opset_import[0].version = -3


def ir_of_the_future(m: onnx.ModelProto) -> None:
    m.ir_version = 9999


def unknown_operator(m: onnx.ModelProto) -> None:
    m.graph.node[2].op_type = "NoSuchOperator"


def unknown_domain(m: onnx.ModelProto) -> None:
    m.graph.node[2].domain = "com.example"
    m.opset_import.append(helper.make_opsetid("com.example", 1))


BROKEN: list[Break] = [
    cycle, dangling, output_made_twice, output_of_nobody, no_opset, opset_of_the_future, negative_opset,
    ir_of_the_future, unknown_operator, unknown_domain,
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("break_it", BROKEN, ids=lambda function: function.__name__)
def test_graphs_that_are_none_are_refused_by_every_command(
    break_it: Break,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """``inspect`` may describe what only a runtime can refuse; whatever writes, compares or measures says no."""
    monkeypatch.chdir(tmp_path)
    broken = sound()
    break_it(broken)
    Path("model.onnx").write_bytes(broken.SerializeToString())
    code = main(COMMANDS[command])
    said = capfd.readouterr()
    told = said.err.strip()
    assert "Traceback" not in said.out + told
    if code == 0:
        assert command == "inspect"
    else:
        assert code in (1, 3, 4)
        assert command == "verify" or (told.startswith("convbn: ") and "model.onnx" in told), told
        assert len(told.splitlines()) <= 1
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_circle_is_named() -> None:
    broken = sound()
    cycle(broken)
    with pytest.raises(BadInputError, match="runs in a circle: 'conv' → 'bn' → 'relu' → 'conv'"):
        fold(broken)


def test_a_circle_that_looks_like_an_activation_is_not_followed_for_ever() -> None:
    nodes = [
        helper.make_node("Sigmoid", ["a"], ["b"], name="sigmoid"),
        helper.make_node("Mul", ["b", "x"], ["a"], name="mul"),
    ]
    with pytest.raises(BadInputError, match="circle"):
        fold(model(nodes, {"x": [2, 3]}, ["a"], {}))


def unsorted(m: onnx.ModelProto) -> None:
    nodes = list(m.graph.node)
    del m.graph.node[:]
    m.graph.node.extend(reversed(nodes))


def no_names(m: onnx.ModelProto) -> None:
    for node in m.graph.node:
        node.name = ""


def unused_opset(m: onnx.ModelProto) -> None:
    m.opset_import.append(helper.make_opsetid("com.example", 7))


def undeclared_in_ir_3(m: onnx.ModelProto) -> None:
    """An initializer had to be declared as an input then; onnxruntime reads it without."""
    m.ir_version = 3


@pytest.mark.parametrize(
    "change",
    [unsorted, no_names, unused_opset, undeclared_in_ir_3],
    ids=lambda function: function.__name__,
)
def test_what_the_runtime_reads_is_read(change: Break, tmp_path: Path) -> None:
    odd = sound(opset=9) if change is undeclared_in_ir_3 else sound()
    change(odd)
    feeds = {"x": random(2, 3, 6, 6, seed=5)}
    expected = run(odd, feeds)  # or the test would ask for too much
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    path.write_bytes(odd.SerializeToString())
    assert main(["fuse", str(path), "-o", str(out)]) == 0
    folded = onnx.load(out)
    assert sorted(operators(folded)) == ["Conv", "Relu"]
    assert relative_error(expected, run(folded, feeds)) < 1e-5


def training_mode(m: onnx.ModelProto) -> None:
    m.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))


def is_not_a_test(m: onnx.ModelProto) -> None:
    m.graph.node[1].attribute.append(helper.make_attribute("is_test", 0))


def further_outputs(m: onnx.ModelProto) -> None:
    m.graph.node[1].output.extend(["mean", "var"])


def further_outputs_in_use(m: onnx.ModelProto) -> None:
    m.graph.node[1].output.extend(["mean", "var"])
    m.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, [6]))


def a_place_of_its_own(m: onnx.ModelProto) -> None:
    m.graph.node[1].attribute.append(helper.make_attribute("spatial", 0))
    for tensor in m.graph.initializer:
        if tensor.name.startswith("bn."):
            wide = np.broadcast_to(numpy_helper.to_array(tensor)[:, None, None], (6, 4, 4)).copy()
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))


@pytest.mark.parametrize(
    ("opset", "change", "reason"),
    [
        (6, is_not_a_test, "training-mode"),
        (1, is_not_a_test, "training-mode"),
        (9, further_outputs, "training-mode"),
        (13, further_outputs_in_use, "training-mode"),
        (14, training_mode, "training-mode"),
        (17, training_mode, "training-mode"),
        (7, a_place_of_its_own, "not-per-channel"),
    ],
)
def test_old_forms_of_training_stay(opset: int, change: Break, reason: str) -> None:
    built = sound()
    built.opset_import[0].version = opset
    change(built)
    before = built.SerializeToString(deterministic=True)
    result = fold(built)
    assert [kept.reason for kept in result.report.kept] == [reason]
    assert result.model.SerializeToString(deterministic=True) == before


def test_is_test_folds() -> None:
    """Or the test above would only show that old opsets never fold."""
    built = sound()
    built.opset_import[0].version = 6
    built.graph.node[1].attribute.append(helper.make_attribute("is_test", 1))
    assert fold(built).report.kept == ()


def node_without_inputs(m: onnx.ModelProto) -> None:
    m.graph.node[0].op_type = "Transpose"
    del m.graph.node[0].input[:]


def product_of_one(m: onnx.ModelProto) -> None:
    m.graph.node[0].op_type = "MatMul"
    del m.graph.node[0].input[1:]


def batchnorm_of_a_vector(m: onnx.ModelProto) -> None:
    """Its own variance, one axis and no channels."""
    m.graph.node[1].input[0] = "bn.var"


def rearranged_scalar(operator: str, *numbers: int) -> Break:
    """What counts its axes from the back has none to count."""

    def change(m: onnx.ModelProto) -> None:
        scalar = numpy_helper.from_array(np.float32(1), "scalar")
        axes = [numpy_helper.from_array(np.array([n]), f"axes{i}") for i, n in enumerate(numbers)]
        m.graph.initializer.extend([scalar, *axes])
        node = helper.make_node(operator, ["scalar", *(t.name for t in axes)], ["odd"], name="odd")
        m.graph.node.insert(0, node)
        m.graph.node[2].input[0] = "odd"
        m.opset_import[0].version = 20

    change.__name__ = f"{operator}_of_a_scalar"
    return change


def pads_that_are_no_integers(m: onnx.ModelProto) -> None:
    m.graph.initializer.append(numpy_helper.from_array(np.full(8, np.nan, np.float32), "pads"))
    m.graph.node.insert(1, helper.make_node("Pad", ["c", "pads"], ["padded"], name="pad"))
    m.graph.node[2].input[0] = "padded"


def softmax_along_a_text(m: onnx.ModelProto) -> None:
    m.graph.node.insert(0, helper.make_node("Softmax", ["x"], ["soft"], name="softmax", axis="last"))
    m.graph.node[1].op_type = "MatMul"
    m.graph.node[1].input[0] = "soft"


def transposed_short(m: onnx.ModelProto) -> None:
    """Two axes of a value that has four."""
    m.graph.node[2].op_type = "Transpose"
    m.graph.node[2].attribute.append(helper.make_attribute("perm", [0, 1]))
    m.graph.node[1].attribute.append(helper.make_attribute("training_mode", 0))
    m.graph.node[0].op_type = "Sigmoid"
    del m.graph.node[0].input[1:]


def transposed_to_nothing(m: onnx.ModelProto) -> None:
    transposed_short(m)
    m.graph.node[2].attribute[0].ints[:] = [0]


def mean_of_fewer_axes(m: onnx.ModelProto) -> None:
    transposed_to_nothing(m)
    m.graph.node[2].op_type = "ReduceMean"
    del m.graph.node[2].attribute[:]
    m.graph.node[2].attribute.append(helper.make_attribute("axes", [9]))


@pytest.mark.parametrize(
    "change",
    [
        transposed_short,
        transposed_to_nothing,
        mean_of_fewer_axes,
        node_without_inputs,
        product_of_one,
        batchnorm_of_a_vector,
        rearranged_scalar("ReduceMean", 0),
        rearranged_scalar("Slice", 0, 1, 0),
        pads_that_are_no_integers,
        softmax_along_a_text,
    ],
    ids=lambda function: function.__name__,
)
def test_what_fuzzing_found_stays(change: Break) -> None:
    """Each once left ``fold`` as an exception that is no answer."""
    odd = sound()
    change(odd)
    report = fold(odd).report
    assert report.folded == ()
    assert [kept.name for kept in report.kept] == ["bn"]


def test_a_size_that_no_memory_holds_is_not_believed() -> None:
    numbers = {name: np.array([n]) for name, n in (("begin", 0), ("end", 6), ("axes", 1))}
    nodes = [
        helper.make_node("Slice", ["x", "begin", "end", "axes"], ["s"], name="slice"),
        batchnorm("s", "y"),
    ]
    built = model(nodes, {"x": [2, 1 << 40, 4, 4]}, ["y"], {**numbers, **batchnorm_parameters(6)})
    (kept,) = fold(built).report.kept
    assert kept.reason == "axis-not-proven"


def test_a_map_that_no_memory_holds_stays() -> None:
    nodes = [
        helper.make_node("DepthToSpace", ["x"], ["d"], name="shuffle", blocksize=1 << 20, mode="CRD"),
        batchnorm("d", "y"),
    ]
    built = model(nodes, {"x": [None, None, 4, 4]}, ["y"], batchnorm_parameters(6))
    built.graph.value_info.append(
        helper.make_tensor_value_info("d", TensorProto.FLOAT, [None, 6, None, None])
    )
    (kept,) = fold(built).report.kept
    assert kept.reason == "axis-not-proven"
    assert "than fit into memory" in kept.detail
