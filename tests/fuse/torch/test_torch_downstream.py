"""What comes after a fold: compilers, exporters, tracers; and what a tensor keeps of itself."""

from __future__ import annotations

import io
import os

import pytest
import torch
from torch import nn

import convbn.fuse.fold
from convbn.errors import BadInputError
from convbn.fuse.refusal import Reason

X = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


class Net(nn.Module):
    """A stem, a pre-activation block with an in-place activation, a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.norm, self.act, self.conv = nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.conv(self.act(self.norm(x)))
        return self.head(x.mean((2, 3)))


@pytest.fixture(params=["exported", "traced"])
def folded(request, randomised, fold):
    model = randomised(Net())
    outcome = fold(model, X) if request.param == "exported" else fold(model)
    assert outcome.folded
    return model, outcome.model


@pytest.fixture(params=["exported", "decomposed"])
def program(request, randomised, fold_program):
    model = randomised(Net())
    exported = torch.export.export(model, (X,), strict=False)
    outcome = fold_program(exported if request.param == "exported" else exported.run_decompositions())
    assert outcome.folded
    return model, outcome.model


def close(a, b):
    return torch.allclose(a.double(), b.double(), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_module_compiles(folded):
    model, result = folded
    assert close(torch.compile(result, backend="aot_eager", fullgraph=True)(X), model(X))


@torch.no_grad()
def test_module_is_exported(folded):
    model, result = folded
    again = torch.export.export(result, (X,), strict=False)
    assert set(again.state_dict) == set(result.state_dict())
    assert close(again.module()(X), model(X))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_module_is_traced_by_jit(folded):
    model, result = folded
    assert close(torch.jit.trace(result, (X,))(X), model(X))


def run_onnx(exported):
    import onnxruntime

    session = onnxruntime.InferenceSession(
        exported.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: X.numpy()})[0])


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_module_goes_to_onnx(folded):
    model, result = folded
    exported = torch.onnx.export(result, (X,), dynamo=True, verbose=False)
    assert close(run_onnx(exported), model(X))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_program_goes_to_onnx(program):
    model, result = program
    exported = torch.onnx.export(result, (X,), dynamo=True, verbose=False)
    assert close(run_onnx(exported), model(X))


@torch.no_grad()
def test_program_is_saved_loaded_and_compiled(program):
    model, result = program
    buffer = io.BytesIO()
    torch.export.save(result, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer)
    assert loaded.graph_signature == result.graph_signature
    assert close(torch.compile(loaded.module(), backend="aot_eager")(X), model(X))


@torch.no_grad()
def test_program_is_lowered_further(program):
    model, result = program
    assert close(result.run_decompositions().module()(X), model(X))


# --- what tensors keep ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtype_is_kept(dtype, randomised, fold, fold_program, difference):
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))).to(dtype)
    x = X.to(dtype)
    bound = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float64: 1e-14}[dtype]
    outcome = fold(model, x)
    program = fold_program(torch.export.export(model, (x,), strict=False))
    for state, run in (
        (outcome.model.state_dict(), outcome.model),
        (program.model.state_dict, program.model.module()),
    ):
        assert {tensor.dtype for tensor in state.values()} == {dtype}
        assert difference(model, run, x) < bound


def test_memory_format_and_requires_grad_are_kept(randomised, fold):
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)))
    model = model.to(memory_format=torch.channels_last)
    model[0].requires_grad_(False)
    result = fold(model, X).model
    assert result[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not result[0].weight.is_contiguous()
    assert not result[0].weight.requires_grad
    assert not result[0].bias.requires_grad
    assert result[2].weight.requires_grad


def test_result_can_be_trained(randomised, fold):
    model = randomised(Net())
    result = fold(model, X).model
    result(X).sum().backward()
    assert all(parameter.grad is not None for parameter in result.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_device_is_kept(randomised, fold, fold_program, difference):
    model, x = randomised(Net()).cuda().double(), X.cuda().double()
    outcome = fold(model, x)
    assert {tensor.device.type for tensor in outcome.model.state_dict().values()} == {"cuda"}
    assert difference(model, outcome.model, x) < 1e-12
    program = fold_program(torch.export.export(model, (x,), strict=False))
    assert difference(model, program.model.module(), x) < 1e-12


# --- wrappers ---------------------------------------------------------------------------------------------


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "s"), 1), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(os.name == "nt", reason="gloo over a file")
@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel_is_taken_out(randomised, fold, difference):
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    wrapped = nn.parallel.DistributedDataParallel(model)
    outcome = fold(wrapped, X)
    assert type(outcome.model) is nn.Sequential
    assert outcome.folded == {"1": "0"}
    assert difference(model, outcome.model, X) < 2e-6


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore")
def test_fully_sharded_module_is_refused(randomised):
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    from convbn.fuse.frontends.torch.capture.module import capture_module

    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    with pytest.raises(BadInputError, match="shard") as caught:
        capture_module(FullyShardedDataParallel(model, device_id=torch.device("cpu")), (X,))
    assert "full" in caught.value.hint
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    with pytest.raises(BadInputError, match="shard"):
        capture_module(model, (X,))


@pytest.mark.filterwarnings("ignore")
def test_quantised_layer_in_front_keeps_the_batchnorm(randomised, difference):
    model = randomised(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)))
    model[0] = torch.ao.nn.quantized.dynamic.Linear(6, 5)
    x = torch.randn(3, 6)
    for inputs in (None, (x,)):
        outcome = convbn.fuse.fold.fold(model, inputs)
        assert [kept.name for kept in outcome.report.kept] == ["1"]
        assert difference(model, outcome.model, x) == 0


@pytest.mark.parametrize("kind", ["hook", "pre-hook", "always", "kwargs", "backward", "backward-pre"])
def test_hooks_of_every_kind_stay_and_see_what_they_saw(kind, randomised, fold):
    model, seen = randomised(Net()), []
    note = lambda *_: seen.append(kind)  # noqa: E731 - one for all kinds
    register = {
        "hook": lambda m: m.register_forward_hook(note),
        "pre-hook": lambda m: m.register_forward_pre_hook(note),
        "always": lambda m: m.register_forward_hook(note, always_call=True),
        "kwargs": lambda m: m.register_forward_hook(note, with_kwargs=True),
        "backward": lambda m: m.register_full_backward_hook(note),
        "backward-pre": lambda m: m.register_full_backward_pre_hook(note),
    }[kind]
    register(model.stem[0])
    for outcome in (fold(model, X), fold(model)):
        assert outcome.kept["stem.1"] is Reason.HOOKED
        seen.clear()
        outcome.model(X.clone().requires_grad_()).sum().backward()
        assert seen == [kind]


def test_state_dict_hooks_stay(randomised, fold):
    model, seen = randomised(Net()), []
    model.stem.register_state_dict_post_hook(lambda *_: seen.append(1))
    result = fold(model, X).model
    seen.clear()
    result.state_dict()
    assert seen == [1]
