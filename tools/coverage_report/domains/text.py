"""Reading text: lines as sequences of columns, and maps of where text is."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from coverage_report.domains.speech import one_head

__all__ = ["NETWORKS"]


class Line(nn.Module):
    """CRNN (Shi et al. 2017): convolutions to one row, then recurrent layers over its columns."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for a, b, pool in ((1, 16, (2, 2)), (16, 32, (2, 2)), (32, 32, (2, 1)), (32, 32, (4, 1))):
            parts += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(pool)]
        self.body = nn.Sequential(*parts)
        self.rows = nn.LSTM(32, 16, bidirectional=True, batch_first=True)
        self.last = nn.Linear(32, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        columns = self.body(x).squeeze(2).transpose(1, 2)
        return self.last(self.rows(columns)[0])


class Where(nn.Module):
    """DBNet (Liao et al. 2020): a pyramid, and two heads of transposed convolutions whose kernel is their stride."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in ((3, 16), (16, 24), (24, 32))
        )
        self.inner = nn.ModuleList(nn.Conv2d(c, 16, 1, bias=False) for c in (16, 24, 32))
        self.outer = nn.ModuleList(nn.Conv2d(16, 8, 3, padding=1, bias=False) for _ in range(3))
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(24, 8, 3, padding=1, bias=False),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.ConvTranspose2d(8, 8, 2, 2),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.ConvTranspose2d(8, 1, 2, 2),
                nn.Sigmoid(),
            )
            for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        levels = [inner(x) for inner, x in zip(self.inner, found, strict=True)]
        for i in (1, 0):
            levels[i] = levels[i] + functional.interpolate(levels[i + 1], scale_factor=2.0)
        spread = [
            functional.interpolate(outer(level), scale_factor=float(2**i)) if i else outer(level)
            for i, (outer, level) in enumerate(zip(self.outer, levels, strict=True))
        ]
        joined = torch.cat(spread, 1)
        shrink, threshold = (head(joined) for head in self.heads)
        return torch.cat([shrink, threshold, torch.sigmoid(50 * (shrink - threshold))], 1)


class Mixed(nn.Module):
    """A block of SVTR's kind (Du et al. 2022): convolution with BatchNorm and GELU in front of attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.local = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width), nn.GELU()
        )
        self.norm, self.queries, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.merge = nn.Sequential(nn.Conv2d(width, width, 3, (2, 1), 1), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.local(x)
        rows = x.flatten(2).transpose(1, 2)
        q, k, v = self.queries(self.norm(rows)).chunk(3, -1)
        rows = rows + self.out(one_head(q, k, v))
        return self.merge(rows.transpose(1, 2).reshape(x.shape))


NETWORKS = {
    "crnn": Line,
    "dbnet": Where,
    "svtr": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.GELU(), Mixed(16), Mixed(16)
    ),
}
