"""The structure of a fold: told from two modules, done again to a third, bit for bit; or refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import jsonschema
import pytest
import torch
from torch import nn

from convbn.errors import BadInputError, NotSupportedError
from convbn.fuse.frontends.torch.checkpoint.layer_settings import settings_of
from convbn.fuse.frontends.torch.checkpoint.rebuild import apply_structure, finish, structure_of

SCHEMA = json.loads((Path(__file__).parents[3] / "fuse" / "fused-checkpoint.schema.json").read_text())


def rebuilt(build, original, folded):
    """What a reader does with the folded tensors, the structure as JSON and the architecture."""
    structure = json.loads(json.dumps(structure_of(original, folded)))
    jsonschema.validate(structure, {**SCHEMA["$defs"]["structure"], "$defs": SCHEMA["$defs"]})
    torch.manual_seed(1)
    fresh = build()
    before = repr(fresh)
    module = apply_structure(fresh, structure)
    assert repr(fresh) == before
    state = {name: tensor.clone() for name, tensor in folded.state_dict().items()}
    module.load_state_dict(state, strict=True, assign=True)
    finish(fresh, module, structure)
    return module, structure


def round_trip(build, randomised, fold, *inputs, capture=True):
    original = randomised(build())
    folded = fold(original, *(inputs if capture else ())).model
    module, structure = rebuilt(build, original, folded)
    assert type(module) is type(folded)
    assert repr(module) == repr(folded)
    assert list(module.state_dict()) == list(folded.state_dict())
    with torch.no_grad():
        assert torch.equal(folded(*inputs), module(*inputs))
    return structure


class Shortcut(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = Activated(3)

    def forward(self, x):
        return self.norm(self.conv(x)) + x


class Frozen(nn.Module):
    """As detectron2's FrozenBatchNorm2d: statistics, scale and shift are buffers."""

    def __init__(self, channels):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x):
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class Activated(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: its activation is its child."""

    def __init__(self, channels, activation=nn.ReLU):
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = nn.PReLU() if activation is nn.PReLU else activation(inplace=True)

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(7))


def test_identity_and_gained_bias(randomised, fold):
    def build():
        return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())

    structure = round_trip(build, randomised, fold, X)
    assert structure["modules"] == [{"path": "1", "becomes": "identity"}]
    assert structure["added"] == [
        {"name": "0.bias", "kind": "parameter", "shape": [4], "dtype": "float32", "requires_grad": True}
    ]
    assert structure["removed"] == []


@pytest.mark.parametrize("activation", [nn.ReLU, nn.PReLU])
def test_activation_stays(activation, randomised, fold):
    def build():
        return nn.Sequential(nn.Conv2d(3, 4, 3), Activated(4, activation))

    structure = round_trip(build, randomised, fold, X)
    assert structure["modules"] == [{"path": "1", "becomes": "children", "children": ["drop", "act"]}]
    assert structure["attributes"] == ({} if activation is nn.PReLU else {"1.act": {"inplace": False}})


def test_the_activation_of_the_given_module_keeps_its_in_place_form(randomised, fold):
    original = randomised(Shortcut())
    structure = structure_of(original, fold(original, X).model)
    fresh = Shortcut()
    apply_structure(fresh, structure)
    assert fresh.norm.act.inplace


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (lambda: nn.Linear(6, 4, bias=False), lambda: nn.BatchNorm1d(4), (5, 6)),
        (lambda: nn.ConvTranspose2d(6, 4, 3, groups=2), lambda: nn.BatchNorm2d(4), (2, 6, 5, 5)),
        (lambda: nn.Conv1d(6, 4, 3, bias=False), lambda: nn.BatchNorm1d(4, affine=False), (2, 6, 9)),
        (lambda: nn.Conv3d(6, 4, 1), lambda: nn.BatchNorm3d(4), (1, 6, 3, 3, 3)),
        (lambda: nn.Conv2d(6, 4, 1), lambda: nn.SyncBatchNorm(4), (1, 6, 3, 3)),
        (lambda: nn.Conv2d(6, 4, 1, bias=False), lambda: Frozen(4), (1, 6, 3, 3)),
    ],
)
def test_layers(layer, norm, shape, randomised, fold):
    round_trip(lambda: nn.Sequential(layer(), norm()), randomised, fold, torch.randn(shape))


def test_tied_weights_stay_one(randomised, fold):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
            self.one, self.two = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(3, 4, 1, bias=False)
            self.two.weight = self.one.weight

        def forward(self, x):
            x = self.norm(self.conv(x))
            return self.one(x) + self.two(x.abs())

    original = randomised(Tied())
    module, structure = rebuilt(Tied, original, fold(original, X).model)
    assert structure["shared"] == [["one.weight", "two.weight"]]
    assert module.one.weight is module.two.weight


def test_a_module_in_two_places(randomised, fold):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3))
            self.again = self.first

        def forward(self, x):
            return self.first(x)

    original = randomised(Twice())
    module, structure = rebuilt(Twice, original, fold(original, X).model)
    assert [entry["path"] for entry in structure["modules"]] == ["first.1", "again.1"]
    assert structure["shared"] == []
    assert module.first is module.again
    assert len(module.state_dict()) == 4


def test_dtype_and_requires_grad(randomised, fold):
    original = randomised(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))).double()
    original[0].weight.requires_grad_(False)
    folded = fold(original, X.double()).model

    def build():
        module = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        module[0].weight.requires_grad_(False)
        return module

    module, _ = rebuilt(build, original, folded)
    assert module[0].weight.dtype == torch.float64
    assert [p.requires_grad for p in module.parameters()] == [p.requires_grad for p in folded.parameters()]


def test_nothing_folded():
    module = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)).eval()
    structure = structure_of(module, copy.deepcopy(module))
    assert structure["modules"] == structure["added"] == structure["removed"] == []


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "resnetv2_50"])
def test_timm(name, randomised, fold, torchvision_names):
    timm = pytest.importorskip("timm")
    x = torch.randn(1, 3, 64, 64)
    round_trip(lambda: timm.create_model(name, num_classes=5), randomised, fold, x, capture=False)


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_torchvision(name, randomised, fold, torchvision_names):
    models = pytest.importorskip("torchvision.models")
    build = getattr(models, name)
    x = torch.randn(1, 3, 64, 64)
    round_trip(lambda: build(weights=None, num_classes=5), randomised, fold, x, capture=False)


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4), nn.ReLU())


@pytest.fixture
def structure(randomised, fold):
    original = randomised(small())
    return structure_of(original, fold(original, X).model)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, bias=False)), "no module '1'"),
        (lambda: nn.Sequential(*small(), nn.Flatten())[1:], "no module"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), *small()[1:]), r"'0' has stride \(1, 1\)"),
        (lambda: nn.Sequential(*small()[:2], nn.SiLU()), "'2' has layer SiLU, the folded one ReLU"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), *small()[1:]), "padding"),
    ],
)
def test_another_architecture(other, message, structure):
    with pytest.raises(BadInputError, match=message):
        apply_structure(other(), structure)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modules": None}, "malformed in 'modules'"),
        ({"modules": [{"path": "", "becomes": "identity"}]}, "malformed in 'modules'"),
        ({"modules": [{"path": "1", "becomes": "os.system"}]}, "malformed in 'modules'"),
        ({"modules": [{"path": "1", "becomes": "children", "children": ["a", "a"]}]}, "malformed"),
        ({"modules": [{"path": "1", "becomes": "children", "children": ["a"]}]}, r"no module '1\.a'"),
        ({"modules": [{"path": "1.2.3", "becomes": "identity"}]}, r"no module '1\.2\.3'"),
        ({"removed": ["0.nothing"]}, "no tensor '0.nothing'"),
        ({"removed": [3]}, "malformed in 'removed'"),
        ({"attributes": {"0": {"forward": 1}}}, "no attribute 'forward'"),
        ({"attributes": {"0": {"__class__": 1}}}, "malformed in 'attributes'"),
        ({"attributes": {"0": {"groups": "x"}}}, "malformed in 'attributes'"),
        ({"attributes": {"0": {"groups": True}}}, "no attribute 'groups' of the kind"),
        ({"attributes": {"0": {"groups": 3}}}, "no attribute 'groups' of the kind"),
        ({"attributes": {"2": {"inplace": True}}}, "no attribute 'inplace' of the kind"),
        ({"modules": [{"path": "2", "becomes": "identity"}]}, "'2' is a ReLU and no BatchNorm"),
        ({"modules": [{"path": "0", "becomes": "identity"}]}, "'0' is a Conv2d and no BatchNorm"),
        ({"training": ["9"]}, "no module '9'"),
        ({"training": 3}, "malformed in 'training'"),
        ({"settings": {"0": 1}}, "malformed in 'settings'"),
        ({"settings": {"9": {"stride": "(1, 1)"}}}, "no module '9'"),
        ({"shared": [["0.weight"]]}, "malformed in 'shared'"),
    ],
)
def test_malformed(change, message, structure):
    with pytest.raises(BadInputError, match=message):
        finish(small(), apply_structure(small(), {**structure, **change}), {**structure, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [-1]},
        {"shape": [1 << 60]},
        {"shape": [1 << 39] * 4},
        {"shape": [1.5]},
        {"shape": [1] * 9},
        {"dtype": "float"},
        {"dtype": "int64"},
        {"kind": "module"},
        {"requires_grad": 1},
        {"name": "0."},
    ],
)
def test_malformed_tensor(change, structure):
    with pytest.raises(BadInputError, match="malformed in 'added'"):
        apply_structure(small(), {**structure, "added": [{**structure["added"][0], **change}]})


def test_a_tensor_taken_away_and_a_buffer_given(structure):
    added = [{**structure["added"][0], "name": "0.table", "kind": "buffer", "requires_grad": False}]
    module = apply_structure(small(), {**structure, "removed": ["0.weight"], "added": added})
    assert module[0].weight is None
    assert list(module[0]._buffers) == ["table"]


def test_a_list_is_the_same_setting_as_a_tuple():
    assert settings_of(nn.Upsample(size=[4, 4])) == settings_of(nn.Upsample(size=(4, 4)))
    assert settings_of(nn.Upsample(size=[4, 4])) != settings_of(nn.Upsample(size=[4, 5]))


def test_a_huge_tensor_is_not_allocated(structure):
    added = [{**structure["added"][0], "shape": [1 << 39, 1 << 20]}]
    module = apply_structure(small(), {**structure, "added": added})
    assert module[0].bias.is_meta


@pytest.mark.parametrize("version", ["2", None, 1])
def test_other_version(version, structure):
    with pytest.raises(NotSupportedError, match="version"):
        apply_structure(small(), {**structure, "schema_version": version})


@pytest.mark.parametrize("value", [None, [], "x", 3])
def test_no_structure(value):
    with pytest.raises(BadInputError, match="malformed in 'structure'"):
        apply_structure(small(), value)


def test_tensors_that_are_not_one_are_not_tied(structure):
    module = apply_structure(small(), structure)
    with pytest.raises(BadInputError, match="differs"):
        finish(small(), module, {**structure, "shared": [["0.weight", "0.bias"]]})
    with pytest.raises(BadInputError, match="no tensor"):
        finish(small(), module, {**structure, "shared": [["0.weight", "2.weight"]]})


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module._modules.update({"1": nn.Conv2d(4, 4, 1)}),
        lambda module: module.add_module("new", nn.ReLU()),
        lambda module: module._modules.pop("2"),
        lambda module: module._modules.update({"1": nn.Sequential(nn.ReLU())}),
        lambda module: module[0].register_forward_pre_hook(lambda *_: None),
    ],
)
def test_what_cannot_be_described_is_refused(change):
    folded = small()
    change(folded)
    with pytest.raises(NotSupportedError, match="cannot be described"):
        structure_of(small(), folded)


def test_what_a_state_dict_does_not_hold_is_refused():
    original = small()
    original[0].register_buffer("table", torch.ones(3), persistent=False)
    folded = copy.deepcopy(original)
    structure_of(original, folded)
    folded[0].table[0] = 2
    with pytest.raises(NotSupportedError, match=r"'0\.table' was folded into"):
        structure_of(original, folded)
