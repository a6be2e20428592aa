"""Networks for tests: architectures with statistics as if trained, and torchvision beside a CPU torch."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

_LIBRARIES: list[Any] = []


def torchvision_models() -> Any:
    """``torchvision.models``, also where torch is a CPU build and torchvision the registry's CUDA build.

    The real library is tried first: beside a matching torch it defines its own operators, and a second
    definition of one ends the process. Where that fails, its compiled operators are unknown to torch. Its models
    are plain Python: the names of the operators are enough for them, and nothing here calls one.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    try:
        import torchvision.models
    except (RuntimeError, AttributeError):
        _name_operators()
        import torchvision.models
    return torchvision.models


def _name_operators() -> None:
    """Define torchvision's operators by name, and forget the import that failed for want of them."""
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    source = (Path(spec.origin).parent / "_meta_registrations.py").read_text()
    library = torch.library.Library("torchvision", "DEF")
    for name in sorted(set(re.findall(r'register_(?:fake|meta)\("(?:torchvision::)?(\w+)"', source))):
        library.define(f"{name}(Tensor a) -> Tensor")
    _LIBRARIES.append(library)


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
