"""Speech and audio: channels are features of a spectrum, and the one spatial axis is time."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

__all__ = ["NETWORKS"]


class Tdnn(nn.Module):
    """Convolution, ReLU, BatchNorm: the order of x-vectors."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> None:
        super().__init__()
        reach = dilation * (kernel - 1) // 2
        self.conv = nn.Conv1d(
            inputs, outputs, kernel, dilation=dilation, padding=reach, padding_mode="reflect"
        )
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(functional.relu(self.conv(x)))


class XVector(nn.Module):
    """Snyder et al. 2018: TDNN layers, mean and deviation over time, linear layers with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = nn.Sequential(Tdnn(24, 32, 5), Tdnn(32, 32, 3, 2), Tdnn(32, 32, 3, 3), Tdnn(32, 64))
        self.first, self.norm = nn.Linear(128, 32), nn.BatchNorm1d(32)
        self.last = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frames = self.frames(x)
        pooled = torch.cat([frames.mean(2), frames.std(2)], 1)
        return self.last(self.norm(functional.relu(self.first(pooled))))


class SqueezeRes2(nn.Module):
    """A block of ECAPA: pieces that are convolved one after another, and squeeze and excitation."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.before, self.behind = Tdnn(channels, channels), Tdnn(channels, channels)
        self.pieces = nn.ModuleList(Tdnn(channels // 4, channels // 4, 3, dilation) for _ in range(3))
        self.squeeze, self.excite = nn.Conv1d(channels, 8, 1), nn.Conv1d(8, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pieces = list(torch.chunk(self.before(x), 4, 1))
        for i, layer in enumerate(self.pieces, 1):
            pieces[i] = layer(pieces[i] if i == 1 else pieces[i] + pieces[i - 1])
        y = self.behind(torch.cat(pieces, 1))
        gate = torch.sigmoid(self.excite(functional.relu(self.squeeze(y.mean(2, keepdim=True)))))
        return x + y * gate


class Ecapa(nn.Module):
    """Desplanques et al. 2020."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Tdnn(24, 32, 5)
        self.blocks = nn.ModuleList(SqueezeRes2(32, d) for d in (2, 3, 4))
        self.joined = Tdnn(96, 96)
        self.attention = nn.Sequential(Tdnn(288, 16), nn.Tanh(), nn.Conv1d(16, 96, 1))
        self.norm, self.last = nn.BatchNorm1d(192), nn.Conv1d(192, 16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, found = self.first(x), []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        y = self.joined(torch.cat(found, 1))
        mean, deviation = y.mean(2, keepdim=True), y.var(2, keepdim=True).clamp(min=1e-5).sqrt()
        seen = torch.cat([y, mean.expand_as(y), deviation.expand_as(y)], 1)
        weights = torch.softmax(self.attention(seen), 2)
        mean = (y * weights).sum(2)
        deviation = ((y * y * weights).sum(2) - mean * mean).clamp(min=1e-5).sqrt()
        return self.last(self.norm(torch.cat([mean, deviation], 1)).unsqueeze(2))


def one_head(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention with a single head."""
    return functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]


class ConformerBlock(nn.Module):
    """Gulati et al. 2020: half feed-forward, attention, gated convolution with BatchNorm, half feed-forward."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
        self.feeds = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(2)
        )
        self.queries, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gate = nn.Conv1d(width, 2 * width, 1)
        self.depthwise = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm, self.point = nn.BatchNorm1d(width), nn.Conv1d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.feeds[0](self.norms[0](x)) / 2
        q, k, v = self.queries(self.norms[1](x)).chunk(3, -1)
        x = x + self.out(one_head(q, k, v))
        y = functional.glu(self.gate(self.norms[2](x).transpose(1, 2)), 1)
        x = x + self.point(functional.silu(self.norm(self.depthwise(y)))).transpose(1, 2)
        return self.norms[4](x + self.feeds[1](self.norms[3](x)) / 2)


class Separable(nn.Module):
    """A block of QuartzNet (Kriman et al. 2019): depthwise and pointwise in time, with a residual of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for i in range(3):
            width = inputs if i == 0 else outputs
            parts += [nn.Conv1d(width, width, 9, padding=4, groups=width, bias=False)]
            parts += [nn.Conv1d(width, outputs, 1, bias=False), nn.BatchNorm1d(outputs, eps=1e-3)]
            parts += [nn.ReLU()] * (i < 2)
        self.body = nn.Sequential(*parts)
        self.beside = nn.Sequential(
            nn.Conv1d(inputs, outputs, 1, bias=False), nn.BatchNorm1d(outputs, eps=1e-3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.body(x) + self.beside(x))


class Pitch(nn.Module):
    """CREPE (Kim et al. 2018): padded convolution, ReLU, BatchNorm, pool, and a linear layer over a permutation."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 16, 16)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, (16, 1), (4 if a == 1 else 1, 1)) for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(b, eps=1e-3) for b in widths[1:])
        self.last = nn.Linear(128, 36)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, None, :, None]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(functional.relu(conv(functional.pad(x, (0, 0, 7, 8)))))
            x = functional.max_pool2d(x, (2, 1), (2, 1))
        return torch.sigmoid(self.last(x.permute(0, 2, 1, 3).reshape(-1, 128)))


class Tagger(nn.Module):
    """PANNs (Kong et al. 2020): a BatchNorm over the bins of a spectrum in front, then blocks of two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.bins = nn.BatchNorm2d(32)
        parts: list[nn.Module] = []
        for a, b in ((1, 16), (16, 32)):
            for c in (a, b):
                parts += [nn.Conv2d(c, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
            parts.append(nn.AvgPool2d(2))
        self.body, self.last = nn.Sequential(*parts), nn.Linear(32, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bins(x.transpose(1, 3)).transpose(1, 3)
        x = self.body(x).mean(3)
        return torch.sigmoid(self.last(x.max(2)[0] + x.mean(2)))


NETWORKS = {
    "x_vector": XVector,
    "ecapa_tdnn": Ecapa,
    "conformer": lambda: nn.Sequential(ConformerBlock(32), ConformerBlock(32)),
    "quartznet": lambda: nn.Sequential(Separable(24, 32), Separable(32, 32), nn.Conv1d(32, 9, 1)),
    "crepe": Pitch,
    "panns_cnn": Tagger,
}
