"""Recurrent networks: BatchNorm between layers over time, in gates that are used at every step, and twin networks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["NETWORKS"]


class Spoken(nn.Module):
    """Deep Speech 2 (Amodei et al. 2016): two convolutions, then recurrent layers with a BatchNorm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, (5, 5), (2, 1), 2, bias=False),
            nn.BatchNorm2d(8),
            nn.Hardtanh(0, 20),
            nn.Conv2d(8, 8, (5, 5), (2, 1), 2, bias=False),
            nn.BatchNorm2d(8),
            nn.Hardtanh(0, 20),
        )
        self.layers = nn.ModuleList(nn.GRU(a, 16, batch_first=True) for a in (32, 16))
        self.norms, self.last = nn.ModuleList(nn.BatchNorm1d(c) for c in (32, 16)), nn.Linear(16, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.body(x).flatten(1, 2)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            rows = layer(norm(rows).transpose(1, 2))[0].transpose(1, 2)
        return self.last(rows.transpose(1, 2))


class Forecast(nn.Module):
    """LSTM-FCN (Karim et al. 2018): a recurrent branch beside convolutions in time."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.rows = nn.BatchNorm1d(6), nn.LSTM(6, 16, batch_first=True)
        parts: list[nn.Module] = []
        for a, b, kernel in ((6, 16, 7), (16, 24, 5), (24, 16, 3)):
            parts += [nn.Conv1d(a, b, kernel, padding=kernel // 2), nn.BatchNorm1d(b), nn.ReLU()]
        self.body, self.last = nn.Sequential(*parts), nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = self.rows(self.norm(x).transpose(1, 2))[0][:, -1]
        return self.last(torch.cat([steps, self.body(x).mean(2)], 1))


class Rain(nn.Module):
    """ConvLSTM (Shi et al. 2015) with a BatchNorm in its gates: one layer, called at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.norm = nn.Conv2d(11, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.last = nn.Conv2d(8, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = memory = torch.zeros_like(x[:, 0, :1]).expand(-1, 8, -1, -1)
        for step in range(4):
            gates = self.norm(self.gates(torch.cat([x[:, step], state], 1)))
            take, keep, give, new = gates.chunk(4, 1)
            memory = torch.sigmoid(keep) * memory + torch.sigmoid(take) * torch.tanh(new)
            state = torch.sigmoid(give) * torch.tanh(memory)
        return self.last(state)


class Twins(nn.Module):
    """A Siamese tracker (Bertinetto et al. 2016): the same layers on two pictures."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for a, b in ((3, 16), (16, 24)):
            parts += [nn.Conv2d(a, b, 3, 2), nn.BatchNorm2d(b), nn.ReLU()]
        self.body = nn.Sequential(*parts, nn.Conv2d(24, 24, 3), nn.BatchNorm2d(24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = (functional.normalize(self.body(x[:, i]).flatten(1), dim=1) for i in range(2))
        return (one - other).square()


NETWORKS = {
    "deep_speech": Spoken,
    "lstm_fcn": Forecast,
    "conv_lstm": Rain,
    "siamese": Twins,
}
