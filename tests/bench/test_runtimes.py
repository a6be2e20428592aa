from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from convbn.bench.models.errors import ModelFormMissingError, RuntimeMissingError, SessionError
from convbn.bench.runtimes.base import (
    SessionOptions,
    Variant,
)
from convbn.bench.runtimes.onnxruntime_providers import require_provider
from convbn.bench.runtimes.registry import (
    RUNTIMES,
    check_runtime,
    device_of,
    form_of,
    load_library,
    open_session,
    register,
    runtime_names,
    runtime_note,
    self_fused_name,
)
from convbn.errors import NotSupportedError, UsageError
from convbn.export.engines.run.load import EngineFile

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
    assert {"onnxruntime-tensorrt", "torch-compile-cpu", "torch-cudagraph", "tensorrt", "tensorrt-rtx"} < set(
        runtime_names()
    )


@pytest.mark.parametrize("level", ["", "@off", "@basic", "@all"])
def test_onnxruntime_runs_and_prepares(conv_model: ConvModel, level: str) -> None:
    with open_session(
        f"onnxruntime-cpu{level}", Variant("a", onnx=conv_model()), SessionOptions(threads=1)
    ) as session:
        outputs = session.run(FEEDS)
        session.prepare(FEEDS).call()
    assert session.output_names == ("y",)
    assert outputs[0].shape == (2, 4, 8, 8)


def test_onnxruntime_takes_a_path_with_weights_beside_it(conv_model: ConvModel, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(conv_model(), path, save_as_external_data=True, location="m.data", size_threshold=0)
    with open_session("onnxruntime-cpu", Variant("a", onnx=path)) as session:
        there = session.run(FEEDS)[0]
    with open_session("onnxruntime-cpu", Variant("a", onnx=conv_model())) as session:
        assert np.array_equal(there, session.run(FEEDS)[0])
    loose = onnx.load(path, load_external_data=False)
    with pytest.raises(SessionError, match="give the path"):
        open_session("onnxruntime-cpu", Variant("a", onnx=loose))


def test_the_missing_form_of_a_model_is_asked_for(conv_model: ConvModel) -> None:
    with pytest.raises(ModelFormMissingError, match=r"checkpoint with --arch"):
        open_session("torch-cpu", Variant("a", onnx=conv_model()))
    with pytest.raises(ModelFormMissingError, match=r"\.onnx"):
        open_session("onnxruntime-cpu", Variant("a", module=torch.nn.ReLU()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a GPU")
def test_a_missing_gpu_is_never_replaced_by_the_cpu(conv_model: ConvModel) -> None:
    side = Variant("a", onnx=conv_model(), module=torch.nn.ReLU())
    with pytest.raises(RuntimeMissingError, match=r"CUDAExecutionProvider.*onnxruntime-gpu"):
        open_session("onnxruntime-cuda", side)
    with pytest.raises(NotSupportedError, match="no CUDA GPU"):
        open_session("torch-cuda", side)


def test_a_wrong_input_is_one_typed_line(conv_model: ConvModel) -> None:
    wrong = {"x": np.zeros((2, 5, 8, 8), np.float32)}
    with open_session("onnxruntime-cpu", Variant("mine", onnx=conv_model())) as session:
        for call in (session.run, session.prepare):
            with pytest.raises(SessionError, match=r"^mine: onnxruntime cannot run") as caught:
                call(wrong)
            assert "\n" not in str(caught.value)
    with (
        open_session("torch-cpu", Variant("mine", module=torch.nn.Conv2d(3, 1, 1))) as session,
        pytest.raises(SessionError, match=r"^mine: torch cannot run"),
    ):
        session.prepare(wrong)


def test_torch_runs_in_eval_mode_and_restores_threads_and_flags() -> None:
    module = torch.nn.Sequential(torch.nn.Dropout(0.9), torch.nn.BatchNorm2d(3)).train()
    threads = torch.get_num_threads()
    with open_session("torch-cpu", Variant("a", module=module), SessionOptions(threads=1)) as session:
        assert torch.get_num_threads() == 1
        first, second = session.run(FEEDS)[0], session.run(FEEDS)[0]
        session.prepare(FEEDS).call()
    assert np.array_equal(first, second)
    assert np.allclose(first, FEEDS["x"], atol=1e-4)  # mean 0, variance 1: the identity
    assert torch.get_num_threads() == threads
    assert all(part.training for part in module.modules())
    assert int(module[1].num_batches_tracked) == 0  # type: ignore[arg-type]  # a buffer


def test_torch_outputs_keep_their_structure_in_their_names() -> None:
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, object]:
            return {"logits": x.sum(dim=(2, 3)), "boxes": (x, None), "half": x.to(torch.bfloat16)}

    with open_session("torch-cpu", Variant("a", module=Two())) as session:
        outputs = session.run(FEEDS)
        assert session.output_names == ("output['logits']", "output['boxes'][0]", "output['half']")
    assert outputs[2].dtype.name == "bfloat16"
    assert np.allclose(outputs[2].astype(np.float32), FEEDS["x"], rtol=0.01)


def test_arrays_that_were_pickled_run_as_well(conv_model: ConvModel) -> None:
    feeds = pickle.loads(pickle.dumps(FEEDS))  # noqa: S301  # our own bytes
    for name, side in (
        ("torch-cpu", Variant("a", module=torch.nn.Conv2d(3, 1, 1))),
        ("onnxruntime-cpu", Variant("a", onnx=conv_model())),
    ):
        with open_session(name, side, SessionOptions(threads=1)) as session:
            session.run(feeds)


GPU_RUNTIMES = [name for name in runtime_names() if device_of(name) == "cuda"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a GPU")
@pytest.mark.parametrize("name", GPU_RUNTIMES)
def test_every_gpu_runtime_says_what_it_lacks_and_how_to_get_it(name: str, conv_model: ConvModel) -> None:
    side = Variant(
        "a", onnx=conv_model(), module=torch.nn.ReLU(), engines={name: EngineFile(Path("gone.engine"))}
    )
    for action in (lambda: load_library(name), lambda: open_session(name, side)):
        with pytest.raises(RuntimeMissingError, match=r"NVIDIA|CUDA|not installed") as caught:
            action()
        assert caught.value.hint


def test_a_runtime_optimises_by_itself_only_where_it_can_be_told_not_to() -> None:
    assert self_fused_name("onnxruntime-cuda@off") == "onnxruntime-cuda@all"
    assert self_fused_name("onnxruntime-cpu@basic") == "onnxruntime-cpu@all"
    for name in ("onnxruntime-cpu", "onnxruntime-cpu@all", "torch-cpu", "tensorrt@graph"):
        assert self_fused_name(name) is None
    assert (form_of("tensorrt@enqueue"), form_of("torch-cudagraph")) == ("engine", "torch")


def test_levels_are_joined_and_one_of_a_group_is_enough() -> None:
    check_runtime("onnxruntime-cuda@off+tf32+nhwc")
    check_runtime("torch-compile-cuda@max-autotune+freezing+channels_last+tf32")
    assert self_fused_name("onnxruntime-cuda@tf32+off") == "onnxruntime-cuda@tf32+all"
    with pytest.raises(UsageError, match="two of the levels off, basic, all"):
        check_runtime("onnxruntime-cpu@off+all")
    with pytest.raises(UsageError, match="levels of torch-cpu: torch-cpu@channels_last"):
        check_runtime("torch-cpu@tf32")
    note = runtime_note("onnxruntime-cuda@off+tf32")
    assert note is not None
    assert "TF32 off" in note
    assert "ratio near 1" not in note
    assert "onnxruntime-cuda@off runs both graphs" in str(runtime_note("onnxruntime-cuda@tf32"))


def test_a_name_is_registered_once() -> None:
    with pytest.raises(UsageError, match="already"):
        register(RUNTIMES["torch-cpu"])


def test_channels_last_is_a_layout_of_a_copy_and_the_same_numbers() -> None:
    module = torch.nn.Conv2d(3, 4, 3)
    with open_session("torch-cpu", Variant("a", module=module)) as session:
        expected = session.run(FEEDS)[0]
    seen: list[bool] = []
    with open_session("torch-cpu@channels_last", Variant("a", module=module)) as session:
        placed: torch.nn.Module = session._module  # type: ignore[attr-defined]
        placed.register_forward_hook(
            lambda _, inputs, __: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
        )
        assert np.allclose(session.run(FEEDS)[0], expected, atol=1e-5)
        assert placed.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[operator,union-attr]
    assert seen == [True]
    assert module.weight.is_contiguous()


def test_an_engine_that_was_not_built_says_why(conv_model: ConvModel) -> None:
    with pytest.raises(ModelFormMissingError, match="convbn export"):
        open_session("tensorrt-rtx", Variant("a", onnx=conv_model()))
    side = Variant("a", engines={"tensorrt-rtx": UsageError("no such operator")})
    with pytest.raises(UsageError, match="no such operator"):
        open_session("tensorrt-rtx@enqueue", side)


def test_work_that_another_provider_does_is_refused(conv_model: ConvModel) -> None:
    # The CPU provider stands for the one that took a node it was not asked to take.
    with open_session("onnxruntime-cpu@off", Variant("a", onnx=conv_model())) as session:
        inner = session._session  # type: ignore[attr-defined]
        require_provider(inner, "CPUExecutionProvider", "a")
        with pytest.raises(RuntimeMissingError, match="without CUDAExecutionProvider"):
            require_provider(inner, "CUDAExecutionProvider", "a")

        class Claims:
            """Says that CUDA was loaded, as onnxruntime does also when CUDA took no node."""

            def get_providers(self) -> list[str]:
                return ["CUDAExecutionProvider", "CPUExecutionProvider"]

            def get_provider_graph_assignment_info(self) -> object:
                return inner.get_provider_graph_assignment_info()

        with pytest.raises(RuntimeMissingError, match=r"leaves 1 nodes to another provider \(Conv\)"):
            require_provider(Claims(), "CUDAExecutionProvider", "a")


def needs_compiler() -> None:
    try:
        load_library("torch-compile-cpu")
    except RuntimeMissingError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_compiled_modules_compute_the_same_and_give_everything_back() -> None:
    needs_compiler()
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).train()
    with open_session("torch-cpu", Variant("a", module=module)) as session:
        expected = session.run(FEEDS)[0]
    with open_session("torch-compile-cpu", Variant("a", module=module), SessionOptions(threads=1)) as session:
        found = session.run(FEEDS)[0]
        session.prepare(FEEDS).call()
        from torch._dynamo.utils import counters

        assert counters["stats"]["unique_graphs"] >= 1  # it was compiled and did not fall back
    assert np.allclose(expected, found, atol=1e-5)
    assert all(part.training for part in module.modules())
    assert not torch._dynamo.config.fail_on_recompile_limit_hit


@pytest.mark.slow
def test_what_cannot_be_compiled_is_an_error_and_not_eager() -> None:
    needs_compiler()

    @torch.library.custom_op("convbn_tests::nothing", mutates_args=())
    def nothing(x: torch.Tensor) -> torch.Tensor:
        return x.clone()  # without a fake implementation it cannot be traced

    class Opaque(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nothing(x) + 1

    with (
        open_session("torch-compile-cpu", Variant("mine", module=Opaque())) as session,
        pytest.raises(SessionError, match=r"^mine: torch cannot run"),
    ):
        session.run(FEEDS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("l2", ["warm", "flushed"])
@pytest.mark.parametrize("name", ["torch-cuda", "torch-cudagraph", "torch-compile-cuda"])
def test_torch_on_a_gpu_is_timed_by_events(name: str, l2: str) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.BatchNorm2d(64)).eval()
    with open_session("torch-cpu", Variant("a", module=module)) as session:
        expected = session.run(FEEDS)[0]
    with open_session(name, Variant("a", module=module), SessionOptions(l2=l2)) as session:  # type: ignore[arg-type]  # one of two
        assert np.allclose(session.run(FEEDS)[0], expected, atol=1e-2)  # TF32
        prepared = session.prepare(FEEDS)
        prepared.call()
        assert prepared.device_times is not None
        times = prepared.device_times(20)
    assert len(times) == 20
    assert 0 < min(times) < 0.1
    assert prepared.device is not None
    assert prepared.device.mode == ("graph" if name == "torch-cudagraph" else "enqueue")
    assert prepared.device.bus_id


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["onnxruntime-cuda@off", "onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_onnxruntime_on_a_gpu_is_timed_by_events(name: str, conv_model: ConvModel) -> None:
    try:
        load_library(name)
    except RuntimeMissingError as error:
        pytest.skip(str(error))
    with open_session("onnxruntime-cpu", Variant("a", onnx=conv_model())) as session:
        expected = session.run(FEEDS)[0]
    with open_session(name, Variant("a", onnx=conv_model())) as session:
        assert np.allclose(session.run(FEEDS)[0], expected, atol=1e-2)  # TF32
        prepared = session.prepare(FEEDS)
        assert prepared.device_times is not None
        assert 0 < min(prepared.device_times(20)) < 0.1
