"""Folded checkpoints through the Python API: written, loaded again bit for bit, or refused in a sentence."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.headers import edit_header
from support.networks import randomised, torchvision_models
from torch import nn

import convbn
from convbn.errors import BadInputError, ConvBNError, FileAccessError, NotSupportedError, UsageError

ROOT = Path(__file__).parents[2]
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def net(width: int = 8, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.BatchNorm2d(width),
        nn.Sigmoid(),
    )


def fold(module: nn.Module) -> convbn.FuseResult:
    return convbn.fuse(module, options=convbn.FuseOptions(verify=False))


def saved(path: Path, build: Any = net) -> nn.Module:
    torch.manual_seed(0)
    original = randomised(build())
    result = fold(original)
    convbn.save_fused(original, result, path, arch="the:net")
    folded: nn.Module = result.model
    return folded


def assert_same(folded: nn.Module, loaded: nn.Module) -> None:
    assert type(loaded) is type(folded)
    assert repr(loaded) == repr(folded)
    assert not loaded.training
    ours, theirs = folded.state_dict(), loaded.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    with torch.no_grad():
        assert torch.equal(folded(X), loaded(X))


def test_a_callable_a_module_and_a_class(tmp_path: Path) -> None:
    folded = saved(tmp_path / "a.safetensors")
    assert_same(folded, convbn.load_fused(tmp_path / "a.safetensors", net))
    given = net()
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    assert_same(folded, convbn.load_fused(tmp_path / "a.safetensors", given))
    assert repr(given) == repr(net())
    assert all(torch.equal(tensor, given.state_dict()[name]) for name, tensor in before.items())
    with torch.device("meta"):
        bare = net()
    assert_same(folded, convbn.load_fused(tmp_path / "a.safetensors", bare))


def test_names_and_arguments(tmp_path: Path) -> None:
    folded = saved(tmp_path / "a.safetensors", lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    layers = [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)]
    assert_same(folded, convbn.load_fused(tmp_path / "a.safetensors", nn.Sequential(*layers)))
    wide = saved(tmp_path / "b.safetensors", lambda: net(width=5))
    assert_same(wide, convbn.load_fused(tmp_path / "b.safetensors", net, width=5))
    with pytest.raises(UsageError, match="takes no arguments"):
        convbn.load_fused(tmp_path / "b.safetensors", net(), width=5)


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("timm", "test_resnet"),
        ("timm", "test_efficientnet"),
        ("timm", "mobilenetv3_small_050"),
        ("timm", "resnetv2_50"),
        ("torchvision", "resnet18"),
        ("torchvision", "mobilenet_v2"),
        ("torchvision", "densenet121"),
    ],
)
def test_networks_by_name(library: str, name: str, tmp_path: Path) -> None:
    models = torchvision_models()
    if library == "timm":
        timm = pytest.importorskip("timm")

    def build() -> nn.Module:
        if library == "timm":
            return timm.create_model(name, num_classes=7)  # type: ignore[no-any-return]  # timm is untyped
        return models.get_model(name, weights=None, num_classes=7)  # type: ignore[no-any-return]

    folded = saved(tmp_path / "a.safetensors", build)
    loaded = convbn.load_fused(tmp_path / "a.safetensors", f"{library}:{name}", num_classes=7)
    assert_same(folded, loaded)


def test_half_precision_stays(tmp_path: Path) -> None:
    original = randomised(net()).half()
    result = fold(original)
    convbn.save_fused(original, result, tmp_path / "a.safetensors")
    loaded = convbn.load_fused(tmp_path / "a.safetensors", net)
    assert {p.dtype for p in loaded.parameters()} == {torch.float16}
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), result.model.parameters(), strict=True))


def test_the_same_fold_gives_the_same_bytes(tmp_path: Path) -> None:
    saved(tmp_path / "a.safetensors")
    saved(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_description(tmp_path: Path) -> None:
    saved(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        text = file.metadata()["convbn"]
    schema = json.loads((ROOT / "fuse" / "fused-checkpoint.schema.json").read_text())
    jsonschema.validate(json.loads(text), schema)
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (
            lambda: net(stride=2),
            r"'0' has stride \(2, 2\), the folded one \(1, 1\); it was folded from the:net",
        ),
        (lambda: net(width=4), r"of another shape: 0\.weight \(8x3x3x3 for 4x3x3x3\)"),
        (lambda: net()[:1], "no module '1'"),
        (lambda: nn.Sequential(*net(), nn.Linear(3, 3)), r"2 missing: 5\.weight, 5\.bias"),
        (lambda: nn.Sequential(*net()[:4], nn.Tanh()), "'4' has layer Tanh, the folded one Sigmoid"),
    ],
)
def test_another_architecture(arch: Any, message: str, tmp_path: Path) -> None:
    saved(tmp_path / "a.safetensors")
    with pytest.raises(BadInputError, match=message) as error:
        convbn.load_fused(tmp_path / "a.safetensors", arch)
    assert "a.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_unexpected_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    saved(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    save_file({k: v for k, v in tensors.items() if k != "0.bias"}, tmp_path / "less.safetensors", metadata)
    with pytest.raises(BadInputError, match=r"1 missing: 0\.bias"):
        convbn.load_fused(tmp_path / "less.safetensors", net)
    save_file({**tensors, "more": torch.zeros(1)}, tmp_path / "more.safetensors", metadata)
    with pytest.raises(BadInputError, match="1 unexpected: more"):
        convbn.load_fused(tmp_path / "more.safetensors", net)


def test_other_files(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "a.pth")
    with pytest.raises(
        BadInputError, match=r"is a PyTorch state dict, not a folded checkpoint; write one with"
    ):
        convbn.load_fused(tmp_path / "a.pth", net)
    save_file(net().state_dict(), tmp_path / "b.safetensors")
    with pytest.raises(BadInputError, match="no folded checkpoint of convbn, only weights"):
        convbn.load_fused(tmp_path / "b.safetensors", net)
    with pytest.raises(FileAccessError, match="does not exist"):
        convbn.load_fused(tmp_path / "c.safetensors", net)


@pytest.mark.parametrize("arch", [3, None, "resnet18", lambda: 3])
def test_what_is_no_architecture(arch: Any, tmp_path: Path) -> None:
    saved(tmp_path / "a.safetensors")
    with pytest.raises(UsageError):
        convbn.load_fused(tmp_path / "a.safetensors", arch)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: {**d, "schema_version": "2"}, NotSupportedError, "version '2', this convbn reads '1'"),
        (lambda d: {"schema_version": "1"}, NotSupportedError, "version"),
        (lambda d: "{", BadInputError, "no JSON"),
        (lambda d: "[" * 100_000, BadInputError, "no JSON"),
        (lambda d: [d], BadInputError, "malformed"),
        (lambda d: {**d, "structure": None}, BadInputError, "malformed in 'structure'"),
        (
            lambda d: {**d, "structure": {**d["structure"], "schema_version": "9"}},
            NotSupportedError,
            "version '9'",
        ),
    ],
)
def test_a_description_that_is_none(change: Any, error: Any, message: str, tmp_path: Path) -> None:
    saved(tmp_path / "a.safetensors")
    edit_header(tmp_path / "a.safetensors", change)
    with pytest.raises(error, match=message) as caught:
        convbn.load_fused(tmp_path / "a.safetensors", net)
    assert "\n" not in str(caught.value)


def test_the_name_in_the_file_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil_arch.py").write_text("open('ran', 'w')\n")
    saved(tmp_path / "a.safetensors")
    edit_header(tmp_path / "a.safetensors", lambda d: {**d, "arch": "evil_arch:net"})
    convbn.load_fused("a.safetensors", net)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_cut_short(share: float, tmp_path: Path) -> None:
    saved(tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ConvBNError):
        convbn.load_fused(tmp_path / "a.safetensors", net)


def test_a_buffer_that_no_file_holds_needs_a_device(tmp_path: Path) -> None:
    def build() -> nn.Module:
        module = net()
        module.register_buffer("table", torch.ones(2), persistent=False)
        return module

    folded = saved(tmp_path / "a.safetensors", build)
    assert_same(folded, convbn.load_fused(tmp_path / "a.safetensors", build))
    with torch.device("meta"):
        bare = build()
    with pytest.raises(BadInputError, match="'table' is in no state dict"):
        convbn.load_fused(tmp_path / "a.safetensors", bare)


def test_a_fold_in_place_needs_another_original(tmp_path: Path) -> None:
    result = fold(randomised(net()))
    with pytest.raises(UsageError, match="folded in place"):
        convbn.save_fused(result.model, result, tmp_path / "a.safetensors")
    convbn.save_fused(net(), result, tmp_path / "a.safetensors")
    assert_same(result.model, convbn.load_fused(tmp_path / "a.safetensors", net))


def test_only_modules_are_saved(tmp_path: Path) -> None:
    program = torch.export.export(randomised(net()), (X,), strict=False)
    result = convbn.fuse(program, options=convbn.FuseOptions(verify=False))
    with pytest.raises(UsageError, match="is no module"):
        convbn.save_fused(program, result, tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_a_state_that_safetensors_cannot_hold(tmp_path: Path) -> None:
    class WithExtra(nn.Sequential):
        def get_extra_state(self) -> Any:
            return {"step": 3}

        def set_extra_state(self, state: Any) -> None:
            pass

    original = WithExtra(*randomised(net()))
    with pytest.raises(BadInputError, match=r"'_extra_state' in the state dict is no tensor.*\.pt2"):
        convbn.save_fused(original, fold(original), tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_a_checkpoint_through_the_api(tmp_path: Path) -> None:
    torch.save({"model": randomised(net()).state_dict()}, tmp_path / "a.pth")
    result = convbn.fuse(tmp_path / "a.pth", X, arch=net)
    assert result.report.verify["status"] == "equal"
    assert result.report.notes[0].startswith("Took the weights under 'model'")
    assert convbn.inspect(tmp_path / "a.pth", arch=net).batchnorm == result.report.batchnorm
    with pytest.raises(UsageError, match="name it with arch"):
        convbn.fuse(tmp_path / "a.pth", X)
    with pytest.raises(UsageError, match="for files"):
        convbn.fuse(net(), arch=net)


def test_trust_through_the_api(tmp_path: Path) -> None:
    torch.save(randomised(net()), tmp_path / "a.pth")
    with pytest.raises(BadInputError, match=r"would run code.*trust=True"):
        convbn.fuse(tmp_path / "a.pth", X)
    assert convbn.fuse(tmp_path / "a.pth", X, trust=True).report.verify["status"] == "equal"
    torch.export.save(torch.export.export(randomised(net()), (X,), strict=False), tmp_path / "a.pt2")
    with pytest.raises(BadInputError, match=r"trust=True"):
        convbn.fuse(tmp_path / "a.pt2")
    assert convbn.fuse(tmp_path / "a.pt2", X, trust=True).report.verify["status"] == "equal"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(randomised(net())).save(tmp_path / "a.pt")
    with pytest.raises(NotSupportedError, match="code cannot be edited; name the architecture"):
        convbn.fuse(tmp_path / "a.pt", X, trust=True)
    assert convbn.fuse(tmp_path / "a.pt", X, trust=True, arch=net).report.verify["status"] == "equal"


@pytest.mark.parametrize("strict", [True, False])
def test_the_original_does_not_take_a_folded_file(strict: bool, tmp_path: Path) -> None:
    saved(tmp_path / "a.safetensors")
    original = net()
    with pytest.raises(RuntimeError, match=r"size mismatch for 1\.weight"):
        original.load_state_dict(load_file(tmp_path / "a.safetensors"), strict=strict)
    with pytest.raises(RuntimeError, match=r"load it with its load_fused"):
        original.load_state_dict(load_file(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("names", [None, [3], ["0.weight"], ["no such tensor"]])
def test_placeholders_that_are_none(names: Any, tmp_path: Path) -> None:
    saved(tmp_path / "a.safetensors")
    edit_header(tmp_path / "a.safetensors", lambda d: {**d, "placeholders": names})
    with pytest.raises(BadInputError, match="malformed in 'placeholders'"):
        convbn.load_fused(tmp_path / "a.safetensors", net)


def test_wrappers_are_looked_through(tmp_path: Path) -> None:
    folded = saved(tmp_path / "a.safetensors")
    assert_same(folded, convbn.load_fused(tmp_path / "a.safetensors", lambda: nn.DataParallel(net())))
    assert_same(folded, convbn.load_fused(tmp_path / "a.safetensors", torch.compile(net())))
    torch.manual_seed(0)
    parallel = nn.DataParallel(randomised(net()))
    convbn.save_fused(parallel, fold(parallel), tmp_path / "b.safetensors")
    assert_same(folded, convbn.load_fused(tmp_path / "b.safetensors", lambda: net().train()))


def test_a_batchnorm_that_trains_goes_on_training(tmp_path: Path) -> None:
    original = randomised(net())
    original[3].train()
    result = fold(original)
    convbn.save_fused(original, result, tmp_path / "a.safetensors")
    loaded = convbn.load_fused(tmp_path / "a.safetensors", net)
    assert [part.training for part in loaded.modules()] == [part.training for part in result.model.modules()]
    with torch.no_grad():
        assert torch.equal(loaded(X), result.model(X))


def test_sizes_are_checked_before_anything_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "a.safetensors")

    def added(document: Any) -> Any:
        (bias,) = document["structure"]["added"]
        return {**document, "structure": {**document["structure"], "added": [{**bias, "shape": [1 << 39]}]}}

    edit_header(tmp_path / "a.safetensors", added)
    copied = []
    monkeypatch.setattr("convbn.export.checkpoints.load._on_its_device", lambda *given: copied.append(given))
    with pytest.raises(BadInputError, match=r"of another shape: 0\.bias \(8 for 549755813888\)"):
        convbn.load_fused(tmp_path / "a.safetensors", net)
    assert not copied
