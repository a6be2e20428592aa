from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from convbn.errors import BadInputError, FileAccessError, NotSupportedError, UsageError
from convbn.export.checkpoints.load import load_state
from convbn.export.engines.build.network import network_summary
from convbn.export.files.sniff import ArtifactKind, sniff
from convbn.export.torch.save import export_onnx, save_program, save_tensors

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")


def net():
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(4, eps=1e-3),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.5),
    )
    with torch.no_grad():
        module[1].running_mean.uniform_(-1, 1)
        module[1].running_var.uniform_(0.5, 2)
        module[1].weight.uniform_(0.5, 2)
    return module


def fused():
    """The same with the BatchNorm folded by hand."""
    module = net()
    conv, norm = module[0], module[1]
    scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
    plain = torch.nn.Conv2d(3, 4, 3, padding=1)
    plain.weight.data = conv.weight.detach() * scale[:, None, None, None]
    plain.bias.data = norm.bias.detach() - norm.running_mean * scale
    return torch.nn.Sequential(plain, module[2], module[3])


def operators(model: onnx.ModelProto) -> Counter:
    return Counter(node.op_type for node in model.graph.node)


def run(model: onnx.ModelProto, x) -> np.ndarray:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


X = torch.linspace(-2, 2, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def test_batchnorm_stays_where_it_is_and_only_there():
    unfused_model, fused_model = export_onnx(net(), X), export_onnx(fused(), X)
    assert operators(unfused_model)["BatchNormalization"] == 1
    assert operators(fused_model)["BatchNormalization"] == 0
    with torch.no_grad():
        expected = net().eval()(X).numpy()
    for model in (unfused_model, fused_model):
        onnx.checker.check_model(model, full_check=True)
        np.testing.assert_allclose(run(model, X), expected, atol=1e-5)


def test_training_flags_are_left_and_the_export_is_in_eval_mode():
    module = net().train()
    module[1].eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    model = export_onnx(module, X)
    assert [child.training for child in module] == [True, False, True, True]
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    batchnorm = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    assert len(batchnorm.output) == 1
    assert "Dropout" not in operators(model)


def test_flags_are_restored_after_a_failure():
    module = net().train()
    with pytest.raises(NotSupportedError) as error:
        export_onnx(module, torch.zeros(2, 2))
    assert "\n" not in str(error.value)
    assert "Expected 3D" in str(error.value)
    assert module.training
    assert module[1].training


def test_what_cannot_be_traced_is_one_line_and_silent(capfd):
    class Branching(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(NotSupportedError, match="data-dependent") as error:
        export_onnx(Branching(), X)
    assert "\n" not in str(error.value)
    with pytest.raises(NotSupportedError):
        save_program(Branching(), X, "never.pt2")
    export_onnx(net(), X)
    assert capfd.readouterr() == ("", "")


def test_names_batch_and_opset():
    model = export_onnx(net(), X[:1], input_names=["image"], dynamic_batch=True, opset=20)
    (entry,) = model.graph.input
    assert entry.name == "image"
    assert entry.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert model.opset_import[0].version == 20
    assert run(model, X).shape == (2, 4, 8, 8)
    fixed = export_onnx(net(), X).graph.input[0].type.tensor_type.shape.dim[0]
    assert fixed.dim_value == 2
    with pytest.raises(NotSupportedError, match="opset 18, not in 13"):
        export_onnx(net(), X, opset=13)


def test_tensorrt_accepts_the_axes_of_a_mean():
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)

    class Pooled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.features = net()

        def forward(self, x):
            return self.features(x).mean((2, 3))

    model = export_onnx(Pooled(), X)
    assert operators(model)["BatchNormalization"] == 1
    assert network_summary(model, "tensorrt-rtx")["SCALE"] == 1


def test_several_inputs():
    class Sum(torch.nn.Module):
        def forward(self, a, b):
            return a + 2 * b

    for examples in ((X, X), [X, X], {"b": X, "a": X}):
        model = export_onnx(Sum(), examples, dynamic_batch=True)
        assert {entry.name for entry in model.graph.input} == {"a", "b"}
    with pytest.raises(UsageError, match="first dimensions are equal"):
        export_onnx(Sum(), (X, X[:1]), dynamic_batch=True)
    with pytest.raises(UsageError, match="first dimensions are equal"):
        export_onnx(Sum(), (X, torch.tensor(1.0)), dynamic_batch=True)


def test_export_is_reproducible_and_holds_no_paths():
    first, second = export_onnx(net(), X), export_onnx(net(), X)
    assert first.SerializeToString() == second.SerializeToString()
    assert b"site-packages" not in first.SerializeToString()
    assert all(tensor.raw_data for tensor in first.graph.initializer)


def test_program(tmp_path):
    module = net().train()
    save_program(module, X, tmp_path / "a.pt2")
    assert module.training
    assert sniff(tmp_path / "a.pt2") is ArtifactKind.PT2
    program = torch.export.load(tmp_path / "a.pt2")
    with torch.no_grad():
        assert torch.equal(program.module()(X), net().eval()(X))
    assert operators(export_onnx(program, X))["BatchNormalization"] == 1
    with pytest.raises(UsageError, match="cannot be made dynamic"):
        export_onnx(program, X, dynamic_batch=True)
    save_program(program, X, tmp_path / "b.pt2")
    with pytest.raises(FileAccessError, match="use --force"):
        save_program(program, X, tmp_path / "b.pt2")
    save_program(program, X, tmp_path / "b.pt2", overwrite=True)


def test_tensors(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = {
        "w": base,
        "tied": base,
        "row": base[1],
        "turned": base.t(),
        "parameter": torch.nn.Parameter(base * 2),
        "empty": torch.zeros(0, 3),
        "also_empty": torch.zeros(0),
        "half": base.bfloat16(),
        "count": torch.tensor(3),
    }
    save_tensors(state, {"b": "é", "a": ""}, tmp_path / "a.safetensors")
    loaded = load_state(tmp_path / "a.safetensors")
    assert loaded.metadata == {"a": "", "b": "é"}
    assert loaded.tensors.keys() == state.keys()
    assert all(torch.equal(loaded.tensors[name], state[name]) for name in state)
    first = (tmp_path / "a.safetensors").read_bytes()
    for _ in range(8):  # the library's own order of the metadata changes from call to call
        save_tensors(
            dict(reversed(state.items())), {"a": "", "b": "é"}, tmp_path / "a.safetensors", overwrite=True
        )
        assert (tmp_path / "a.safetensors").read_bytes() == first


def test_tensors_that_have_no_form(tmp_path):
    for tensor in (torch.zeros(2, device="meta"), torch.zeros(2, 2).to_sparse()):
        with pytest.raises(BadInputError, match="'x' is not a plain dense tensor"):
            save_tensors({"x": tensor}, {}, tmp_path / "a")
    assert not (tmp_path / "a").exists()
