"""The networks of the tour: stacks of convolutions, with and without shortcuts and BatchNorm, and a Transformer."""

from __future__ import annotations

import torch
from torch import nn

WIDTH = 16


class Layer(nn.Module):
    """``relu(bn(conv(x)) + x)``; without a shortcut ``relu(bn(conv(x)))``, without BatchNorm ``relu(conv(x))``."""

    def __init__(self, shortcut: bool, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=not norm)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        self.norm = nn.BatchNorm2d(WIDTH) if norm else nn.Identity()
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, C, H, W]`` to the same shape."""
        y: torch.Tensor = self.norm(self.conv(x))
        return torch.relu(x + y if self.shortcut else y)


class Stack(nn.Module):
    """A stem, ``depth`` layers of one shape, a mean over the image and a linear head.

    Args:
        depth: how many layers stand between stem and head.
        shortcut: whether each adds its input to its output.
        norm: whether each has a BatchNorm.
    """

    def __init__(self, depth: int, shortcut: bool, norm: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTH, 3, padding=1)
        self.layers = nn.Sequential(*(Layer(shortcut, norm) for _ in range(depth)))
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, 1, 8, 8]`` to logits ``[N, 10]``."""
        logits: torch.Tensor = self.head(self.layers(torch.relu(self.stem(x))).mean((2, 3)))
        return logits


class OverTokens(nn.Module):
    """BatchNorm for ``[N, tokens, channels]``: each channel normalised over all tokens of all samples."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same shape."""
        normalised: torch.Tensor = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return normalised


class Encoder(nn.Module):
    """One layer of a Transformer with its normalisation first: attention, then two linear layers."""

    def __init__(self, channels: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(channels), norm(channels)
        self.attention = nn.MultiheadAttention(channels, 4, batch_first=True)
        self.linear = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, tokens, channels]`` to the same shape."""
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        y = self.norm2(x)
        return x + self.linear(y)


class Transformer(nn.Module):
    """Reads a digit row by row: each of the eight rows is a token.

    Args:
        norm: ``nn.LayerNorm`` or :class:`OverTokens`, called with the number of channels.
    """

    def __init__(self, norm: type[nn.Module], channels: int = 32, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(8, channels)
        self.place = nn.Parameter(0.1 * torch.randn(8, channels))
        self.layers = nn.Sequential(*(Encoder(channels, norm) for _ in range(depth)))
        self.norm = norm(channels)
        self.head = nn.Linear(channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, 1, 8, 8]`` to logits ``[N, 10]``."""
        logits: torch.Tensor = self.head(self.norm(self.layers(self.embed(x[:, 0]) + self.place)).mean(1))
        return logits
