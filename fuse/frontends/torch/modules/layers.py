"""What the classes of ``torch.nn`` stand for, and whether a module's forward is its class's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.calls import window
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.conv_transpose import ConvTranspose
from convbn.fuse.operators.linear import Linear
from convbn.fuse.operators.normalization import Normalization
from convbn.fuse.view.op import Op

if TYPE_CHECKING:
    import torch

__all__ = ["batchnorm_of", "is_one_call", "layer_of", "plain_forward"]


def plain_forward(part: torch.nn.Module) -> bool:
    """Whether a layer computes just what its base class does, by identity of the code."""
    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm

    kind: Any = type(part)
    if "forward" in vars(part) or kind.__call__ is not nn.Module.__call__:
        return False
    for base in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        if isinstance(part, base):
            return kind.forward is base.forward and kind._conv_forward is base._conv_forward
    others: tuple[Any, ...] = (
        nn.ConvTranspose1d,
        nn.ConvTranspose2d,
        nn.ConvTranspose3d,
        nn.Linear,
        *_norms(),
    )
    for other in others:
        if isinstance(part, other):
            return kind.forward is other.forward
    return isinstance(part, _BatchNorm) and kind.forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)


_ONE_CALL = (
    *(
        "ReLU",
        "ReLU6",
        "LeakyReLU",
        "ELU",
        "SiLU",
        "GELU",
        "Mish",
        "Sigmoid",
        "Tanh",
        "Hardswish",
        "Hardsigmoid",
    ),
    *("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "Identity"),
)


def is_one_call(part: torch.nn.Module) -> bool:
    """Whether a module of ``torch.nn`` makes one call, on its one input, and gives what that gives; or none."""
    kind = type(part)
    own = kind.__module__.startswith("torch.nn.modules.") and kind.__name__ in _ONE_CALL
    return own and "forward" not in vars(part)


def layer_of(part: torch.nn.Module) -> Op | None:
    """The operator that a layer's class stands for, whether or not its forward is the class's own."""
    from torch import nn
    from torch.nn.modules.conv import _ConvTransposeNd

    if isinstance(part, _ConvTransposeNd):
        return ConvTranspose(part.groups)
    if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        zeros = part.padding_mode == "zeros"
        laid = window(part.stride, part.padding, part.dilation, part.kernel_size) if zeros else None
        return Conv(part.groups, window=laid)
    if isinstance(part, nn.Linear):
        return Linear(output_axis=0)
    kind = next((known for known in _norms() if isinstance(part, known)), None)
    if kind is None or getattr(part, "running_mean", None) is not None:
        return None
    if isinstance(part, nn.LayerNorm):
        return Normalization("LayerNorm", None) if len(part.normalized_shape) == 1 else None
    return Normalization(str(kind.__name__).rstrip("123d"), 1)


def _norms() -> tuple[type[torch.nn.Module], ...]:
    """The classes that normalise by the data at hand."""
    from torch import nn

    return nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d


def batchnorm_of(part: torch.nn.Module) -> BatchNorm:
    """The operator that a BatchNorm module is in its present training flag."""
    by_batch = part.training or (part._buffers.get("running_mean") is None)
    return BatchNorm(float(getattr(part, "eps", 0.0)), training=by_batch)
