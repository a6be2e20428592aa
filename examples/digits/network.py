"""A small ResNet (He et al., 2016) for 8×8 grey images; plain PyTorch, nothing from convbn."""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    """``relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))``."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, Cin, H, W] → [N, Cout, H/stride, W/stride]``."""
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitsResNet(nn.Module):
    """Stem, three stages of two blocks, and a linear head: 16 BatchNorms.

    Args:
        width: channels of the first stage; each further stage doubles them.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stages = nn.Sequential(
            Block(width, width, 1),
            Block(width, width, 1),
            Block(width, 2 * width, 2),
            Block(2 * width, 2 * width, 1),
            Block(2 * width, 4 * width, 2),
            Block(4 * width, 4 * width, 1),
        )
        # A BatchNorm behind a linear layer, so that the checkpoint has one of each kind.
        self.neck = nn.Sequential(nn.Linear(4 * width, 4 * width), nn.BatchNorm1d(4 * width), nn.ReLU())
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, 1, 8, 8]`` in [0, 1] to logits ``[N, 10]``."""
        features: torch.Tensor = self.stages(self.stem(x)).mean((2, 3))
        logits: torch.Tensor = self.head(self.neck(features))
        return logits


def digits_resnet(width: int = 16) -> DigitsResNet:
    """The architecture by name, for ``--arch``."""
    return DigitsResNet(width)
