"""Triton model repositories: the text is parsed back, and read as Triton reads it."""

from __future__ import annotations

import re

import pytest
from google.protobuf.text_encoding import CUnescape
from onnx import helper

from convbn.errors import FileAccessError, NotSupportedError, UsageError
from convbn.export.engines.build.build import build_engine
from convbn.export.engines.triton import (
    TritonModel,
    TritonTensor,
    copy_to,
    from_sidecar,
    onnx_model,
    write_repository,
)
from convbn.export.shapes import parse_profiles

_TOKEN = re.compile(r'\s*("(?:[^"\\\n]|\\.)*"|[\w.+-]+|[{}\[\]:,])', re.ASCII)


def parse(text: str) -> dict:
    """The subset of protobuf's text format that is written: messages as dicts of lists."""
    tokens = _TOKEN.findall(text)
    assert not _TOKEN.sub("", text).strip()

    def value():
        word = tokens.pop(0)
        if word == "{":
            return message("}")
        if word == "[":
            found = []
            while tokens[0] != "]":
                found.append(value())
                if tokens[0] == ",":
                    tokens.pop(0)
            tokens.pop(0)
            return found
        if word[0] == '"':
            return CUnescape(word[1:-1]).decode()
        return int(word) if re.fullmatch(r"-?\d+", word) else word

    def message(end):
        found: dict = {}
        while tokens and tokens[0] != end:
            name = tokens.pop(0)
            if tokens[0] == ":":
                tokens.pop(0)
            found.setdefault(name, []).append(value())
        if end:
            assert tokens.pop(0) == end
        return found

    return message("")


def engine_sidecar(shape=(-1, 3, 8, 8), profiles=((1, 8),), backend="tensorrt", dtype="FLOAT"):
    rest = list(shape[1:])
    return {
        "backend": {"name": backend, "version": "11.4"},
        "inputs": [{"name": "x", "dtype": dtype, "shape": list(shape)}],
        "outputs": [{"name": "y", "dtype": "HALF", "shape": [shape[0], 10]}],
        "profiles": [{"x": {"min": [low, *rest], "opt": [low, *rest], "max": [high, *rest]}} for low, high in profiles],
    }  # fmt: skip


def test_an_engine_with_batches():
    config = parse(from_sidecar(engine_sidecar()).config("net"))
    assert config == {
        "name": ["net"],
        "platform": ["tensorrt_plan"],
        "max_batch_size": [8],
        "input": [{"name": ["x"], "data_type": ["TYPE_FP32"], "dims": [[3, 8, 8]]}],
        "output": [{"name": ["y"], "data_type": ["TYPE_FP16"], "dims": [[10]]}],
        "dynamic_batching": [{}],
    }


def test_a_static_engine_keeps_its_whole_shape():
    sidecar = engine_sidecar(shape=(2, 3, 8, 8), profiles=())
    config = parse(from_sidecar(sidecar).config("net"))
    assert config["max_batch_size"] == [0]
    assert config["input"][0]["dims"] == [[2, 3, 8, 8]]
    assert "dynamic_batching" not in config


def test_several_profiles_are_all_named():
    config = parse(from_sidecar(engine_sidecar(profiles=((1, 1), (2, 64)))).config("net"))
    assert config["max_batch_size"] == [64]
    assert config["instance_group"] == [{"kind": ["KIND_GPU"], "profile": [["0", "1"]]}]


def test_no_batches_where_an_engine_cannot_take_one_request():
    assert from_sidecar(engine_sidecar(profiles=((4, 8),))).max_batch == 0
    fixed = engine_sidecar()
    fixed["outputs"][0]["shape"][0] = 1
    assert from_sidecar(fixed).max_batch == 0


def test_a_batch_of_one_needs_no_batcher():
    assert "dynamic_batching" not in from_sidecar(engine_sidecar(profiles=((1, 1),))).config("net")


def test_what_triton_does_not_serve_is_refused():
    with pytest.raises(NotSupportedError) as error:
        from_sidecar(engine_sidecar(backend="tensorrt-rtx"))
    assert str(error.value) == (
        "tensorrt-rtx: Triton loads engines of classic TensorRT only; build with backend tensorrt, or write .onnx"
    )
    with pytest.raises(NotSupportedError, match="tensor 'x' is of type FP8, which Triton does not know"):
        from_sidecar(engine_sidecar(dtype="FP8"))


def test_an_engine_that_was_really_built(driver, classic, tiny, tmp_path):
    """Classic TensorRT is stood in for by RTX's module; sidecar and layout are what they would be."""
    driver("NVIDIA H100, 9.0, 570.1")
    model = tiny.conv_bn(folded=True, batch="n")
    artifact = build_engine(
        model, tmp_path / "m.engine", shapes=parse_profiles(["x=1x3x8x8:2x3x8x8:4x3x8x8"])
    )
    copy = copy_to(artifact.path, False)
    folder = write_repository(tmp_path / "repo", "m", from_sidecar(artifact.sidecar), copy)
    assert (folder / "1" / "model.plan").read_bytes() == artifact.path.read_bytes()
    config = parse((folder / "config.pbtxt").read_text())
    assert config["max_batch_size"] == [4]
    assert config["output"][0]["dims"] == [[4, 8, 8]]


def test_onnx(tiny):
    config = parse(onnx_model(tiny.conv_bn(folded=True, batch="n"), max_batch=16).config("net"))
    assert config["platform"] == ["onnxruntime_onnx"]
    assert config["max_batch_size"] == [16]
    assert config["input"] == [{"name": ["x"], "data_type": ["TYPE_FP32"], "dims": [[3, 8, 8]]}]
    free = parse(onnx_model(tiny.conv_bn(folded=True, batch="n")).config("net"))
    assert free["max_batch_size"] == [0]
    assert free["input"][0]["dims"] == [[-1, 3, 8, 8]]
    with pytest.raises(UsageError, match="dimension 0 of 'x' is not dynamic"):
        onnx_model(tiny.conv_bn(folded=True), max_batch=2)


def test_onnx_inputs_that_are_initializers_are_not_inputs(tiny):
    model = tiny.conv_bn(folded=True)
    model.graph.input.append(helper.make_tensor_value_info("w", 1, [4, 3, 3, 3]))
    assert [tensor.name for tensor in onnx_model(model).inputs] == ["x"]


@pytest.mark.parametrize(
    ("code", "name"), [(1, "FP32"), (10, "FP16"), (16, "BF16"), (7, "INT64"), (8, "STRING"), (9, "BOOL")]
)
def test_types(tiny, code, name):
    model = tiny.single("Identity", (code,), shape=(2,))
    model.graph.output[0].type.tensor_type.shape.dim.add(dim_value=2)
    assert {tensor.data_type for tensor in (*onnx_model(model).inputs, *onnx_model(model).outputs)} == {name}


def test_onnx_that_cannot_be_described(tiny):
    with pytest.raises(NotSupportedError, match="rank of 'y' is not known"):
        onnx_model(tiny.single("Relu"))
    with pytest.raises(NotSupportedError, match="type that Triton does not know"):
        onnx_model(tiny.single("Identity", (14,)))
    model = tiny.single("Relu")
    model.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("y", 1, [1]))
    with pytest.raises(NotSupportedError, match="type that Triton does not know"):
        onnx_model(model)


def test_scalars_come_through_a_reshape():
    scalar = TritonTensor("s", "FP32", ())
    config = parse(TritonModel("onnxruntime_onnx", (scalar,), (scalar,)).config("net"))
    assert config["input"] == [
        {"name": ["s"], "data_type": ["TYPE_FP32"], "dims": [[1]], "reshape": [{"shape": [[]]}]}
    ]
    labels = TritonTensor("l", "INT64", (-1,))
    config = parse(TritonModel("onnxruntime_onnx", (labels,), (labels,), max_batch=4).config("net"))
    assert config["output"][0]["reshape"] == [{"shape": [[]]}]


def test_hostile_names_stay_names():
    name = 'a"\n} platform: "x\\'
    tensor = TritonTensor(name + "模", "FP32", (1,))
    config = parse(TritonModel("onnxruntime_onnx", (tensor,), (tensor,)).config("net"))
    assert config["platform"] == ["onnxruntime_onnx"]
    assert config["input"][0]["name"] == [name + "模"]


MODEL = TritonModel(
    "onnxruntime_onnx", (TritonTensor("x", "FP32", (1,)),), (TritonTensor("y", "FP32", (1,)),)
)


def test_an_existing_model_is_kept(tmp_path, names):
    write_repository(tmp_path, "m", MODEL, lambda path: path.write_text("one"))
    with pytest.raises(FileAccessError, match="m: already exists; use --force"):
        write_repository(tmp_path, "m", MODEL, lambda path: path.write_text("two"))
    assert (tmp_path / "m" / "1" / "model.onnx").read_text() == "one"
    write_repository(tmp_path, "m", MODEL, lambda path: path.write_text("two"), overwrite=True)
    assert (tmp_path / "m" / "1" / "model.onnx").read_text() == "two"
    assert names(tmp_path) == ["m"]


def test_a_failed_write_leaves_no_model(tmp_path, names):
    def fail(path):
        path.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_repository(tmp_path, "m", MODEL, fail)
    assert names(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(FileAccessError, match="cannot be made"):
        write_repository(tmp_path / "file", "m", MODEL, lambda path: path.write_text("x"))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "nul\0"])
def test_names_that_are_no_folder(tmp_path, names, name):
    with pytest.raises(UsageError, match="is no name for a model"):
        write_repository(tmp_path, name, MODEL, lambda path: path.write_text("x"))
    assert names(tmp_path) == []


def test_shapes_of_the_command_line_and_of_the_sidecar_agree(driver, classic, tiny, tmp_path):
    driver("NVIDIA H100, 9.0, 570.1")
    model = tiny.conv_bn(folded=True, batch="n")
    shapes = parse_profiles(["x=2x3x8x8:2x3x8x8:4x3x8x8"])
    described = from_sidecar(build_engine(model, tmp_path / "m", shapes=shapes).sidecar)
    assert described.max_batch == 0
    assert described.inputs[0].shape == (-1, 3, 8, 8)
