"""Eight small networks of as many kinds, written as unfused ONNX files: ``networks.py FOLDER``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import convbn
from convbn.export.onnx_io.read import save_model


def conv(inputs: int, outputs: int, kernel: int = 3, **how: int) -> nn.Sequential:
    """Conv, BatchNorm, ReLU."""
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **how)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """``relu(bn(conv(relu(bn(conv(x))))) + x)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = conv(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, C, H, W]`` to the same shape."""
        return torch.relu(self.second(self.first(x)) + x)


class Dense(nn.Module):
    """Each layer reads all before it: ``cat(x, conv(relu(bn(x))))``."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, growth, 3, padding=1, bias=False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, C, H, W]`` to ``[N, C + growth, H, W]``."""
        return torch.cat([x, self.body(x)], 1)


class Branches(nn.Module):
    """RepVGG: a 3×3 convolution, a 1×1 convolution and the input itself, each with its BatchNorm, added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.point = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))
        self.identity = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, C, H, W]`` to the same shape."""
        return torch.relu(self.wide(x) + self.point(x) + self.identity(x))


class Unet(nn.Module):
    """Down, up by a transposed convolution, and across."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.top, self.down = conv(3, width), conv(width, 2 * width, stride=2)
        self.up = nn.Sequential(
            nn.ConvTranspose2d(2 * width, width, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.across = conv(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, 3, H, W]`` to ``[N, C, H, W]``."""
        top = self.top(x)
        return self.across(torch.cat([top, self.up(self.down(top))], 1))  # type: ignore[no-any-return]


def _separable(width: int) -> nn.Sequential:
    return nn.Sequential(conv(width, width, groups=width), conv(width, 2 * width, 1, stride=2))


def _classifier(*body: nn.Module, width: int) -> nn.Sequential:
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vgg": lambda: _classifier(conv(3, 16), conv(16, 32, stride=2), conv(32, 64, stride=2), width=64),
    "resnet": lambda: _classifier(conv(3, 32), *(Residual(32) for _ in range(4)), width=32),
    "mobilenet": lambda: _classifier(conv(3, 16), *(_separable(16 << i) for i in range(3)), width=128),
    "densenet": lambda: _classifier(conv(3, 16), *(Dense(16 + 8 * i, 8) for i in range(4)), width=48),
    "repvgg": lambda: _classifier(conv(3, 32), *(Branches(32) for _ in range(4)), width=32),
    "grouped": lambda: _classifier(conv(3, 32), *(conv(32, 32, groups=4) for _ in range(4)), width=32),
    "deep/unet": lambda: Unet(16),
    "deep/perceptron": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 32 * 32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)
    ),
}


def write(folder: Path) -> None:
    """Write them all, with statistics that are not those of a fresh BatchNorm."""
    for number, (name, build) in enumerate(NETWORKS.items()):
        torch.manual_seed(number)
        module = build().eval()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias, std=0.2)
                nn.init.normal_(layer.running_mean, std=0.2)
                nn.init.uniform_(layer.running_var, 0.5, 1.5)
        target = folder / f"{name}.onnx"
        target.parent.mkdir(parents=True, exist_ok=True)
        model = convbn.export_onnx(module, torch.randn(1, 3, 32, 32), fold=False)
        save_model(model, target, overwrite=True)
        print(
            f"{target}: {sum(node.op_type == 'BatchNormalization' for node in model.graph.node)} BatchNorms"
        )


if __name__ == "__main__":
    write(Path(sys.argv[1]))
