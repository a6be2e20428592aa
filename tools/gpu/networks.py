"""The networks that are measured on a GPU, in order of worth, and two tiny ones to rehearse with."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from coverage_report.architectures import Architecture
from coverage_report.trained import as_trained
from torch import nn

if TYPE_CHECKING:
    from convbn.export.loading.source_model import SourceModel

__all__ = ["NETWORKS", "REPARAMETERISABLE", "TINY", "subject"]

SEED = 0


def decoder(widths: tuple[int, ...] = (256, 256, 128, 64, 32), patch: int = 16) -> nn.Module:
    """ConvTranspose, BatchNorm and ReLU in turn, as generators have them: onnxruntime leaves these BatchNorms."""
    stem = (nn.Conv2d(3, widths[0], 4, patch), nn.BatchNorm2d(widths[0]), nn.ReLU())
    ups = (
        part
        for i, o in pairwise(widths)
        for part in (nn.ConvTranspose2d(i, o, 4, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
    )
    return nn.Sequential(*stem, *ups, nn.Conv2d(widths[-1], 3, 1)).eval()


class Residual(nn.Module):
    """A block with a shortcut between two convolutions."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.conv1 = nn.Conv2d(width, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + x).mean((2, 3))


def _torchvision(name: str, **arguments: object) -> Callable[[], nn.Module]:
    return Architecture(name, name, 224, "torchvision", name, arguments).build


def _timm(name: str) -> Callable[[], nn.Module]:
    return Architecture(name, name, 224).build


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": _torchvision("resnet50"),
    "mobilenet_v2": _torchvision("mobilenet_v2"),
    "vgg16_bn": _torchvision("vgg16_bn"),
    "repvgg_a0": _timm("repvgg_a0"),
    "efficientnet_b0": _torchvision("efficientnet_b0"),
    "decoder": decoder,
    "resnet18": _torchvision("resnet18"),
    "densenet121": _torchvision("densenet121"),
    "regnet_y_400mf": _torchvision("regnet_y_400mf"),
    "mobileone_s0": _timm("mobileone_s0"),
    "resnetv2_50": _timm("resnetv2_50"),
    "hrnet_w18_small": _timm("hrnet_w18_small"),
    "lraspp": _torchvision("lraspp_mobilenet_v3_large", weights_backbone=None),
    "shufflenet_v2": _torchvision("shufflenet_v2_x1_0"),
    "inception_next_atto": _timm("inception_next_atto"),
}
TINY: dict[str, Callable[[], nn.Module]] = {
    "tiny_residual": lambda: Residual().eval(),
    "tiny_decoder": partial(decoder, (8, 8, 4), 8),
}
#: Those that timm merges by itself.
REPARAMETERISABLE = frozenset({"repvgg_a0", "mobileone_s0"})


@cache
def subject(name: str) -> SourceModel:
    """A network with random weights and statistics as if trained, and one picture for it.

    Args:
        name: in :data:`NETWORKS` or :data:`TINY`.
    """
    from convbn.export.loading.source_model import SourceModel

    torch.manual_seed(SEED)
    size = 32 if name in TINY else 224
    example = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(SEED))
    return SourceModel(as_trained((NETWORKS | TINY)[name](), example, SEED), (example,))
