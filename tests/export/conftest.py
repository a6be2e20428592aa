"""Small models for the tests of the export room."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

EPSILON = 1e-3


def _model(nodes, inputs, outputs, initializers) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="tests")


def _conv_bn(*, folded: bool, batch: int | str = 1) -> onnx.ModelProto:
    """Conv -> BN -> Relu; the folded one has W·s and (0 − μ)·s + β, s = γ / √(σ² + ε), by hand."""
    rng = np.random.default_rng(7)
    weight = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    gamma, beta, mean = (rng.standard_normal(4).astype(np.float32) for _ in range(3))
    var = rng.uniform(0.5, 2, 4).astype(np.float32)
    value = helper.make_tensor_value_info
    x, y = value("x", 1, [batch, 3, 8, 8]), value("y", 1, [batch, 4, 8, 8])
    relu = helper.make_node("Relu", ["n"], ["y"], name="relu")
    if folded:
        scale = gamma / np.sqrt(var + EPSILON)
        arrays = {"w": weight * scale[:, None, None, None], "b": beta - mean * scale}
        nodes = [helper.make_node("Conv", ["x", "w", "b"], ["n"], name="conv", pads=[1] * 4), relu]
    else:
        arrays = {"w": weight, "gamma": gamma, "beta": beta, "mean": mean, "var": var}
        norm = ["c", "gamma", "beta", "mean", "var"]
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 4),
            helper.make_node("BatchNormalization", norm, ["n"], name="bn", epsilon=EPSILON),
            relu,
        ]
    stored = [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in arrays.items()]
    return _model(nodes, [x], [y], stored)


def _single(op: str, dtypes=(1,), *, domain: str = "", shape=(1, 3, 8, 8)) -> onnx.ModelProto:
    """One node whose inputs are the graph's."""
    names = ["x", "z"][: len(dtypes)]
    values = [
        helper.make_tensor_value_info(name, dtype, list(shape))
        for name, dtype in zip(names, dtypes, strict=True)
    ]
    node = helper.make_node(op, names, ["y"], name="the_node", domain=domain)
    return _model([node], values, [helper.make_tensor_value_info("y", dtypes[0], None)], [])


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """Makers of models: `conv_bn(folded=..., batch=...)`, `single(op, dtypes)`, `model(...)`."""
    return SimpleNamespace(conv_bn=_conv_bn, single=_single, model=_model)


@pytest.fixture
def saved(tiny, tmp_path: Path) -> Path:
    """The unfused model in a file."""
    path = tmp_path / "tiny.onnx"
    onnx.save(tiny.conv_bn(folded=False), path)
    return path


@pytest.fixture
def names():
    """Names of all files in a folder, hidden ones too: what a failed write may not add to."""
    return lambda folder: sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture
def driver(tmp_path_factory, monkeypatch):
    """Puts an `nvidia-smi` first on the path that prints the given lines."""

    def install(*lines: str, code: int = 0) -> None:
        folder = tmp_path_factory.mktemp("bin")
        program = folder / "nvidia-smi"
        prints = "".join(f"echo '{line}'\n" for line in lines)
        program.write_text(f"#!/bin/sh\n{prints}exit {code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return install


@pytest.fixture
def classic(monkeypatch):
    """Stands in for classic TensorRT, which no public registry serves: RTX's module, the same API."""
    module = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    monkeypatch.setitem(sys.modules, "tensorrt", module)


@pytest.fixture(scope="session")
def working_torchvision():
    """torchvision, also where it is a CUDA build beside a CPU torch.

    Its models are plain Python; its import fails because the names of its compiled operators are
    unknown to torch. Declaring the names is enough.
    """
    torch = pytest.importorskip("torch")
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        pytest.skip("torchvision is not installed")
    library = None
    try:
        import torchvision
    except RuntimeError:
        text = Path(spec.origin).with_name("_meta_registrations.py").read_text()
        library = torch.library.Library("torchvision", "DEF")
        for name in sorted(set(re.findall(r'register_(?:fake|meta)\("(?:torchvision::)?(\w+)"', text))):
            library.define(f"{name}(Tensor a) -> Tensor")
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision
    yield torchvision
    del library
