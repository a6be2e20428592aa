"""What is written for Triton, read by Triton's own definition of the format."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from convbn.export.engines.triton import TritonModel, TritonTensor

FOLDER = os.environ.get("CONVBN_TRITONCLIENT")


@pytest.fixture(scope="module")
def definition():
    if FOLDER is None:
        pytest.skip("make contract downloads tritonclient and runs this")
    path = Path(FOLDER) / "tritonclient" / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_triton_reads_it(definition):
    from google.protobuf import text_format

    name = 'a"\n} platform: "x\\ 模'
    inputs = (TritonTensor(name, "FP16", (-1, 3, -1, 8)), TritonTensor("labels", "INT64", (-1,)))
    outputs = (TritonTensor("y", "BF16", (-1, 10)),)
    model = TritonModel("tensorrt_plan", inputs, outputs, max_batch=8, profiles=2)
    config = text_format.Parse(model.config("net"), definition.ModelConfig())
    assert (config.name, config.platform, config.max_batch_size) == ("net", "tensorrt_plan", 8)
    assert config.input[0].name == name
    assert list(config.input[0].dims) == [3, -1, 8]
    assert config.input[0].data_type == definition.TYPE_FP16
    assert list(config.input[1].dims) == [1]
    assert config.input[1].HasField("reshape")
    assert config.output[0].data_type == definition.TYPE_BF16
    assert config.HasField("dynamic_batching")
    assert list(config.instance_group[0].profile) == ["0", "1"]
    assert config.instance_group[0].kind == definition.ModelInstanceGroup.KIND_GPU


def test_every_type_is_one_of_tritons(definition):
    from convbn.export import dtypes

    assert {f"TYPE_{name}" for name in dtypes._TRITON.values()} <= set(definition.DataType.keys())
