"""What is said of an engine: layers in one form for 10.x and 11.x, and no more than is proven without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import tensorrt_calls
from support.bindings import Bindings

from convbn.errors import BadInputError, FileAccessError, NotSupportedError
from convbn.export.engines.backends.gpus import list_gpus
from convbn.export.engines.build.build import build_engine
from convbn.export.engines.run.inspect import inspect_engine
from convbn.export.engines.run.layers import parse_inspection
from convbn.export.engines.run.load import read_header

real = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)

RTX = "tensorrt-rtx"

# By hand, after the fields in the 10.x and 11.x developer guides and the 10-to-11 migration page.
TEN = {
    "Layers": [
        {
            "Name": "conv + relu",
            "LayerType": "CaskConvolution",
            "Inputs": [
                {
                    "Name": "x",
                    "Location": "Device",
                    "Dimensions": [1, 3, 8, 8],
                    "Format/Datatype": "Row major linear FP16 format",
                }
            ],
            "Outputs": [
                {
                    "Name": "y",
                    "Dimensions": [1, 4, 8, 8],
                    "Format/Datatype": "Channel major FP16 format where channel % 4 == 0",
                }
            ],
            "ParameterType": "Convolution",
            "Weights": {"Type": "Half", "Count": 108},
            "Bias": {"Type": "Half", "Count": 4},
            "TacticName": "sm80_xmma_fprop",
            "TacticValue": "0x1",
        },
        {
            "Name": "Reformatting CopyNode",
            "LayerType": "Reformat",
            "Inputs": [{"Name": "y", "Dimensions": [1, 4, 8, 8], "Format/Datatype": "Half"}],
            "Outputs": [
                {"Name": "z", "Dimensions": [1, 4, 8, 8], "Format/Datatype": "Row major linear FP32"}
            ],
            "TacticValue": "0x0",
        },
    ],
    "Bindings": ["x", "z"],
}
ELEVEN = {
    "Layers": [
        {
            "Name": "conv + relu",
            "LayerType": "CaskConvolution",
            "Inputs": [
                {
                    "Name": "x",
                    "Dimensions": [1, 3, 8, 8],
                    "Format": "Row major linear format (kLINEAR)",
                    "DataType": "Half",
                }
            ],
            "Outputs": [{"Name": "y", "Dimensions": [1, 4, 8, 8], "Format": "kCHW4", "DataType": "Half"}],
            "Weights": {"Type": "Half", "Count": 108},
            "TacticName": "sm80_xmma_fprop",
        },
        {
            "Name": "Reformatting CopyNode",
            "LayerType": "Reformat",
            "Inputs": [{"Name": "y", "Dimensions": [1, 4, 8, 8], "Format": "kCHW4", "DataType": "Half"}],
            "Outputs": [{"Name": "z", "Dimensions": [1, 4, 8, 8], "Format": "kLINEAR", "DataType": "Float"}],
        },
    ],
    "I/O Tensors": [
        {
            "Name": "x",
            "IOMode": "Input",
            "DataType": "Half",
            "Dimensions": [1, 3, 8, 8],
            "Location": "Device",
        },
        {
            "Name": "z",
            "IOMode": "Output",
            "DataType": "Float",
            "Dimensions": [1, 4, 8, 8],
            "Location": "Device",
        },
    ],
}


def test_both_forms_say_the_same():
    ten, eleven = (parse_inspection(json.dumps(content)) for content in (TEN, ELEVEN))
    assert ten == eleven
    assert ten.bindings == ("x", "z")
    conv, reformat = ten.layers
    assert (conv.name, conv.type, conv.precision, conv.tactic) == (
        "conv + relu", "CaskConvolution", "HALF", "sm80_xmma_fprop"
    )  # fmt: skip
    assert conv.inputs[0].shape == (1, 3, 8, 8)
    assert (reformat.precision, reformat.outputs[0].dtype, reformat.tactic) == ("HALF", "FLOAT", None)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Thirty-two wide channel vectorized row major Int8 format", "INT8"),
        ("Row major linear UInt8 format", "UINT8"),
        ("Row major linear BF16 format", "BF16"),
        ("BFloat16", "BF16"),
        ("FP8", "FP8"),
        ("E2M1 / FP4", "FP4"),
        ("Float", "FLOAT"),
        ("Row major INT64 format", "INT64"),
        ("Bool", "BOOL"),
        ("something new", None),
        ("", None),
    ],
)
def test_types_in_texts(text, name):
    content = {"Layers": [{"Name": "l", "Inputs": [{"Name": "x", "Format/Datatype": text}], "Outputs": []}]}
    assert parse_inspection(json.dumps(content)).layers[0].precision == name


def test_names_only():
    """What an engine built with less than detailed verbosity gives."""
    found = parse_inspection('{"Layers": ["a", "b"], "Bindings": ["x"]}')
    assert [(layer.name, layer.type, layer.precision) for layer in found.layers] == [
        ("a", None, None),
        ("b", None, None),
    ]


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"Layers": [1]}', '{"Layers": [{}]}', '{"Layers": 1}', "[" * 9999]
)
def test_unknown_forms(text):
    with pytest.raises(NotSupportedError, match="describes the engine in an unknown form") as error:
        parse_inspection(text)
    assert "\n" not in str(error.value)


def test_without_a_gpu_file_and_sidecar_speak(saved, tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    artifact = build_engine(saved, tmp_path / "a.engine", backend=RTX)
    report = inspect_engine(artifact.path)
    assert report.sha256 == artifact.sha256
    assert (report.header.backend, report.header.version, report.header.size) == (
        RTX,
        real.__version__,
        artifact.size,
    )
    assert report.sidecar == artifact.sidecar
    assert report.layers is None
    assert "it was not said that it is trusted" in report.no_layers
    import convbn.export

    schema = json.loads((Path(convbn.export.__file__).parent / "engine-report.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(json.loads(json.dumps(report.to_dict())))
    if not list_gpus():
        assert inspect_engine(artifact.path, trust=True).no_layers == "there is no NVIDIA driver here"


def test_a_sidecar_of_another_engine_proves_nothing(saved, tmp_path):
    build_engine(saved, tmp_path / "a.engine", backend=RTX)
    with (tmp_path / "a.engine").open("ab") as file:
        file.write(b"\0")
    report = inspect_engine(tmp_path / "a.engine")
    assert report.sidecar is None
    assert "is not the engine that a.engine.json describes" in report.no_sidecar
    (tmp_path / "a.engine.json").unlink()
    assert "has no sidecar" in inspect_engine(tmp_path / "a.engine").no_sidecar


def test_layers_of_an_engine_that_is_loaded(tmp_path, monkeypatch):
    script = {
        **tensorrt_calls.engine_script(real),
        "EngineInspector.get_engine_information": json.dumps(ELEVEN),
    }
    tensorrt_calls.stand_in(monkeypatch, Bindings(real, script), RTX)
    report = inspect_engine(tensorrt_calls.engine_file(tmp_path, b"vtrt"), trust=True)
    assert [layer.precision for layer in report.layers] == ["HALF", "HALF"]
    assert report.no_layers is None


def test_headers(tmp_path, saved):
    path = tmp_path / "e"
    for magic, backend, version in (
        (b"ftrt", "tensorrt", "11.4.0.106"),
        (b"vtrt", RTX, "11.4.0.106"),
        (b"ptrt", None, None),
    ):
        header = read_header(tensorrt_calls.engine_file(tmp_path, magic))
        assert (header.backend, header.version) == (backend, version)
    path.write_bytes(b"ftrt\1\0\0\0" + bytes(60))  # another kind of serialisation
    assert read_header(path).version is None
    path.write_bytes(b"ftrt")
    assert read_header(path).version is None
    with pytest.raises(BadInputError, match="is no TensorRT engine but a"):
        read_header(saved)
    with pytest.raises(FileAccessError, match="does not exist"):
        read_header(tmp_path / "no")
