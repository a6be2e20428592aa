"""Arguments as forwards take them: by name alone, into a mapping of any names, a dict as the last one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import convbn

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)

    def features(self, x):
        return self.norm(self.conv(x))


class ByName(Block):
    def forward(self, *, pixel_values, scale=1.0):
        return self.features(pixel_values) * scale


class AnyNames(Block):
    def forward(self, pixel_values, **others):
        return self.features(pixel_values) * others.get("scale", 1.0)


class Branching(Block):
    """Neither torch.export nor symbolic tracing takes its forward."""

    def forward(self, x, *, twice=False):
        y = self.features(x)
        return y * 2 if float(y.sum()) > -1e9 and twice else y


class Batch(Block):
    def forward(self, batch):
        return self.features(batch["image"])


class Spectrum(Block):
    def forward(self, x):
        return torch.fft.rfft2(self.features(x))


GIVEN = [
    (ByName, {"pixel_values": X}),
    (ByName, {"pixel_values": X, "scale": 3.0}),
    (AnyNames, {"pixel_values": X, "scale": torch.tensor(0.5)}),
    (Branching, {"x": X, "twice": True}),
    (Batch, ({"image": X},)),
    (Spectrum, X),
]


@pytest.mark.parametrize(("build", "given"), GIVEN)
def test_modules(build, given, randomised):
    report = convbn.fuse(randomised(build()), given).report
    assert (report.batchnorm.after, report.verify["status"]) == (0, "equal")


@pytest.mark.parametrize(("build", "given"), [pair for pair in GIVEN if pair[0] is not Branching])
def test_onnx(build, given, randomised):
    model = convbn.export_onnx(randomised(build()), given)  # verified against the module
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


def test_a_name_that_is_needed(randomised):
    with pytest.raises(convbn.UsageError, match="gives no 'pixel_values'"):
        convbn.fuse(randomised(ByName()), {"scale": 2.0})
