"""The networks of the precision table by name: a ResNet, a MobileNetV2 and a VGG with BatchNorm, all small."""

from __future__ import annotations

from collections.abc import Callable

import torch
from network import digits_resnet
from torch import nn


class InvertedResidual(nn.Module):
    """Expand, depthwise, project (Sandler et al., 2018), with a shortcut where the shapes allow one.

    The activation is ReLU, as Nagel et al. (2019) have it in the place of ReLU6.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut = stride == 1 and channels_in == channels_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, Cin, H, W] → [N, Cout, H/stride, W/stride]``."""
        y: torch.Tensor = self.body(x)
        return x + y if self.shortcut else y


class DigitsMobileNet(nn.Module):
    """Stem, six inverted residuals, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        blocks = (
            (16, 16, 1, 1),
            (16, 24, 2, 4),
            (24, 24, 1, 4),
            (24, 32, 2, 4),
            (32, 32, 1, 4),
            (32, 32, 1, 4),
        )
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(InvertedResidual(*block) for block in blocks),
            *(nn.Conv2d(32, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU()),
        )
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, 1, 8, 8]`` in [0, 1] to logits ``[N, 10]``."""
        logits: torch.Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


class DigitsVGG(nn.Module):
    """Seven convolutions with BatchNorm and two poolings (Simonyan and Zisserman, 2014), and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width in (16, 16, 0, 32, 32, 0, 64, 64, 64):
            if width == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, 1, 8, 8]`` in [0, 1] to logits ``[N, 10]``."""
        logits: torch.Tensor = self.head(self.features(x))
        return logits


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ResNet": digits_resnet,
    "MobileNetV2": DigitsMobileNet,
    "VGG": DigitsVGG,
}
