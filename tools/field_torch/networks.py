"""The networks: detectors, transformers with convolutions and segmentation networks, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["NETWORKS", "Network"]


@dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        name: of its row; unique.
        library: the package that brings it.
        build: makes it, with random weights.
        size: height and width of its input.
    """

    name: str
    library: str
    build: Callable[[], nn.Module]
    size: int = 256

    def made(self, seed: int) -> tuple[nn.Module, torch.Tensor]:
        """The network as if trained, in eval mode, and an input for it.

        Raises:
            ModuleNotFoundError: its library is not installed.
        """
        import torch
        from coverage_report.trained import as_trained
        from support.networks import torchvision_models

        torchvision_models()  # the libraries import torchvision, which may need the help in there
        torch.manual_seed(seed)
        x = torch.rand((1, 3, self.size, self.size), generator=torch.Generator().manual_seed(seed))
        module = self.build().eval()
        _settle_frozen(module, seed)
        return as_trained(module, x, seed).requires_grad_(False), x


def _settle_frozen(module: nn.Module, seed: int) -> None:
    """Numbers for BatchNorms whose four tensors are buffers, which would otherwise do nothing."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if {"weight", "bias", "running_mean", "running_var"} <= set(part._buffers):
            for name, low, high in (("weight", 0.7, 1.3), ("bias", -0.2, 0.2), ("running_mean", -0.2, 0.2)):
                part._buffers[name].uniform_(low, high, generator=generator)  # type: ignore[union-attr]
            part._buffers["running_var"].uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]


def _yolo(name: str) -> nn.Module:
    from ultralytics.nn.tasks import DetectionModel, RTDETRDetectionModel

    kind = RTDETRDetectionModel if name.startswith("rtdetr") else DetectionModel
    made: nn.Module = kind(f"{name}.yaml", verbose=False)
    return made


def _transformer(kind: str, config: str, **settings: Any) -> nn.Module:
    import transformers

    made: nn.Module = getattr(transformers, kind)(getattr(transformers, config)(**settings))
    return made


def _detr(kind: str, config: str, **settings: Any) -> nn.Module:
    import transformers

    backbone = transformers.ResNetConfig(
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"] if kind.startswith("RT") else ["stage4"],
    )
    return _transformer(kind, config, backbone_config=backbone, **settings)


def _segmenter(kind: str, encoder: str) -> nn.Module:
    import segmentation_models_pytorch

    made: nn.Module = getattr(segmentation_models_pytorch, kind)(encoder, encoder_weights=None)
    return made


def _detector(builder: str, *, head: bool) -> nn.Module:
    """Without its box selection, whose operators a torchvision for another torch lacks."""
    import torch
    from torchvision.models import get_model

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            detector = get_model(builder, weights=None, weights_backbone=None)
            self.backbone = detector.backbone
            self.head = detector.head if head else None

        def forward(self, x: torch.Tensor) -> Any:
            features = self.backbone(x)
            return features if self.head is None else self.head(list(features.values()))

    return Features()


NETWORKS: tuple[Network, ...] = (
    *(
        Network(name, "ultralytics", lambda name=name: _yolo(name))
        for name in ("yolov8n", "yolov10n", "yolo11n")
    ),  # type: ignore[misc]
    Network("rtdetr-l", "ultralytics", lambda: _yolo("rtdetr-l")),
    Network("resnet", "transformers", lambda: _transformer("ResNetForImageClassification", "ResNetConfig")),
    Network("levit", "transformers", lambda: _transformer("LevitForImageClassification", "LevitConfig"), 224),
    Network("detr", "transformers", lambda: _detr("DetrForObjectDetection", "DetrConfig")),
    Network(
        "rt_detr",
        "transformers",
        lambda: _detr("RTDetrForObjectDetection", "RTDetrConfig", encoder_in_channels=[128, 256, 512]),
    ),
    Network(
        "segformer",
        "transformers",
        lambda: _transformer("SegformerForSemanticSegmentation", "SegformerConfig"),
    ),
    Network("unet-mobileone_s0", "segmentation_models_pytorch", lambda: _segmenter("Unet", "mobileone_s0")),
    Network(
        "deeplabv3plus-resnet18",
        "segmentation_models_pytorch",
        lambda: _segmenter("DeepLabV3Plus", "resnet18"),
    ),
    Network("ssdlite320", "torchvision", lambda: _detector("ssdlite320_mobilenet_v3_large", head=True), 320),
    Network(
        "fasterrcnn-backbone",
        "torchvision",
        lambda: _detector("fasterrcnn_mobilenet_v3_large_fpn", head=False),
    ),
)
