"""Networks for tests: architectures with statistics as if trained, and torchvision beside a CPU torch."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

_LIBRARIES: list[Any] = []


def torchvision_models() -> Any:
    """``torchvision.models``, also where torch is a CPU build and torchvision the registry's CUDA build.

    Its models are plain Python. The import fails because its compiled operators are unknown; their names
    are enough for it, and nothing here calls them.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        pytest.skip("torchvision is not installed")
    if not _LIBRARIES and not hasattr(torch.ops.torchvision, "nms"):
        source = (Path(spec.origin).parent / "_meta_registrations.py").read_text()
        library = torch.library.Library("torchvision", "DEF")
        for name in sorted(set(re.findall(r'register_(?:fake|meta)\("(?:torchvision::)?(\w+)"', source))):
            library.define(f"{name}(Tensor a) -> Tensor")
        _LIBRARIES.append(library)
    import torchvision.models

    return torchvision.models


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in eval mode, its BatchNorms with parameters and statistics as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            size = part.num_features
            with torch.no_grad():
                part.weight.copy_(torch.empty(size).uniform_(0.5, 1.5, generator=generator))
                part.bias.copy_(0.2 * torch.randn(size, generator=generator))
                part.running_mean.copy_(0.2 * torch.randn(size, generator=generator))
                part.running_var.copy_(torch.empty(size).uniform_(0.5, 1.5, generator=generator))
    return module.eval()
