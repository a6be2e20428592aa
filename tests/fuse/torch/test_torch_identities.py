"""Identities taken out: the same numbers and parameters, without the calls."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.networks import randomised, torchvision_models
from torch import nn

import convbn
from convbn.fuse.frontends.torch.edit.identities import new_identities


def network(name: str) -> nn.Module:
    try:
        models = torchvision_models()
    except ModuleNotFoundError:
        pytest.skip("torchvision is not installed")
    torch.manual_seed(0)
    return randomised(models.get_model(name, weights=None))


@pytest.mark.parametrize(
    ("name", "batchnorms"),
    [("resnet18", 20), ("mobilenet_v2", 52), ("vgg11_bn", 8), ("shufflenet_v2_x0_5", 56)],
)
def test_every_call_of_a_network_goes(name: str, batchnorms: int) -> None:
    module, x = network(name), torch.randn(1, 3, 64, 64)
    kept = convbn.fuse(module, x).model
    out = convbn.fuse(module, x, keep_identities=False).model
    assert len(new_identities(module, kept)) == batchnorms
    assert new_identities(module, out) == []
    with torch.no_grad():
        assert torch.equal(kept(x), out(x))
        assert torch.equal(kept(x), copy.deepcopy(out)(x))
        assert torch.equal(kept(x), torch.fx.symbolic_trace(out)(x))
        assert torch.equal(kept(x), torch.export.export(out, (x,)).module()(x))
    assert list(kept.state_dict()) == list(out.state_dict())
    assert type(out) is type(module)


def test_a_fold_in_place_is_rid_of_them_as_well() -> None:
    module, x = network("resnet18"), torch.randn(1, 3, 64, 64)
    expected, weight = convbn.fuse(module, x).model(x), module.conv1.weight
    out = convbn.fuse(module, x, inplace=True, keep_identities=False).model
    assert out is module
    assert out.conv1.weight is weight
    assert torch.equal(out(x), expected)
    assert not any(isinstance(part, nn.Identity | nn.BatchNorm2d) for part in out.modules())


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


class Asks(Plain):
    """Uses the attribute in a second way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return x if self.norm is None else self.norm(x)


class Names(Plain):
    """Finds it by a name that it puts together."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, "no" + "rm")(self.conv(x))


class Walks(Plain):
    """Finds it without its name."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for child in self.children():
            x = child(x)
        return x


class Within(nn.Sequential):
    """A Sequential with a forward of its own, which counts its children."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self[1](self[0](x))


@pytest.mark.parametrize("kind", [Plain, Asks, Names, Walks])
def test_only_what_is_only_called_goes(kind: type[Plain]) -> None:
    module, x = randomised(kind()), torch.randn(2, 3, 8, 8)
    out = convbn.fuse(module, x, keep_identities=False).model
    assert new_identities(module, out) == ([] if kind is Plain else ["norm"])
    assert torch.allclose(out(x), module(x), atol=1e-5)


def test_a_sequential_with_a_forward_of_its_own_keeps_them() -> None:
    module, x = randomised(Within(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), torch.randn(2, 3, 8, 8)
    out = convbn.fuse(module, x, keep_identities=False).model
    assert new_identities(module, out) == ["1"]
    assert torch.allclose(out(x), module(x), atol=1e-5)


def test_the_users_own_identities_stay() -> None:
    module = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Identity()))
    out = convbn.fuse(module, torch.randn(2, 3, 8, 8), keep_identities=False).model
    assert list(out._modules) == ["0", "2"]


def test_a_pickled_model_needs_no_convbn(tmp_path: Path) -> None:
    module, x = network("resnet18"), torch.randn(1, 3, 64, 64)
    out = convbn.fuse(module, x, keep_identities=False).model
    (tmp_path / "m.pickle").write_bytes(pickle.dumps(out.layer1[0].bn1))
    code = (
        "import pickle, sys; sys.modules['convbn'] = None\n"
        "assert pickle.load(open(sys.argv[1], 'rb'))(7) == 7"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "m.pickle"], check=True)
