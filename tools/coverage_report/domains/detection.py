"""Detection: stages that part and join, heads that several levels share, and boxes from a grid."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["NETWORKS"]


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, SiLU."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs, eps=1e-3), nn.SiLU())


class Parted(nn.Module):
    """The C2f stage of YOLOv8: two halves, of which one goes on and is kept at every step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = conv(width, width), conv(2 * width, width)
        half = width // 2
        self.steps = nn.ModuleList(nn.Sequential(conv(half, half, 3), conv(half, half, 3)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = list(self.first(x).chunk(2, 1))
        for step in self.steps:
            kept.append(kept[-1] + step(kept[-1]))
        return self.last(torch.cat(kept, 1))


class Yolo(nn.Module):
    """Stages, pools of one size in a row, an upsampled level, and a head of boxes and classes a level."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.low = conv(3, 16, 3, 2), nn.Sequential(conv(16, 32, 3, 2), Parted(32))
        self.high, self.pooled = nn.Sequential(conv(32, 32, 3, 2), Parted(32)), conv(128, 32)
        self.join = nn.Sequential(conv(64, 32), Parted(32))
        self.heads = nn.ModuleList(nn.Sequential(conv(32, 16, 3), nn.Conv2d(16, 9, 1)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = self.low(self.stem(x))
        pools = [self.high(low)]
        for _ in range(3):
            pools.append(functional.max_pool2d(pools[-1], 5, 1, 2))
        high = self.pooled(torch.cat(pools, 1))
        low = self.join(torch.cat([functional.interpolate(high, scale_factor=2.0), low], 1))
        found = torch.cat([head(y).flatten(2) for head, y in zip(self.heads, (low, high), strict=True)], 2)
        return torch.cat([torch.sigmoid(found[:, :2]), found[:, 2:4].exp(), torch.sigmoid(found[:, 4:])], 1)


class Shared(nn.Module):
    """EfficientDet's head (Tan et al. 2020): the convolutions of all levels are one, their BatchNorms are not."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(conv(a, 16, 3, 2) for a in (3, 16, 16))
        self.depthwise = nn.ModuleList(
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False) for _ in range(2)
        )
        self.pointwise = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(2))
        self.norms = nn.ModuleList(nn.ModuleList(nn.BatchNorm2d(16) for _ in range(2)) for _ in range(3))
        self.last = nn.Conv2d(16, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = []
        for level, norms in zip(self.levels, self.norms, strict=True):
            x = y = level(x)
            for deep, point, norm in zip(self.depthwise, self.pointwise, norms, strict=True):
                y = functional.silu(norm(point(deep(y))))
            found.append(self.last(y).flatten(2))
        return torch.cat(found, 2)


class Centres(nn.Module):
    """CenterNet (Zhou et al. 2019): transposed convolutions with BatchNorm up to heat maps."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for a, b in ((3, 16), (16, 32), (32, 32)):
            parts += [nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        for _ in range(2):
            parts += [nn.ConvTranspose2d(32, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
        self.body = nn.Sequential(*parts)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, n, 1)) for n in (4, 2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return torch.cat([torch.sigmoid(self.heads[0](y)), self.heads[1](y)], 1)


NETWORKS = {
    "yolo": Yolo,
    "shared_head": Shared,
    "centernet": Centres,
}
