"""Graphs and point clouds: rows are nodes, and neighbours are summed by a matrix, by index or by their maximum."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["NETWORKS"]

_NODES, _EDGES = 12, 40


class Convolved(nn.Module):
    """GCN (Kipf and Welling 2017) over one graph that is known: a matrix from the left, then bias, BatchNorm, ReLU."""

    adjacency: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        links = torch.rand(_NODES, _NODES, generator=torch.Generator().manual_seed(0)) < 0.3
        known = links.float() + torch.eye(_NODES)
        self.register_buffer("adjacency", known / known.sum(1, keepdim=True))
        self.weights = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in ((8, 16), (16, 16)))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(16)) for _ in range(2))
        self.norms, self.last = nn.ModuleList(nn.BatchNorm1d(16) for _ in range(2)), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for weight, bias, norm in zip(self.weights, self.biases, self.norms, strict=True):
            x = functional.relu(norm(self.adjacency @ weight(x) + bias))
        return self.last(x)


class Isomorphic(nn.Module):
    """GIN (Xu et al. 2019): neighbours are added by index, then two linear layers, each with a BatchNorm."""

    edges: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        edges = torch.randint(0, _NODES, (2, _EDGES), generator=torch.Generator().manual_seed(0))
        self.register_buffer("edges", edges)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(a, 16),
                nn.BatchNorm1d(16),
                nn.ReLU(),
                nn.Linear(16, 16),
                nn.BatchNorm1d(16),
                nn.ReLU(),
            )
            for a in (8, 16)
        )
        self.last = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            summed = torch.zeros_like(x).index_add(0, self.edges[1], x[self.edges[0]])
            x = layer(1.1 * x + summed)
        return self.last(x.sum(0, keepdim=True))


class Gated(nn.Module):
    """Gated graph convolutions (Bresson and Laurent 2017): gates on edges, BatchNorm, ReLU, residuals."""

    edges: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        edges = torch.randint(0, _NODES, (2, _EDGES), generator=torch.Generator().manual_seed(1))
        self.register_buffer("edges", edges)
        self.first = nn.Linear(8, 16)
        self.own, self.sent, self.norm = (
            nn.ModuleList(made() for _ in range(2))
            for made in (lambda: nn.Linear(16, 16), lambda: nn.Linear(16, 32), lambda: nn.BatchNorm1d(16))
        )
        self.last = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, (source, target) = self.first(x), self.edges
        for own, sent, norm in zip(self.own, self.sent, self.norm, strict=True):
            gate, message = sent(x)[source].chunk(2, 1)
            kept = own(x)
            summed = torch.zeros_like(kept).index_add(0, target, torch.sigmoid(gate) * message)
            x = x + functional.relu(norm(kept + summed))
        return self.last(x)


class Points(nn.Module):
    """PointNet (Qi et al. 2017): pointwise layers, a maximum over all points, and a learnt turn in front."""

    def __init__(self) -> None:
        super().__init__()
        self.turn, self.body = self._pointwise(3, 32), self._pointwise(3, 64)
        self.angles = self._head(32, 9)
        self.head = self._head(64, 6)

    @staticmethod
    def _pointwise(inputs: int, outputs: int) -> nn.Sequential:
        parts: list[nn.Module] = []
        for a, b in ((inputs, 16), (16, outputs)):
            parts += [nn.Conv1d(a, b, 1), nn.BatchNorm1d(b), nn.ReLU()]
        return nn.Sequential(*parts[:-1])

    @staticmethod
    def _head(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(inputs, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        turn = self.angles(functional.relu(self.turn(x)).max(2)[0]).reshape(-1, 3, 3) + torch.eye(3)
        return self.head(self.body(turn @ x).max(2)[0])


NETWORKS = {
    "gcn": Convolved,
    "gin": Isomorphic,
    "gated_gcn": Gated,
    "pointnet": Points,
}
