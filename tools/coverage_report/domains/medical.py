"""Medical volumes: segmentation in three dimensions with skips, transposed convolutions and gates."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["NETWORKS"]


def twice(inputs: int, outputs: int) -> nn.Sequential:
    """Convolution, BatchNorm and ReLU, twice."""
    parts: list[nn.Module] = []
    for width in (inputs, outputs):
        parts += [nn.Conv3d(width, outputs, 3, padding=1), nn.BatchNorm3d(outputs), nn.ReLU()]
    return nn.Sequential(*parts)


class Unet(nn.Module):
    """Çiçek et al. 2016; with ``gated`` the skips are weighted as by Oktay et al. 2018."""

    def __init__(self, *, gated: bool = False) -> None:
        super().__init__()
        self.down, self.middle = twice(1, 8), twice(8, 16)
        self.up = nn.Sequential(nn.ConvTranspose3d(16, 8, 2, 2), nn.BatchNorm3d(8), nn.ReLU())
        self.behind, self.last = twice(16, 8), nn.Conv3d(8, 2, 1)
        self.gates = None
        if gated:
            ways = [nn.Sequential(nn.Conv3d(8, 4, 1), nn.BatchNorm3d(4)) for _ in range(2)]
            self.gates = nn.ModuleList(
                [*ways, nn.Sequential(nn.Conv3d(4, 1, 1), nn.BatchNorm3d(1), nn.Sigmoid())]
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.down(x)
        y = self.up(self.middle(functional.max_pool3d(skip, 2)))
        if self.gates is not None:
            skip = skip * self.gates[2](functional.relu(self.gates[0](y) + self.gates[1](skip)))
        return self.last(self.behind(torch.cat([skip, y], 1)))


class Vnet(nn.Module):
    """Milletari et al. 2016: PReLU, strided convolutions, and the input added behind each stage."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv3d(1, 8, 5, padding=2), nn.BatchNorm3d(8))
        self.down = nn.Sequential(nn.Conv3d(8, 16, 2, 2), nn.BatchNorm3d(16), nn.PReLU(16))
        self.body = nn.Sequential(nn.Conv3d(16, 16, 5, padding=2), nn.BatchNorm3d(16), nn.PReLU(16))
        self.up = nn.Sequential(nn.ConvTranspose3d(16, 8, 2, 2), nn.BatchNorm3d(8), nn.PReLU(8))
        self.bend, self.last = nn.PReLU(8), nn.Conv3d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.bend(self.first(x) + x.repeat(1, 8, 1, 1, 1))
        y = self.down(skip)
        y = self.up(y + self.body(y))
        return self.last(torch.cat([y, skip], 1))


NETWORKS = {
    "unet_3d": Unet,
    "attention_unet_3d": lambda: Unet(gated=True),
    "vnet": Vnet,
}
