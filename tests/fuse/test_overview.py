"""Normalisations that are no BatchNorm are counted, as one operator or written out, and the graph is told in short."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import convbn
from convbn.common.document.terminal import laid_out
from convbn.fuse.overview import MOST_NODES
from convbn.fuse.summary import fates, fold_blocks, network, normalisations_sentence


def model(nodes: list[Any], constants: dict[str, Any], shape: list[int], opset: int = 17) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(np.asarray(v, np.float32), n) for n, v in constants.items()]
    graph = helper.make_graph(nodes, "g", [value], [out], stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 8
    return made


def node(operator: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(operator, inputs.split(), [output], name=output, **attributes)


def written_out(centred: bool, axes: list[int], square: str = "Pow") -> list[Any]:
    data = "d" if centred else "x"
    start = [node("ReduceMean", "x", "m", axes=axes), node("Sub", "x m", "d")] if centred else []
    squared = node("Pow", f"{data} two", "s") if square == "Pow" else node("Mul", f"{data} {data}", "s")
    return [
        *start,
        squared,
        node("ReduceMean", "s", "v", axes=axes),
        node("Add", "v eps", "e"),
        node("Sqrt", "e", "r"),
        node("Div", f"{data} r", "y"),
    ]


CONSTANTS = {"two": 2.0, "eps": 1e-5}


@pytest.mark.parametrize(
    ("nodes", "kind"),
    [
        (written_out(True, [-1]), "LayerNorm (written out)"),
        (written_out(True, [-1], "Mul"), "LayerNorm (written out)"),
        (written_out(False, [-1]), "RMSNorm (written out)"),
        (written_out(True, [2, 3]), "InstanceNorm (written out)"),
    ],
)
def test_written_out_normalisations_count(nodes: list[Any], kind: str) -> None:
    report = convbn.inspect(model(nodes, CONSTANTS, [1, 4, 5, 6]))
    assert dict(report.normalisations) == {kind: 1}
    assert report.to_dict()["normalisations"] == {kind: 1}


def test_one_operator_counts_and_a_root_of_something_else_does_not() -> None:
    layer = node("LayerNormalization", "x g g", "y")
    report = convbn.inspect(model([layer], {"g": np.ones(6)}, [1, 4, 5, 6]))
    assert dict(report.normalisations) == {"LayerNorm": 1}
    distance = [
        node("Mul", "x x", "s"),
        node("ReduceMean", "s", "v", axes=[-1]),
        node("Sqrt", "v", "y"),
    ]
    assert dict(convbn.inspect(model(distance, {}, [1, 4, 5, 6])).normalisations) == {}
    root = [node("Abs", "x", "a"), node("Sqrt", "a", "r"), node("Div", "x r", "y")]
    assert dict(convbn.inspect(model(root, {}, [1, 4, 5, 6])).normalisations) == {}


def test_the_sentence_says_how_many_which_and_why() -> None:
    assert normalisations_sentence({}) == ""
    told = normalisations_sentence({"LayerNorm": 12, "RMSNorm (written out)": 1})
    assert told.startswith(
        "13 normalisations are no BatchNorm and stay: 12 LayerNorm, 1 RMSNorm (written out);"
    )
    assert "each sample's own statistics" in told


def chain(count: int) -> onnx.ModelProto:
    """BatchNorms that go into the layer in front, through a ReLU, and nowhere."""
    draw = np.random.default_rng(0)
    constants: dict[str, Any] = {"w": draw.normal(size=(4, 4, 1, 1)), "one": np.ones(4), "zero": np.zeros(4)}
    norm = "one zero zero one"
    nodes = [
        node("Conv", "x w", "c0"),
        node("BatchNormalization", f"c0 {norm}", "into"),
        *(node("Sigmoid", "into" if i == 0 else f"s{i - 1}", f"s{i}") for i in range(count)),
        node("BatchNormalization", f"s{count - 1} {norm}", "y"),
    ]
    return model(nodes, constants, [1, 4, 3, 3])


def test_the_picture_colours_each_batchnorm_by_its_fate() -> None:
    report = convbn.inspect(chain(3)).to_dict()
    assert [name for name, _ in report["graph"]["nodes"]] == ["c0", "into", "s0", "s1", "s2", "y"]
    assert report["graph"]["edges"] == [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]]
    assert {name: fate for name, (fate, _) in fates(report).items()} == {"into": "into", "y": "kept"}
    picture = network(report)
    assert picture is not None
    assert picture.drawing().count('<rect class="f0"') == 1
    assert picture.drawing().count('<rect class="k0"') == 1
    assert "folded into c0" in picture.drawing()
    assert "<script" not in picture.drawing()


def test_a_network_that_is_too_large_has_no_picture() -> None:
    report = convbn.inspect(chain(MOST_NODES)).to_dict()
    assert report["graph"] is None
    assert network(report) is None
    assert not any(type(block).__name__ == "Picture" for block in fold_blocks(report))


def test_nodes_are_counted_by_operator_and_many_kinds_are_summed_up() -> None:
    counts = convbn.inspect(chain(3)).operators
    assert [(name, count.before, count.after) for name, count in counts.items()] == [
        ("BatchNormalization", 2, 1),
        ("Sigmoid", 3, 3),
        ("Conv", 1, 1),
    ]
    report = convbn.inspect(chain(3)).to_dict()
    report["operators"] = {f"Op{i}": {"before": 20 - i, "after": 19 - i} for i in range(15)}
    lines = [line.split() for line in laid_out(fold_blocks(report), width=80)]
    assert ["Op11", "9", "8"] in lines
    assert ["3", "other", "operators", "21", "18"] in lines
    assert not any(line[:1] in (["Op12"], ["file"]) for line in lines)
    report["size"] = {"before": 2_000_000, "after": 999}
    assert "file 2.0 MB 999 B" in [" ".join(line.split()) for line in laid_out(fold_blocks(report), width=80)]


def test_operators_of_modules_and_programs_are_counted_before_and_after() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sigmoid(), nn.BatchNorm2d(4)).eval()
    example = torch.ones(1, 3, 2, 2)
    for given in (module, torch.export.export(module, (example,))):
        counts = convbn.inspect(given, example).operators
        name = next(iter(counts))
        assert (name, counts[name].before, counts[name].after) == ("BatchNorm", 2, 1)
        assert all(count.before == count.after for key, count in counts.items() if key != name)


def test_a_picture_is_drawn_for_pages_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    report = convbn.inspect(chain(3))
    drawn = []
    monkeypatch.setattr("convbn.fuse.summary.drawn", lambda *_: drawn.append(1) or "<svg/>")
    report.summary(width=80)
    assert not drawn
    assert "<svg/>" in report._repr_html_()
    assert drawn == [1]
