from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from convbn.bench.errors import ModelFormMissingError, RuntimeMissingError, SessionError
from convbn.bench.runtimes.base import SessionOptions, Side
from convbn.bench.runtimes.registry import check_runtime, open_session, runtime_names
from convbn.errors import NotSupportedError, UsageError

ConvModel = Callable[..., onnx.ModelProto]
FEEDS = {"x": np.random.default_rng(3).standard_normal((2, 3, 8, 8)).astype(np.float32)}


@pytest.mark.parametrize(
    "name", ["onnxruntime", "torch-cpu@off", "onnxruntime-cpu@", "onnxruntime-cpu@O3", ""]
)
def test_unknown_names_are_usage_errors_that_list_the_known(name: str) -> None:
    with pytest.raises(UsageError, match=r"onnxruntime-cpu|levels"):
        check_runtime(name)


def test_the_registry_imports_no_runtime() -> None:
    code = (
        "import sys; from convbn.bench.runtimes import registry; registry.check_runtime('torch-cpu');"
        "sys.exit(any(m in sys.modules for m in ('torch', 'onnx', 'onnxruntime')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert set(runtime_names()) == {"onnxruntime-cpu", "onnxruntime-cuda", "torch-cpu", "torch-cuda"}


@pytest.mark.parametrize("level", ["", "@off", "@basic", "@all"])
def test_onnxruntime_runs_and_prepares(conv_model: ConvModel, level: str) -> None:
    with open_session(
        f"onnxruntime-cpu{level}", Side("a", onnx=conv_model()), SessionOptions(threads=1)
    ) as session:
        outputs = session.run(FEEDS)
        session.prepare(FEEDS)()
    assert session.output_names == ("y",)
    assert outputs[0].shape == (2, 4, 8, 8)


def test_onnxruntime_takes_a_path_with_weights_beside_it(conv_model: ConvModel, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(conv_model(), path, save_as_external_data=True, location="m.data", size_threshold=0)
    with open_session("onnxruntime-cpu", Side("a", onnx=path)) as session:
        there = session.run(FEEDS)[0]
    with open_session("onnxruntime-cpu", Side("a", onnx=conv_model())) as session:
        assert np.array_equal(there, session.run(FEEDS)[0])
    loose = onnx.load(path, load_external_data=False)
    with pytest.raises(SessionError, match="give the path"):
        open_session("onnxruntime-cpu", Side("a", onnx=loose))


def test_the_missing_form_of_a_model_is_asked_for(conv_model: ConvModel) -> None:
    with pytest.raises(ModelFormMissingError, match=r"checkpoint with --arch"):
        open_session("torch-cpu", Side("a", onnx=conv_model()))
    with pytest.raises(ModelFormMissingError, match=r"\.onnx"):
        open_session("onnxruntime-cpu", Side("a", module=torch.nn.ReLU()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a GPU")
def test_a_missing_gpu_is_never_replaced_by_the_cpu(conv_model: ConvModel) -> None:
    side = Side("a", onnx=conv_model(), module=torch.nn.ReLU())
    with pytest.raises(RuntimeMissingError, match=r"CUDAExecutionProvider.*onnxruntime-gpu"):
        open_session("onnxruntime-cuda", side)
    with pytest.raises(NotSupportedError, match="no CUDA GPU"):
        open_session("torch-cuda", side)


def test_a_wrong_input_is_one_typed_line(conv_model: ConvModel) -> None:
    wrong = {"x": np.zeros((2, 5, 8, 8), np.float32)}
    with open_session("onnxruntime-cpu", Side("mine", onnx=conv_model())) as session:
        for call in (session.run, session.prepare):
            with pytest.raises(SessionError, match=r"^mine: onnxruntime cannot run") as caught:
                call(wrong)
            assert "\n" not in str(caught.value)
    with (
        open_session("torch-cpu", Side("mine", module=torch.nn.Conv2d(3, 1, 1))) as session,
        pytest.raises(SessionError, match=r"^mine: torch cannot run"),
    ):
        session.prepare(wrong)


def test_torch_runs_in_eval_mode_and_restores_threads_and_flags() -> None:
    module = torch.nn.Sequential(torch.nn.Dropout(0.9), torch.nn.BatchNorm2d(3)).train()
    threads = torch.get_num_threads()
    with open_session("torch-cpu", Side("a", module=module), SessionOptions(threads=1)) as session:
        assert torch.get_num_threads() == 1
        first, second = session.run(FEEDS)[0], session.run(FEEDS)[0]
        session.prepare(FEEDS)()
    assert np.array_equal(first, second)
    assert np.allclose(first, FEEDS["x"], atol=1e-4)  # mean 0, variance 1: the identity
    assert torch.get_num_threads() == threads
    assert all(part.training for part in module.modules())
    assert int(module[1].num_batches_tracked) == 0  # type: ignore[arg-type]  # a buffer


def test_torch_outputs_keep_their_structure_in_their_names() -> None:
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, object]:
            return {"logits": x.sum(dim=(2, 3)), "boxes": (x, None), "half": x.to(torch.bfloat16)}

    with open_session("torch-cpu", Side("a", module=Two())) as session:
        outputs = session.run(FEEDS)
        assert session.output_names == ("output['logits']", "output['boxes'][0]", "output['half']")
    assert outputs[2].dtype.name == "bfloat16"
    assert np.allclose(outputs[2].astype(np.float32), FEEDS["x"], rtol=0.01)
