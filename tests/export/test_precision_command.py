"""``convbn export --precision`` and the Python functions behind it: converted, compared, recorded, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, random

import convbn
from convbn.cli import main
from convbn.converting import Conversion, converted
from convbn.errors import CheckFailedError
from convbn.export.engines.build.profiles import contradicting_names
from convbn.export.shapes import Profile, ShapeRange

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 4),
        batchnorm("c", "n"),
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "head"], ["y"], name="gemm"),
    ]
    weights = {"w": random(6, 3, 3, 3), "head": random(6, 5, seed=1), **batchnorm_parameters(6)}
    onnx.save(model(nodes, {"x": [2, 3, 8, 8]}, ["y"], weights), tmp_path / "in.onnx")
    np.save(tmp_path / "data.npy", random(7, 3, 8, 8, seed=2))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def export(*arguments: str) -> int:
    try:
        return main(["export", "in.onnx", *arguments])
    except SystemExit as end:  # argparse: an option makes no sense by itself
        return int(end.code or 0)


def validate(name: str, value: Any) -> None:
    jsonschema.validate(value, json.loads((ROOT / name).read_text()))


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_an_engine_with_its_record(folder: Path, precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    assert export("-o", "o.engine", "--precision", precision, "--calibration", "data.npy") == 0
    sidecar = json.loads((folder / "o.engine.json").read_text())
    validate("export/engine-sidecar.schema.json", sidecar)
    assert sidecar["precision"] == sidecar["conversion"]["precision"] == precision
    assert sidecar["scale_layers"] == {"before": 1, "after": 0}
    verify = sidecar["conversion"]["verify"]
    assert verify["status"] == "equal"
    assert verify["outputs"][0]["top1_agreement"] is not None
    assert verify["samples"] == 4
    assert f"{precision} against the original: largest relative" in capsys.readouterr().out


def test_onnx_with_its_record(folder: Path) -> None:
    assert export("-o", "o.onnx", "--precision", "int8", "--calibration", "data.npy", "--json", "r.json") == 0
    written = onnx.load(folder / "o.onnx")
    onnx.checker.check_model(written, full_check=True)
    record = json.loads(next(p.value for p in written.metadata_props if p.key == "convbn.precision"))
    report = json.loads((folder / "r.json").read_text())
    validate("fuse/fuse-report.schema.json", report)
    assert report["precision"] == record
    assert record["quantised"] == ["conv", "gemm"]


def test_fp16_without_data_looks_at_one_random_input(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export("-o", "o.onnx", "--precision", "fp16", "--keep-fp32", "gemm", "--half-io") == 0
    out = capsys.readouterr().out
    assert "fp16: 4 nodes cast, 1 stay in float32" in out
    assert "gemm (Gemm): the options name it" in out
    assert "activations looked at on random input, seed 0" in out
    assert "rounded to float16 after every node" in out
    written = onnx.load(folder / "o.onnx")
    assert written.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16


def test_nothing_is_written_that_is_too_far_off(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--precision", "int8", "--calibration", "data.npy", "--tolerance", "1e-6")
    assert export("-o", "o.onnx", *options) == 1
    assert (
        "the int8 model is too far from the original: output 'y': relative RMS error"
        in capsys.readouterr().err
    )
    assert not (folder / "o.onnx").exists()
    assert export("-o", "o.onnx", *options, "--no-verify") == 0


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ("--precision int8", 2, "--precision int8 needs calibration data"),
        (
            "--precision fp32 --calibration data.npy",
            2,
            "--calibration is for --precision fp16 or bf16 or int8",
        ),
        ("--calibration data.npy", 2, "not as-is"),
        ("--precision fp16 --calibration-method entropy", 2, "--calibration-method is for --precision int8"),
        ("--precision int8 --calibration data.npy --half-io", 2, "--half-io is for --precision fp16 or bf16"),
        ("--precision fp16 --preprocess imagenet", 2, "--preprocess needs --calibration PATH"),
        (
            "--precision int8 --calibration data.npy --percentile 99",
            2,
            "is for --calibration-method percentile",
        ),
        ("--precision fp16 --keep-fp32 nonsense", 2, "no node 'nonsense' to keep in float32"),
        ("--precision fp16 --tolerance -1", 2, "argument --tolerance: '-1' is no number above 0"),
        ("--precision int8 --calibration nothing.npy", 5, "no such file"),
        ("--precision int8 --calibration in.onnx", 3, "holds no calibration data"),
        (
            "--precision int8 --calibration data.npy --calibration-samples 0",
            2,
            "argument --calibration-samples: '0' is no whole number of at least 1",
        ),
        ("--precision int8 --calibration data.npy --quantize Softmax", 2, "'Softmax' cannot be quantised"),
        (
            "--precision fp16 --calibration data.npy --preprocess nonsense",
            2,
            "is not understood at 'nonsense'",
        ),
    ],
)
def test_refusals_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: str, code: int, told: str
) -> None:
    assert export("-o", "o.onnx", *arguments.split()) == code
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (folder / "o.onnx").exists()


def test_quantised_before_folding(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        batchnorm("d", "y"),
    ]
    extra = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8), "w": random(6, 3, 3, 3)}
    onnx.save(model(nodes, {"x": [2, 3, 8, 8]}, ["y"], {**extra, **batchnorm_parameters(6)}), "in.onnx")
    assert export("-o", "as-is.onnx", "--no-fuse") == 0
    assert export("-o", "o.onnx", "--precision", "int8", "--calibration", "data.npy") == 3
    assert "quantisation stands between Conv 'conv' and BatchNormalization 'bn'" in capsys.readouterr().err


def test_verify_allows_what_a_precision_brings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export("-o", "o.onnx", "--precision", "int8", "--calibration", "data.npy") == 0
    assert main(["verify", "in.onnx", "o.onnx"]) == 1
    pair = ["verify", "in.onnx", "o.onnx", "--precision", "int8"]
    assert main(pair) == 2  # random inputs say nothing of ranges
    assert "--calibration" in capsys.readouterr().err
    assert main([*pair, "--calibration", "data.npy", "--json", "v.json"]) == 0
    answer = json.loads((folder / "v.json").read_text())
    assert answer["tolerance"] == {"bound": 0.25, "norm": "rms", "source": "12 dB between signal and noise"}
    assert main([*pair, "--inputs", "data.npy", "--tolerance", "1e-5"]) == 1
    with pytest.raises(SystemExit, match="2"):
        main(["verify", "in.onnx", "o.onnx", "--tolerance", "0"])
    assert "same class" in capsys.readouterr().out


def test_verify_sees_an_overflow_that_the_cpu_computes_around(folder: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["s"], name="square"),
        helper.make_node("Sqrt", ["s"], ["y"]),
    ]
    built = model(nodes, {"x": [4]}, ["y"], {})
    half = converted(built, Conversion("fp16", verify=False)).model
    large = [{"x": np.array([1, 2, 300, 4], np.float32)}, {"x": np.array([5, 2, 3, 4], np.float32)}]
    answer = convbn.verify(built, half, inputs=large, precision="fp16")
    assert answer.status == "different"
    assert "infinite" in answer.reason
    assert convbn.verify(built, half, inputs=large[1:], precision="fp16").equal


def test_python_calibrates_from_an_iterable(folder: Path) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    folded = convbn.fuse("in.onnx").model
    samples = (random(2, 3, 8, 8, seed=i) for i in range(5))
    artifact = convbn.build_engine(
        folded, "o.engine", backend="tensorrt-rtx", precision="int8", calibration=samples
    )
    assert artifact.sidecar["conversion"]["calibration"] == {"origin": "Python", "samples": 5}  # type: ignore[index]
    with pytest.raises(CheckFailedError, match="too far from the original"):
        convbn.build_engine(folded, "p.engine", backend="tensorrt-rtx", precision="bf16", tolerance=1e-6)
    assert not (folder / "p.engine").exists()
    with pytest.raises(convbn.UsageError, match="not for precision fp32"):
        convbn.build_engine(folded, "p.engine", precision="fp32", calibration="data.npy")


@pytest.mark.parametrize(
    "arguments",
    [
        "--precision int8 --calibration nothing.npy",
        "--precision int8 --calibration .",
        "--precision int8 --calibration wrong.npy",
        "--precision int8 --calibration data.npy --quantize Softmax",
        "--precision fp16 --keep-fp32 convv",
        "--precision fp16 --tolerance -1",
    ],
)
def test_what_cannot_work_is_found_before_folding(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: str
) -> None:
    def folded(*_: object, **__: object) -> None:
        raise AssertionError("it was folded first")

    monkeypatch.setattr("convbn.commands.export.fold", folded)
    np.save(folder / "wrong.npy", random(7, 4, 8, 8))
    if arguments.endswith("."):
        (folder / "data.npy").unlink()
        (folder / "wrong.npy").unlink()
    assert export("-o", "o.onnx", *arguments.split()) in (2, 3, 5)


def test_a_misspelt_node_is_told_its_neighbour(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export("-o", "o.onnx", "--precision", "fp16", "--keep-fp32", "gem") == 2
    assert "no node 'gem' to keep in float32; is 'gemm' meant?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        "inspect in.onnx",
        "fuse in.onnx -o o.onnx",
        "export in.onnx -o o.onnx --precision fp16 --calibration data.npy",
        "export in.onnx -o o.onnx --precision int8 --calibration data.npy",
        "export in.onnx -o o.engine --shapes x=1x3x8x8:2x3x8x8:4x3x8x8",
        "export in.onnx -o o.ort",
        "verify in.onnx in.onnx --inputs data.npy",
        "bench in.onnx --batch 3 --budget 0.1 --json r.json",
    ],
)
def test_a_size_below_0_is_open(folder: Path, arguments: str) -> None:
    if ".engine" in arguments:
        pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    built = onnx.load("in.onnx")
    built.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    built.graph.output[0].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(built, "in.onnx")
    assert main(arguments.split()) == 0


def test_equal_names_count_across_inputs_and_profiles() -> None:
    built = model([helper.make_node("Add", ["a", "b"], ["y"])], {"a": ["n", "m"], "b": ["n", "m"]}, ["y"], {})

    def sizes(*a: int) -> ShapeRange:
        return ShapeRange((a[0], 3), (a[1], 3), (a[2], 3))

    same: Profile = {"a": sizes(1, 2, 4), "b": sizes(1, 2, 4)}
    other: Profile = {"a": sizes(1, 2, 4), "b": sizes(2, 2, 4)}
    assert contradicting_names(built, [same]) == set()
    assert contradicting_names(built, [same, other]) == {"n"}


@pytest.mark.parametrize("shapes", ["x=1x3x8x8:2x3x16x12:4x3x32x32", "x:2x3x16x12", "2x3x16x12"])
@pytest.mark.parametrize("name", ["?", "own"])
def test_the_profile_gives_the_shape(folder: Path, shapes: str, name: str) -> None:
    """Open dimensions that are all called alike, and differ in the profile, are told apart."""
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    built = onnx.load("in.onnx")
    for axis in (0, 2, 3):
        built.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name if name == "?" else f"d{axis}"
    onnx.save(built, "in.onnx")
    assert export("-o", "o.engine", "--shapes", shapes) == 0
    warnings = json.loads((folder / "o.engine.json").read_text())["warnings"]
    assert any("Dimensions named '?' differ" in told for told in warnings) is (name == "?")


def test_an_engine_is_asked_for_its_shapes_before_folding(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    monkeypatch.setattr("convbn.commands.export.fold", None)
    built = onnx.load("in.onnx")
    built.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.save(built, "in.onnx")
    assert export("-o", "o.engine") == 2
    assert "give each a range, like --shapes x=MIN:OPT:MAX" in capsys.readouterr().err


def test_bf16_of_a_long_signal_is_judged_in_bounded_memory(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """onnx's reference evaluator would hold all windows of the signal at once."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[32, 32]), batchnorm("c", "y")]
    weights = {"w": random(6, 1, 65), **batchnorm_parameters(6)}
    onnx.save(model(nodes, {"x": [1, 1, 4000]}, ["y"], weights, opset=22), folder / "in.onnx")
    assert export("-o", "o.onnx", "--precision", "bf16") == 0
    assert "onnxruntime" in (out := capsys.readouterr().out)
    assert "rounded to bfloat16 after every node" in out
