"""Video: time is the first of three spatial axes, or part of the batch."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["NETWORKS"]


class Factorised(nn.Module):
    """R(2+1)D (Tran et al. 2018): a convolution in space, then one in time."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(inputs, 24, (1, 3, 3), padding=(0, 1, 1), bias=False),
            nn.BatchNorm3d(24),
            nn.ReLU(),
            nn.Conv3d(24, outputs, (3, 1, 1), padding=(1, 0, 0), bias=False),
            nn.BatchNorm3d(outputs),
        )
        self.beside = nn.Conv3d(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.body(x) + self.beside(x))


class Inverted(nn.Module):
    """X3D (Feichtenhofer 2020): expansion, depthwise convolution of space and time, gate, SiLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 2 * width
        self.expand, self.first = nn.Conv3d(width, inner, 1, bias=False), nn.BatchNorm3d(inner)
        self.depthwise = nn.Conv3d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.second = nn.BatchNorm3d(inner)
        self.squeeze, self.excite = nn.Conv3d(inner, 8, 1), nn.Conv3d(8, inner, 1)
        self.reduce, self.third = nn.Conv3d(inner, width, 1, bias=False), nn.BatchNorm3d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.depthwise(functional.relu(self.first(self.expand(x)))))
        gate = torch.sigmoid(self.excite(functional.relu(self.squeeze(y.mean((2, 3, 4), keepdim=True)))))
        return functional.relu(x + self.third(self.reduce(functional.silu(y * gate))))


class Shifted(nn.Module):
    """TSM (Lin et al. 2019): some channels move one frame on, some one back, before a residual block in 2-D."""

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        clip = x.reshape(-1, self.frames, *x.shape[1:])
        fold = x.shape[1] // 8
        still = torch.zeros_like(clip[:, :1, :fold])
        back = torch.cat([clip[:, 1:, :fold], still], 1)
        onward = torch.cat([still, clip[:, :-1, fold : 2 * fold]], 1)
        moved = torch.cat([back, onward, clip[:, :, 2 * fold :]], 2).reshape(x.shape)
        return functional.relu(x + self.body(moved))


class Shift(nn.Module):
    """Frames as a batch, and their mean at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(Shifted(16, 4), Shifted(16, 4))
        self.last = nn.Linear(16, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.blocks(self.stem(x[0])).mean((2, 3))).mean(0, keepdim=True)


NETWORKS = {
    "r2plus1d": lambda: nn.Sequential(Factorised(3, 16), Factorised(16, 16)),
    "x3d": lambda: nn.Sequential(
        nn.Conv3d(3, 16, 3, padding=1), nn.BatchNorm3d(16), Inverted(16), Inverted(16)
    ),
    "tsm": Shift,
}
