"""ONNX models folded without holding their weights: the same result, computed when it is written."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from support.graphs import batchnorm, batchnorm_parameters, model, random

from convbn.errors import BadInputError
from convbn.fuse.fold import fold
from convbn.fuse.frontends.onnx.model import tensors
from convbn.fuse.frontends.onnx.model.tensors import Stored

EXTERNAL = onnx.TensorProto.EXTERNAL


@pytest.fixture(autouse=True)
def _computed_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of these models count as large."""
    monkeypatch.setattr(tensors, "_MIN_BYTES", 1024)


def chain(dtype: Any = np.float32) -> onnx.ModelProto:
    """Two convolutions that each take in a map from behind, and the second one from in front as well."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        batchnorm("c", "n", prefix="first"),
        helper.make_node("Conv", ["n", "v"], ["d"], name="second"),
        batchnorm("d", "m", prefix="second"),
        batchnorm("m", "k", prefix="third"),
        helper.make_node("Conv", ["k", "v", "b"], ["e"], name="shares"),
        batchnorm("e", "y", prefix="fourth"),
    ]
    arrays = {"w": random(16, 3, 3, 3), "v": random(16, 16, 3, 3, seed=1), "b": random(16, seed=2)}
    for index, prefix in enumerate(("first", "second", "third", "fourth")):
        arrays |= batchnorm_parameters(16, prefix=prefix, seed=index)
    arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return model(nodes, {"x": [1, 3, 20, 20]}, ["y"], arrays, elem_type=kind)


def branches() -> onnx.ModelProto:
    """3×3 and 1×1 and identity, as RepVGG has them: merged, so that new weights replace several."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="three", pads=[1] * 4),
        batchnorm("c", "n", prefix="first"),
        helper.make_node("Conv", ["x", "v"], ["d"], name="one"),
        batchnorm("d", "m", prefix="second"),
        batchnorm("x", "i", prefix="third"),
        helper.make_node("Add", ["n", "m"], ["s"]),
        helper.make_node("Add", ["s", "i"], ["y"]),
    ]
    arrays = {"w": random(16, 16, 3, 3), "v": random(16, 16, 1, 1, seed=1)}
    for index, prefix in enumerate(("first", "second", "third")):
        arrays |= batchnorm_parameters(16, prefix=prefix, seed=index)
    return model(nodes, {"x": [1, 16, 8, 8]}, ["y"], arrays)


def taken_out(whole: onnx.ModelProto, *, smallest: int) -> tuple[onnx.ModelProto, dict[str, bytes]]:
    """The model without the bytes of its tensors from ``smallest`` bytes on, and those bytes."""
    light, stored = copy.deepcopy(whole), {}
    for tensor in light.graph.initializer:
        if len(tensor.raw_data) >= smallest:
            stored[tensor.name] = tensor.raw_data
            tensor.ClearField("raw_data")
            tensor.data_location = EXTERNAL
            tensor.external_data.add(key="location", value=tensor.name)
    return light, stored


def put_back(result: Any, stored: dict[str, bytes]) -> onnx.ModelProto:
    """What whoever writes the model does, last tensor first: the order must not matter."""
    tensors = [t for t in result.model.graph.initializer if t.data_location == EXTERNAL]
    values = {}
    for tensor in reversed(tensors):
        location = tensor.external_data[0].value
        compute = result.computed.get(location)
        values[id(tensor)] = stored[location] if compute is None else compute().tobytes()
    for tensor in tensors:
        tensor.raw_data = values[id(tensor)]
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return result.model


@pytest.mark.parametrize("smallest", [0, 100, 1024, 4000])
@pytest.mark.parametrize("make", [chain, branches])
def test_the_same_as_in_memory(make: Any, smallest: int) -> None:
    whole = make()
    light, stored = taken_out(whole, smallest=smallest)
    assert stored
    before = light.SerializeToString()
    result = fold(light, read=lambda tensor: stored[tensor.external_data[0].value])
    assert light.SerializeToString() == before
    assert result.computed
    expected = fold(whole)
    assert expected.report.folded == result.report.folded
    assert put_back(result, stored).SerializeToString() == expected.model.SerializeToString()


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_types(dtype: str) -> None:
    whole = chain(np.dtype(dtype))
    light, stored = taken_out(whole, smallest=100)
    result = fold(light, read=lambda tensor: stored[tensor.external_data[0].value], owned=True)
    assert put_back(result, stored).SerializeToString() == fold(whole).model.SerializeToString()


def test_large_weights_are_computed_when_asked_for() -> None:
    whole = chain()
    light, stored = taken_out(whole, smallest=1024)
    reads: list[str] = []

    def read(tensor: onnx.TensorProto) -> bytes:
        reads.append(tensor.name)
        return stored[tensor.external_data[0].value]

    result = fold(light, read=read)
    planned = len(reads)
    assert all(len(t.raw_data) < 1024 for t in result.model.graph.initializer)
    for compute in result.computed.values():
        compute()
    assert len(reads) > planned


def test_without_a_reader_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A location is no path from wherever convbn was started."""
    light, stored = taken_out(chain(), smallest=0)
    for name, data in stored.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInputError, match=r"lies in another file.*give the model's path"):
        fold(light)


def test_packed_integers_are_read() -> None:
    """Two elements a byte."""
    values = np.arange(-8, 8).reshape(4, 4)
    packed = numpy_helper.from_array(
        values.astype(onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.INT4)), "q"
    )
    light = onnx.TensorProto(name="q", dims=[4, 4], data_type=onnx.TensorProto.INT4, data_location=EXTERNAL)
    constant = Stored(light, lambda _: packed.raw_data).constant()
    assert len(packed.raw_data) == 8
    assert constant.array().astype(int).tolist() == values.tolist()


def test_fewer_bytes_than_the_shape_needs() -> None:
    light = onnx.TensorProto(name="q", dims=[4, 4], data_type=onnx.TensorProto.FLOAT, data_location=EXTERNAL)
    with pytest.raises(BadInputError, match="'q' cannot be read"):
        Stored(light, lambda _: bytes(60)).constant().array()


def test_in_a_body_weights_are_computed_at_once() -> None:
    """Whoever writes the model moves only the main graph's weights, and onnx's checker opens those of bodies."""
    body = chain().graph
    then = helper.make_graph(
        list(body.node)[:2], "then", [], [helper.make_tensor_value_info("n", 1, None)], list(body.initializer)
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["z"], ["o"])],
        "else",
        [],
        [helper.make_tensor_value_info("o", 1, None)],
    )
    whole = model(
        [helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
        {"x": [1, 3, 20, 20], "z": [1, 16, 18, 18]},
        [],
        {"large": random(600)},
    )
    whole.graph.input.append(helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []))
    whole.graph.output.append(helper.make_tensor_value_info("y", 1, None))
    light, stored = taken_out(whole, smallest=1024)
    result = fold(light, read=lambda tensor: stored[tensor.external_data[0].value])
    assert result.report.batchnorm.after == 0
    assert not result.computed
    assert put_back(result, stored).SerializeToString() == fold(whole).model.SerializeToString()


def test_a_tensor_without_an_element_type() -> None:
    built = chain()
    built.graph.initializer[0].data_type = onnx.TensorProto.UNDEFINED
    stored = Stored(built.graph.initializer[0])
    with pytest.raises(BadInputError, match="cannot be read: it has no element type"):
        stored.constant().array()
