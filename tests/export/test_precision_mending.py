"""A precision that is refused: the worst nodes by name, and what to keep in float32 so that it passes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from support.graphs import model, random

from convbn.bench.proof.node_errors import NodeError, node_errors
from convbn.cli import main
from convbn.converting import Conversion, converted
from convbn.errors import CheckFailedError
from convbn.export.precision.convert import convert
from convbn.export.precision.options import PrecisionOptions


def cancelling() -> onnx.ModelProto:
    """3000 is added and, behind a Reshape, subtracted: float16 leaves the sum in steps of 2."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("Add", ["c", "large"], ["s"], name="add"),
        helper.make_node("Reshape", ["s", "rows"], ["r"], name="reshape"),
        helper.make_node("Sub", ["r", "large"], ["d"], name="sub"),
        helper.make_node("Tanh", ["d"], ["t"], name="tanh"),
        helper.make_node("Mul", ["t", "half"], ["y"], name="mul"),
    ]
    weights: dict[str, Any] = {"w": random(6, 3, 3, 3), "large": np.full(1, 3000, np.float32)}
    weights |= {"half": np.full(1, 0.5, np.float32), "rows": np.array([2, -1])}
    return model(nodes, {"x": [2, 3, 8, 8]}, ["y"], weights)


def uneven() -> onnx.ModelProto:
    """Of the channels that the second MatMul reads one is 1000 times as large as the others, and is not used."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("Mul", ["h", "sizes"], ["m"], name="sizes"),
        helper.make_node("MatMul", ["m", "b"], ["y"], name="second"),
    ]
    used, sizes = random(16, 5, seed=3), np.ones(16, np.float32)
    used[0], sizes[0] = 0, 1000
    return model(nodes, {"x": [8, 12]}, ["y"], {"a": random(12, 16), "sizes": sizes, "b": used})


def ranked(graph: onnx.ModelProto, precision: str, *keep: str) -> dict[str, NodeError]:
    low = convert(graph, precision, options=PrecisionOptions(keep_fp32=keep)).model
    return {row.node: row for row in node_errors(graph, low, {"x": random(2, 3, 8, 8)})}


def test_a_node_is_held_to_its_own_error() -> None:
    rows = ranked(cancelling(), "fp16")
    assert next(iter(rows)) == "sub"
    assert rows["sub"].error > 0.03
    # They read what is already wrong, and add nothing to it.
    assert rows["tanh"].error < 0.001
    assert rows["mul"].error < 0.001
    assert rows["sub"].rounded_by == ("reshape", "add")


def test_what_stays_in_float32_is_exact() -> None:
    rows = ranked(cancelling(), "fp16", "add", "reshape", "sub")
    assert "sub" not in rows
    assert max(row.error for row in rows.values()) < 0.001


def test_an_overflow_is_an_infinite_error() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["a"], name="square"),
        helper.make_node("Mul", ["a", "small"], ["y"], name="back"),
    ]
    graph = model(nodes, {"x": [2, 3]}, ["y"], {"small": np.full(1, 1e-3, np.float32)})
    low = convert(graph, "fp16").model
    found = node_errors(graph, low, {"x": np.full((2, 3), 300, np.float32)})
    assert (found[0].node, found[0].error) == ("square", float("inf"))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_the_message_says_works(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(cancelling(), "in.onnx")
    command = ["export", "in.onnx", "-o", "o.onnx", "--no-fuse", "--precision", precision]
    assert main(command) == 1
    told = capsys.readouterr().err
    assert "errors of the worst nodes, each by itself: Sub 'sub'" in told
    assert not Path("o.onnx").exists()
    said = re.search(r"with (--keep-fp32 .*) it passes", told)
    assert said is not None
    assert sorted(shlex.split(said[1])[1:]) == ["add", "reshape", "sub"]
    assert main([*command, *shlex.split(said[1])]) == 0
    assert Path("o.onnx").exists()


def test_int8_names_its_worst_layer() -> None:
    data = [random(8, 12, seed=seed) for seed in range(2)]
    with pytest.raises(CheckFailedError, match="each by itself: MatMul 'second' ") as caught:
        converted(uneven(), Conversion("int8", calibration=data))
    assert caught.value.hint == "nothing was written; with --keep-fp32 second it passes"
    kept = converted(uneven(), Conversion("int8", PrecisionOptions(keep_fp32=("second",)), calibration=data))
    assert kept.record["quantised"] == ["first"]


def test_nothing_is_promised_that_does_not_help() -> None:
    with pytest.raises(CheckFailedError) as caught:
        converted(cancelling(), Conversion("fp16", tolerance=1e-9))
    assert "keeping the worst 6 in float32 does not mend it" in str(caught.value.hint)


def test_a_network_that_bfloat16_cannot_judge_says_what_would_do() -> None:
    """One rounding of the input turns the sine around: no choice of nodes changes that."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Sin", ["h"], ["y"], name="sine"),
    ]
    graph = model(nodes, {"x": [2, 6]}, ["y"], {"w": 900 * random(6, 12)}, opset=22)
    with pytest.raises(CheckFailedError, match="beside the original's own noise") as caught:
        converted(graph, Conversion("bf16"))
    hint = str(caught.value.hint)
    assert "one rounding of its inputs to bf16 moves the original as far: use a finer precision" in hint
    tolerance = float(hint.rpartition("--tolerance ")[2])
    assert converted(graph, Conversion("bf16", tolerance=tolerance)).record["verify"]["status"] == "equal"


def test_an_operator_that_tensorrt_lacks_in_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("HardSwish", ["c"], ["h"], name="first swish"),
        helper.make_node("Conv", ["h", "v"], ["d"], name="again", pads=[1] * 4),
        helper.make_node("HardSwish", ["d"], ["y"], name="second"),
    ]
    weights = {"w": random(6, 3, 3, 3), "v": random(6, 6, 3, 3, seed=1)}
    onnx.save(model(nodes, {"x": [2, 3, 8, 8]}, ["y"], weights), "in.onnx")
    command = ["export", "in.onnx", "-o", "o.engine", "--backend", "tensorrt-rtx", "--precision", "bf16"]
    assert main(command) == 4
    told = capsys.readouterr().err
    assert "'first swish' (HardSwish) is not supported" in told
    said = told[told.index("--keep-fp32") :].strip()
    assert said == "--keep-fp32 'first swish' second"
    assert main([*command, *shlex.split(said)]) == 0
    assert Path("o.engine").exists()


def test_auto_keeps_what_has_to_be_kept() -> None:
    with pytest.raises(CheckFailedError, match="keep-fp32"):
        converted(cancelling(), Conversion("fp16"))
    record = converted(cancelling(), Conversion("fp16", PrecisionOptions(keep_fp32=("auto",)))).record
    assert {entry["node"] for entry in record["kept"]} == {"add", "reshape", "sub"}
    assert record["verify"]["status"] == "equal"
    assert record["cast_nodes"] == 3
