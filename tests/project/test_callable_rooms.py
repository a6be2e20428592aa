"""``convbn.fuse`` and ``convbn.bench`` are packages that behave like functions wherever Python takes one."""

from __future__ import annotations

import copy
import functools
import inspect
import multiprocessing
import pickle
import pydoc
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import convbn
import convbn.api

ROOMS = [(convbn.fuse, convbn.api.fuse), (convbn.bench, convbn.api.bench)]


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A convolution and a BatchNorm."""
    constants = {
        "w": np.ones((2, 3, 1, 1)),
        "s": np.ones(2),
        "b": np.ones(2),
        "m": np.ones(2),
        "v": np.ones(2),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 4, 4])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    return str(tmp_path / "model.onnx")


@pytest.mark.parametrize(("room", "function"), ROOMS)
def test_copies_and_pickles_are_the_package_itself(room: object, function: object) -> None:
    assert pickle.loads(pickle.dumps(room)) is room  # noqa: S301 - its own bytes
    assert copy.copy(room) is room
    assert copy.deepcopy({"call": room})["call"] is room


@pytest.mark.parametrize(("room", "function"), ROOMS)
def test_what_is_seen_of_it_is_the_function(room: object, function: object) -> None:
    assert inspect.signature(room) == inspect.signature(function)  # type: ignore[arg-type]
    assert inspect.unwrap(room) is function  # type: ignore[arg-type]
    first = str(inspect.getdoc(function)).splitlines()[0]
    assert first in str(room.__doc__)
    assert first.split()[0] in pydoc.render_doc(room)


def test_the_functions_can_be_imported_from_their_packages() -> None:
    from convbn.bench import bench  # type: ignore[attr-defined]  # a type checker takes convbn.bench
    from convbn.fuse import fuse  # type: ignore[attr-defined]

    assert fuse is convbn.api.fuse
    assert bench is convbn.api.bench
    with pytest.raises(AttributeError, match=r"'convbn\.fuse' has no attribute 'nonsense'"):
        _ = convbn.fuse.nonsense  # type: ignore[attr-defined]


def test_wrapped_and_mocked(path: str) -> None:
    @functools.wraps(convbn.fuse)
    def same(model: str) -> object:
        return convbn.fuse(model)

    assert inspect.signature(same) == inspect.signature(convbn.api.fuse)
    with mock.patch("convbn.fuse", autospec=True) as fuse:
        fuse(path)
        assert fuse.call_count == 1


def test_mapped_over_processes(path: str) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(convbn.fuse, [path, path]))
    assert [result.report.batchnorm.after for result in results] == [0, 0]
    model, report = pickle.loads(pickle.dumps(results[0]))  # noqa: S301 - its own bytes
    assert isinstance(model, onnx.ModelProto)
    assert report == results[0].report
