"""Adapters to other people's pipelines, each run by the real package."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from support.graphs import batchnorm, batchnorm_parameters, model, operators, random, relative_error, run
from torch import nn

import convbn


def conv_and_batchnorm() -> onnx.ModelProto:
    weights = {"w": random(4, 3, 3, 3), **batchnorm_parameters(4)}
    nodes = [onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="conv"), batchnorm("y", "z")]
    return model(nodes, {"x": [1, 3, 8, 8]}, ["z"], weights)


def check(original: onnx.ModelProto, folded: onnx.ModelProto) -> None:
    feeds = {"x": random(1, 3, 8, 8, seed=1)}
    assert operators(folded) == ["Conv"]
    assert "BatchNormalization" in operators(original), "what was given must be left as it was"
    assert relative_error(run(original, feeds), run(folded, feeds)) < 1e-5


def test_a_pass_among_those_of_onnx_ir() -> None:
    onnx_ir = pytest.importorskip("onnx_ir")
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    from convbn.integrations.onnx_ir import FoldBatchNorm

    original = conv_and_batchnorm()
    fold = FoldBatchNorm()
    chain = onnx_ir.passes.Sequential(RemoveUnusedNodesPass(), fold)
    result = chain(onnx_ir.from_proto(original))
    check(original, onnx_ir.to_proto(result.model))
    assert result.modified
    assert fold.report is not None
    assert fold.report.verify["status"] == "equal"
    assert not fold(result.model).modified, "nothing is left to fold"


def test_a_loader_of_polygraphy(tmp_path: Path) -> None:
    pytest.importorskip("polygraphy")
    from polygraphy.backend.onnx import OnnxFromPath, SaveOnnx

    from convbn.integrations.polygraphy import FoldBatchNorm

    original = conv_and_batchnorm()
    onnx.save(original, tmp_path / "model.onnx")
    load = FoldBatchNorm(OnnxFromPath(str(tmp_path / "model.onnx")))
    check(original, SaveOnnx(load, str(tmp_path / "folded.onnx"))())
    check(original, onnx.load(tmp_path / "folded.onnx"))
    check(original, FoldBatchNorm(original)())


@pytest.mark.slow
def test_a_pass_in_a_workflow_of_olive(tmp_path: Path) -> None:
    olive = pytest.importorskip("olive.workflows")
    from convbn.integrations.olive import write_package_config

    original = conv_and_batchnorm()
    onnx.save(original, tmp_path / "model.onnx")
    write_package_config(tmp_path / "packages.json")
    olive.run(
        {
            "input_model": {"type": "OnnxModel", "model_path": str(tmp_path / "model.onnx")},
            "passes": {"fold": {"type": "ConvBNFold", "skip": ["batchnorm-forward"]}},
            "output_dir": str(tmp_path / "out"),
            "cache_dir": str(tmp_path / "cache"),
            "evaluate_input_model": False,
        },
        package_config=str(tmp_path / "packages.json"),
    )
    (folded,) = (tmp_path / "out").rglob("*.onnx")
    check(original, onnx.load(folded))


def test_a_program_among_functions_on_programs() -> None:
    from convbn.integrations.torch import fold_batchnorm

    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    nn.init.uniform_(module[1].weight, 0.5, 2.0)
    x = torch.randn(1, 3, 8, 8)
    program = torch.export.export(module, (x,))
    for change in (fold_batchnorm, lambda given: given.run_decompositions()):
        program = change(program)
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not [name for name in calls if "batch_norm" in name]
    torch.testing.assert_close(program.module()(x), module(x))


def test_a_check_for_other_peoples_tests(tmp_path: Path) -> None:
    from convbn.integrations.pytest import assert_folded

    onnx.save(conv_and_batchnorm(), tmp_path / "model.onnx")
    convbn.fuse_file(tmp_path / "model.onnx", tmp_path / "folded.onnx")
    assert_folded(tmp_path / "folded.onnx")
    assert_folded(tmp_path / "model.onnx", left=1)
    with pytest.raises(AssertionError, match=r"1 BatchNorms? (is|are) left.*would fold 1"):
        assert_folded(tmp_path / "model.onnx")
    training = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    with pytest.raises(AssertionError, match="1 stays"):
        assert_folded(training)


def test_importing_convbn_imports_no_adapter() -> None:
    import subprocess
    import sys

    seen = subprocess.run(
        [sys.executable, "-c", "import sys, convbn; print([m for m in sys.modules if 'integrations' in m])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen.stdout.strip() == "[]"
