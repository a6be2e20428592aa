"""A whole map that goes backward past other readers, and equal results that are held once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run

from convbn.fuse.fold import Folding, fold
from convbn.fuse.options import FuseOptions

X = [1, 3, 8, 8]


def node(operator: str, sources: str, target: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, sources.split(), [target], name=f"{operator} {target}", **attributes)


def check(
    nodes: list[onnx.NodeProto], outputs: list[str], stored: dict[str, np.ndarray], **options: Any
) -> Folding:
    numbers = {
        "stem": random(4, 3, 3, 3),
        "left": random(5, 4, 3, 3, seed=1),
        "right": random(5, 4, 1, 1, seed=2),
        **batchnorm_parameters(4),
        **batchnorm_parameters(4, prefix="bn2", seed=5),
        **stored,
    }
    read = {name for n in nodes for name in n.input}
    built = model(nodes, {"x": X}, outputs, {k: v for k, v in numbers.items() if k in read})
    result = fold(built, options=FuseOptions(**options))
    feeds = {"x": random(*X, seed=7)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < 1e-5
    return result


STREAM = [
    node("Conv", "x stem", "s", pads=[1] * 4),
    batchnorm("s", "n"),
    node("Sigmoid", "n", "g"),
    node("Mul", "n g", "a"),
    node("Conv", "a left", "l", pads=[1] * 4, strides=[2, 2]),
]


@pytest.mark.parametrize("beside", ["AveragePool", "Conv"])
def test_what_else_reads_the_stream_takes_the_inverse(beside: str) -> None:
    if beside == "AveragePool":
        more = [
            node("AveragePool", "s", "p", kernel_shape=[2, 2], strides=[2, 2]),
            node("Conv", "p right", "r"),
        ]
    else:
        more = [node("Conv", "s right", "r", strides=[2, 2])]
    result = check([*STREAM, *more], ["l", "r"], {})
    assert result.report.batchnorm.after == 0
    off = check([*STREAM, *more], ["l", "r"], {}, skip=("batchnorm-apart",))
    assert off.report.batchnorm.after == 1


@pytest.mark.parametrize("spoilt", ["bn.gamma", "bn.beta"])
def test_a_map_that_would_cost_the_stream_its_digits_stays(spoilt: str) -> None:
    numbers = batchnorm_parameters(4)
    if spoilt == "bn.gamma":
        numbers[spoilt][1] = 0
    else:
        numbers[spoilt][1] = 1e4
    result = check([*STREAM, node("Conv", "s right", "r")], ["l", "r"], numbers)
    assert [str(kept.reason) for kept in result.report.kept] == ["several-readers"]


def test_of_two_batchnorms_on_a_stream_one_can_go() -> None:
    more = [
        batchnorm("s", "n2", prefix="bn2"),
        node("Sigmoid", "n2", "g2"),
        node("Mul", "n2 g2", "a2"),
        node("Conv", "a2 left", "r"),
    ]
    assert check([*STREAM, *more], ["l", "r"], {}).report.batchnorm.after == 1


def test_zeros_around_the_data_of_another_reader_keep_it() -> None:
    result = check([*STREAM, node("Conv", "s left", "r", pads=[1] * 4)], ["l", "r"], {})
    assert result.report.batchnorm.after == 1


@pytest.mark.parametrize("calls", [2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_that_is_called_again_is_held_once(calls: int, bias: bool) -> None:
    """A Siamese network: the same weights and BatchNorm over several values."""
    nodes = []
    for i in range(calls):
        source = "x" if i == 0 else f"a{i}"
        if i:
            nodes.append(node("Tanh", "x" if i == 1 else f"a{i - 1}", source))
        nodes += [
            node("Conv", f"{source} stem" + (" bias" if bias else ""), f"c{i}"),
            batchnorm(f"c{i}", f"y{i}"),
        ]
        nodes[-1].name = f"bn of {i}"
    result = check(nodes, [f"y{i}" for i in range(calls)], {"bias": random(4)})
    assert operators(result.model).count("Conv") == calls
    assert sorted(len(t.dims) for t in result.model.graph.initializer) == [1, 4]


def test_results_that_differ_are_held_each() -> None:
    nodes = [
        node("Conv", "x stem", "c"),
        batchnorm("c", "y"),
        node("Tanh", "x", "t"),
        node("Conv", "t stem", "d"),
        batchnorm("d", "z", prefix="bn2"),
    ]
    result = check(nodes, ["y", "z"], {})
    assert sorted(len(t.dims) for t in result.model.graph.initializer) == [1, 1, 4, 4]


@pytest.mark.parametrize(
    ("kernel", "stride", "pad", "goes"), [(1, 1, 0, True), (1, 2, 0, False), (2, 2, 0, False)]
)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_in_front_of_a_transposed_convolution(
    kernel: int, stride: int, pad: int, goes: bool, groups: int, bias: bool
) -> None:
    layer = node("ConvTranspose", "n k" + " bias" * bias, "y", strides=[stride] * 2, group=groups)
    nodes = [node("Conv", "x stem", "c"), node("Tanh", "c", "t"), batchnorm("t", "n"), layer]
    stored = {"k": random(4, 6 // groups, kernel, kernel), "bias": random(6)}
    assert (check(nodes, ["y"], stored).report.batchnorm.after == 0) is goes


@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_of_two_batchnorms_in_a_row_one_gives_on_an_output(dtype: str) -> None:
    """The second goes into the first, and that one goes where another reader takes the inverse."""
    nodes = [
        helper.make_node("InstanceNormalization", ["x", "scale", "bias"], ["i"], name="norm"),
        helper.make_node("GlobalAveragePool", ["i"], ["p"], name="pool"),
        batchnorm("p", "a", prefix="bn1", epsilon=1e-3),
        batchnorm("a", "y", prefix="bn1"),
        batchnorm("p", "b", prefix="bn1"),
        batchnorm("b", "z", prefix="bn2"),
    ]
    for number, made in enumerate(nodes):
        made.name = f"{made.op_type} {number}"
    stored: dict[str, np.ndarray] = {"scale": np.ones(4), "bias": np.zeros(4)}
    for number in (1, 2):
        stored |= batchnorm_parameters(4, prefix=f"bn{number}", seed=number)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    numbers = {name: array.astype(dtype) for name, array in stored.items()}
    built = model(nodes, {"x": (2, 4, 6, 6)}, ["y", "z"], numbers, elem_type=kind)
    result = fold(built)
    assert result.report.batchnorm.after < 2
    onnx.checker.check_model(result.model, full_check=True)
    feeds = {"x": random(2, 4, 6, 6).astype(dtype)}
    assert relative_error(run(built, feeds), run(result.model, feeds)) < (1e-5 if dtype == "f4" else 2e-2)
