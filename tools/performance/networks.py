"""The networks that the measurements of this folder share: random weights, statistics as if trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coverage_report.architectures import Architecture, by_name

if TYPE_CHECKING:
    from convbn.export.loading.source_model import SourceModel

__all__ = ["CLAIM", "TABLE", "subject"]

SEED = 0
#: One of each large family, plain and re-parameterisable ones among them.
TABLE = (
    *("resnet18", "tv_resnet50", "vgg11_bn", "tv_mobilenet_v2", "mobilenetv3_small_050", "efficientnet_b0"),
    *("densenet121", "regnety_002", "tv_shufflenet_v2_x0_5", "repvgg_a0", "mobileone_s0", "resnetv2_18"),
)
#: The founding claim is about these two kinds of networks, at the size of ImageNet pictures.
CLAIM = (
    Architecture("resnet18", "resnet", 224, "torchvision", "resnet18"),
    Architecture("resnet50", "resnet", 224, "torchvision", "resnet50"),
    Architecture("vgg11_bn", "vgg", 224, "torchvision", "vgg11_bn"),
)


def subject(network: str | Architecture) -> SourceModel:
    """A network, built and ready to be measured at batch 1.

    Args:
        network: it, or its name in tools/coverage_report.
    """
    import torch
    from coverage_report.trained import as_trained

    from convbn.export.loading.source_model import SourceModel

    architecture = by_name(network) if isinstance(network, str) else network
    torch.manual_seed(SEED)
    example = torch.randn(architecture.shape, generator=torch.Generator().manual_seed(SEED))
    return SourceModel(as_trained(architecture.build(), example, SEED), (example,))
