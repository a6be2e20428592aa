"""Tables: rows of features, normalised first of all, and layers in every order."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["NETWORKS"]


class Transform(nn.Module):
    """A feature transformer of TabNet: linear, BatchNorm in virtual batches, gated linear unit, residual of √½."""

    def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
        super().__init__()
        self.layers = nn.ModuleList([first, second, nn.Linear(16, 32, bias=False)])
        self.norms = nn.ModuleList(nn.BatchNorm1d(32) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            pieces = [norm(piece) for piece in layer(x).chunk(2, 0)]
            y = functional.glu(torch.cat(pieces, 0), 1)
            x = y if i == 0 else (x + y) * 0.5**0.5
        return x


class TabNet(nn.Module):
    """Arik and Pfister 2021, with a softmax for its masks."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12)
        shared = nn.Linear(12, 32, bias=False), nn.Linear(16, 32, bias=False)
        self.start, self.steps = Transform(*shared), nn.ModuleList(Transform(*shared) for _ in range(2))
        self.masks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 12, bias=False), nn.BatchNorm1d(12), nn.Softmax(1)) for _ in range(2)
        )
        self.last = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        seen, total = self.start(x)[:, 8:], torch.zeros_like(x[:, :8])
        prior = torch.ones_like(x)
        for step, mask in zip(self.steps, self.masks, strict=True):
            weights = mask(seen) * prior
            prior = prior * (1.3 - weights)
            y = step(weights * x)
            total, seen = total + functional.relu(y[:, :8]), y[:, 8:]
        return self.last(total)


class Residual(nn.Module):
    """A block of the ResNet for tables (Gorishniy et al. 2021): BatchNorm, linear, ReLU, linear, and the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.BatchNorm1d(width), nn.Linear(width, 32), nn.Linear(32, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(functional.relu(self.first(self.norm(x))))


def perceptron() -> nn.Sequential:
    """As fastai builds them: BatchNorm on the features, then linear, ReLU, BatchNorm, Dropout."""
    parts: list[nn.Module] = [nn.BatchNorm1d(12)]
    for a, b in ((12, 32), (32, 16)):
        parts += [nn.Linear(a, b, bias=False), nn.ReLU(), nn.BatchNorm1d(b), nn.Dropout(0.1)]
    return nn.Sequential(*parts, nn.Linear(16, 3))


NETWORKS = {
    "tabnet": TabNet,
    "tabular_resnet": lambda: nn.Sequential(
        nn.Linear(12, 16), Residual(16), Residual(16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)
    ),
    "tabular_mlp": perceptron,
}
