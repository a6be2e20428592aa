"""Help ends with examples and fits a narrow terminal; options are checked before work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from convbn.cli import main, parser
from convbn.commands.options.examples import EXAMPLES

VERBS = list(EXAMPLES)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4, 4])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 4, 4])
    stored = {"w": np.ones((2, 2, 1, 1)), "one": np.ones(2), "zero": np.zeros(2)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "one", "zero", "zero", "one"], ["y"], name="bn"),
    ]
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "g", [value], [out], tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    path = tmp_path / "model.onnx"
    onnx.save(made, path)
    return path


def help_of(verb: str, capsys: Any, monkeypatch: Any) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    return str(capsys.readouterr().out)


@pytest.mark.parametrize("verb", VERBS)
def test_help_ends_with_two_examples_that_parse(verb: str, capsys: Any, monkeypatch: Any) -> None:
    text = help_of(verb, capsys, monkeypatch)
    assert max(map(len, text.splitlines())) <= 80
    examples = text[text.index("examples:") :].replace("\\\n", " ").splitlines()[1:]
    assert len(examples) == 2
    import shlex

    for example in examples:
        words = shlex.split(example)
        assert words[:2] == ["convbn", verb]
        parser().parse_args(words[1:])


@pytest.mark.parametrize("verb", VERBS)
def test_a_parser_of_one_verb_helps_as_the_whole_one_does(verb: str, capsys: Any) -> None:
    texts = []
    for made in (parser(), parser(verb)):
        with pytest.raises(SystemExit):
            made.parse_args([verb, "--help"])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert f"usage: convbn {verb}" in texts[0]


def test_every_option_is_named_and_defaults_are_given(capsys: Any, monkeypatch: Any) -> None:
    verbs = parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    for verb, one in verbs.items():  # type: ignore[union-attr]
        text = help_of(verb, capsys, monkeypatch)
        for action in one._actions:
            for name in action.option_strings:
                assert name in text, f"{verb} {name}"
    assert "(default 0)" in help_of("fuse", capsys, monkeypatch)
    assert "(default auto)" in help_of("export", capsys, monkeypatch)


@pytest.mark.parametrize(
    "words",
    [
        ("fuse", "--seed", "-1"),
        ("fuse", "--seed", "one"),
        ("fuse", "--max-pickle-mib", "0"),
        ("bench", "--budget", "0"),
        ("bench", "--budget", "nan"),
        ("bench", "--total-budget", "-3"),
        ("bench", "--blocks", "0"),
        ("bench", "--batch", "0"),
        ("bench", "--threads", "1,x"),
        ("export", "--opset", "0"),
        ("export", "--optimization-level", "6"),
        ("export", "--percentile", "101"),
        ("export", "--calibration-samples", "0"),
        ("verify", "--tolerance", "-1"),
    ],
)
def test_numbers_are_held_to_their_range_before_any_work(words: tuple[str, ...], capsys: Any) -> None:
    verb, *option = words
    files = {"verify": ["missing.onnx", "missing.onnx"]}.get(verb, ["missing.onnx"])
    with pytest.raises(SystemExit) as ended:
        main([verb, *files, *(["-o", "out.onnx"] if verb in ("fuse", "export") else []), *option])
    assert ended.value.code == 2
    assert f"argument {option[0]}" in capsys.readouterr().err


def test_a_model_is_measured_alone(model: Path, tmp_path: Path, capsys: Any) -> None:
    target = tmp_path / "r.json"
    words = [
        "--alone",
        "--runtime",
        "onnxruntime-cpu",
        "--budget",
        "0.2",
        "--no-memory",
        "--json",
        str(target),
    ]
    assert main(["bench", str(model), *words]) == 0
    (case,) = json.loads(target.read_text())["cases"]
    (row,) = case["rows"]
    assert (row["side"], row["ratio"], case["fold"]) == ("original", None, None)
    assert row["latency_seconds"]["p99"] > 0
    assert " a second in onnxruntime-cpu" in capsys.readouterr().out.replace("\n", " ")
    assert main(["bench", str(model), str(model), "--alone"]) == 2


def test_the_total_budget_leaves_out_what_it_has_no_time_for(
    model: Path, tmp_path: Path, capsys: Any
) -> None:
    target = tmp_path / "r.json"
    runtimes = "onnxruntime-cpu@off,onnxruntime-cpu"
    words = [
        "--runtime",
        runtimes,
        "--total-budget",
        "0.000001",
        "--allow-not-measured",
        "--json",
        str(target),
    ]
    assert main(["bench", str(model), *words]) == 0
    (case,) = json.loads(target.read_text())["cases"]
    first = [row for row in case["rows"] if row["runtime"] == "onnxruntime-cpu@off"]
    second = [row for row in case["rows"] if row["runtime"] == "onnxruntime-cpu"]
    assert {len(row["block_seconds"]) for row in first} == {1}
    assert all("were spent before its turn" in row["reason"] for row in second)


def test_shell_completion_names_the_verbs(capsys: Any) -> None:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", "bash"])
    assert ended.value.code == 0
    script = capsys.readouterr().out
    assert all(verb in script for verb in VERBS)
