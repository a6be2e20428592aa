"""Names that are not UTF-8: found by coverage-guided fuzzing, refused where a file is read."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from robustness.model_generator import grow

from convbn.errors import BadInputError
from convbn.export.onnx_io.read import load_model
from convbn.fuse.fold import fold

BAD = b"\xf8"
"""No byte of UTF-8."""

MARK = "@"
"""Put into a text and then replaced by :data:`BAD`, because protobuf writes nothing else."""


def with_function() -> onnx.ModelProto:
    return next(m for m in (grow(seed).model for seed in range(100)) if m.functions)


def bad(model: onnx.ModelProto) -> bytes:
    whole = model.SerializeToString(deterministic=True)
    assert whole.count(MARK.encode() * 3) == 1
    return whole.replace(MARK.encode() * 3, BAD + b"@@")


def node_name(m: onnx.ModelProto) -> None:
    m.graph.node[0].name = MARK * 3


def node_input(m: onnx.ModelProto) -> None:
    m.graph.node[0].input[0] = MARK * 3


def operator(m: onnx.ModelProto) -> None:
    m.graph.node[0].op_type = MARK * 3


def attribute(m: onnx.ModelProto) -> None:
    m.graph.node[0].attribute.add(name=MARK * 3, type=onnx.AttributeProto.INT)


def tensor(m: onnx.ModelProto) -> None:
    m.graph.initializer[0].name = MARK * 3


def location(m: onnx.ModelProto) -> None:
    tensor = m.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=MARK * 3)


def graph(m: onnx.ModelProto) -> None:
    m.graph.name = MARK * 3


def value(m: onnx.ModelProto) -> None:
    m.graph.output[0].name = MARK * 3


def dimension(m: onnx.ModelProto) -> None:
    m.graph.input[0].type.tensor_type.shape.dim[0].dim_param = MARK * 3


def function_input(m: onnx.ModelProto) -> None:
    m.functions[0].input[0] = MARK * 3


def function_node(m: onnx.ModelProto) -> None:
    m.functions[0].node[0].name = MARK * 3


def metadata(m: onnx.ModelProto) -> None:
    m.metadata_props.add(key="source", value=MARK * 3)


def domain(m: onnx.ModelProto) -> None:
    m.opset_import.add(domain=MARK * 3, version=1)


PLACES = [
    node_name, node_input, operator, attribute, tensor, location, graph, value, dimension, function_input,
    function_node, metadata, domain,
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_a_name_that_is_not_utf8_is_refused(place, tmp_path: Path) -> None:
    model = with_function()
    place(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(bad(model))
    with pytest.raises(BadInputError, match="not UTF-8") as error:
        load_model(path)
    assert "model.onnx" in str(error.value)


def test_other_alphabets_are_read(tmp_path: Path) -> None:
    model = with_function()
    model.graph.node[0].name = "Faltung-β-畳み込み"
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert load_model(path).graph.node[0].name == "Faltung-β-畳み込み"


def test_the_checkers_sentence_about_such_a_name() -> None:
    model = with_function()
    model.graph.output[0].type.tensor_type.shape.SetInParent()
    model.graph.node[0].name = MARK * 3
    del model.graph.node[0].input[1:]
    given = onnx.ModelProto.FromString(bad(model))
    notes = fold(given).report.notes
    assert any("not UTF-8" in note for note in notes), notes
