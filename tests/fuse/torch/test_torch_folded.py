"""What a folded module tells others: that it was folded, and a ``fuse()`` of its own that nothing is left to do."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import convbn
from convbn.errors import UsageError

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(3))


class Block(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(cin, cout, 3, bias=False), nn.BatchNorm2d(cout), nn.SiLU()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))

    def forward_fused(self, x):
        return self.act(self.conv(x))


class Detector(nn.Module):
    """Its fuse() minds a bias that the convolution has already."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(Block(3, 8), Block(8, 8), nn.Conv2d(8, 4, 1))

    def forward(self, x):
        return self.model(x)

    @torch.no_grad()
    def fuse(self):
        for part in self.modules():
            if isinstance(part, Block) and hasattr(part, "bn"):
                conv, bn = part.conv, part.bn
                scale = bn.weight / torch.sqrt(bn.eps + bn.running_var)
                bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias
                conv.weight.mul_(scale.view(-1, 1, 1, 1))
                conv.bias = nn.Parameter((bias - bn.running_mean) * scale + bn.bias)
                del part.bn
                part.forward = part.forward_fused
        return self


class Helped(Detector):
    """Its fuse() hands both layers to a function that it calls."""

    @torch.no_grad()
    def fuse(self):
        for part in self.modules():
            if isinstance(part, Block):
                part.conv = nn.utils.fusion.fuse_conv_bn_eval(part.conv, part.bn)
                del part.bn
                part.forward = part.forward_fused
        return self


class Branches(nn.Module):
    """As RepVGG: its code takes convolutions before a BatchNorm to have no bias."""

    def __init__(self):
        super().__init__()
        self.dense, self.point = self._branch(3, 1), self._branch(1, 0)

    @staticmethod
    def _branch(kernel, padding):
        branch = nn.Sequential()
        branch.add_module("conv", nn.Conv2d(3, 5, kernel, padding=padding, bias=False))
        branch.add_module("bn", nn.BatchNorm2d(5))
        return branch

    def forward(self, x):
        return self.deployed(x) if hasattr(self, "deployed") else self.dense(x) + self.point(x)

    def _kernel_and_bias(self, branch):
        t = branch.bn.weight / (branch.bn.running_var + branch.bn.eps).sqrt()
        return branch.conv.weight * t.view(-1, 1, 1, 1), branch.bn.bias - branch.bn.running_mean * t

    @torch.no_grad()
    def fuse(self):
        (dense, one), (point, two) = self._kernel_and_bias(self.dense), self._kernel_and_bias(self.point)
        self.deployed = nn.Conv2d(3, 5, 3, padding=1)
        self.deployed.weight.copy_(dense + nn.functional.pad(point, (1, 1, 1, 1)))
        self.deployed.bias.copy_(one + two)
        del self.dense, self.point
        return self


@pytest.mark.parametrize("build", [Detector, Helped, Branches])
def test_a_fuse_of_its_own_does_no_harm(build, randomised, tmp_path):
    original = randomised(build())
    result = convbn.fuse(original, X)
    convbn.save_fused(original, result, tmp_path / "a.safetensors")
    loaded = convbn.load_fused(tmp_path / "a.safetensors", build)
    state = list(result.model.state_dict())
    for folded in (result.model, copy.deepcopy(result.model).double().float(), loaded):
        assert list(folded.state_dict()) == state
        assert convbn.inspect(folded).batchnorm.before == 0
        with torch.no_grad():
            wanted = original(X)
            assert (folded.fuse()(X) - wanted).abs().max() < 1e-5


def test_only_code_that_reads_statistics_is_given_any(randomised):
    class Plain(Detector):
        fuse = None

    assert list(convbn.fuse(randomised(Plain()), X).model.buffers()) == []
    assert len(list(convbn.fuse(randomised(Detector()), X).model.buffers())) == 8


def test_is_folded(randomised, tmp_path):
    module = randomised(Detector())
    assert not convbn.is_folded(module)
    result = convbn.fuse(module, X)
    assert not convbn.is_folded(module)
    assert convbn.is_folded(result.model)
    assert convbn.is_folded(nn.DataParallel(copy.deepcopy(result.model)))
    assert convbn.is_folded(pickle.loads(pickle.dumps(result.model)))  # noqa: S301 - of this very test
    assert convbn.is_folded(convbn.fuse(module, X, keep_identities=False).model)
    convbn.save_fused(module, result, tmp_path / "a.safetensors")
    assert convbn.is_folded(convbn.load_fused(tmp_path / "a.safetensors", Detector))
    assert not convbn.is_folded(convbn.fuse(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)).eval(), X).model)
    assert convbn.is_folded(convbn.fuse(module, X, inplace=True).model)
    with pytest.raises(UsageError, match="is no module"):
        convbn.is_folded("model.onnx")
