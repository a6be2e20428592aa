"""The architectures: small members of many families, as timm and torchvision build them, and own ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from coverage_report.domains import LISTED

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ARCHITECTURES", "REPARAMETERISABLE", "Architecture", "by_name", "families"]

#: Families that train with parallel branches, which a fold can merge into one convolution.
REPARAMETERISABLE = frozenset({"fastvit", "mobileone", "repvgg", "repvit"})


@dataclass(frozen=True)
class Architecture:
    """One network.

    Attributes:
        name: of its files and rows; unique.
        family: what it is a member of.
        size: height and width of the input, the smallest that the network takes without trouble.
        source: the library that builds it.
        builder: name there.
        arguments: of the builder; weights are never loaded.
        frames: length of a video's time axis; None for pictures.
        input_shape: of networks that read no pictures.
    """

    name: str
    family: str
    size: int = 96
    source: Literal["timm", "torchvision", "own"] = "timm"
    builder: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    frames: int | None = None
    input_shape: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the input, of pictures batch 1."""
        if self.input_shape:
            return self.input_shape
        clip = () if self.frames is None else (self.frames,)
        return (1, 3, *clip, self.size, self.size)

    def build(self) -> nn.Module:
        """The network with random weights, in eval mode."""
        from support.networks import torchvision_models

        if self.source == "own":
            from coverage_report.domains import builders

            return builders()[self.name]().eval()
        models = torchvision_models()  # timm imports torchvision too, which may need the help in there
        if self.source == "timm":
            import timm

            module: nn.Module = timm.create_model(self.builder or self.name, **self.arguments)
        else:
            module = models.get_model(self.builder, weights=None, **self.arguments)
        return module.eval()


def _torchvision(builder: str, family: str, size: int = 96, **further: Any) -> Architecture:
    frames = further.pop("frames", None)
    return Architecture(f"tv_{builder}", family, size, "torchvision", builder, further, frames)


#: Position-dependent networks are at 224 or 256; the rest are as small as their strides allow.
ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture("densenet121", "densenet"),
    Architecture("resnetv2_18", "resnetv2"),
    Architecture("resnetv2_50", "resnetv2"),
    Architecture("repvgg_a0", "repvgg"),
    Architecture("mobileone_s0", "mobileone"),
    Architecture("repvit_m0_9", "repvit"),
    Architecture("repghostnet_050", "repghostnet"),
    Architecture("fastvit_t8", "fastvit", 128),
    Architecture("levit_128s", "levit", 224),
    Architecture("visformer_tiny", "visformer", 224),
    Architecture("inception_next_atto", "inception_next"),
    Architecture("swiftformer_xs", "swiftformer", 224),
    Architecture("coatnet_0_224", "coatnet", 224),
    Architecture("convmixer_768_32", "convmixer"),
    Architecture("botnet26t_256", "botnet", 256),
    Architecture("nextvit_small", "nextvit"),
    Architecture("dpn48b", "dpn"),
    Architecture("regnetv_040", "regnet"),
    Architecture("xception41p", "xception", 128),
    Architecture("xcit_nano_12_p16_224", "xcit", 224),
    _torchvision("resnet50", "resnet"),
    _torchvision("mobilenet_v2", "mobilenetv2"),
    _torchvision("googlenet", "googlenet", aux_logits=False, init_weights=False),
    _torchvision("inception_v3", "inception", 299, aux_logits=False, init_weights=False),
    _torchvision("lraspp_mobilenet_v3_large", "segmentation", weights_backbone=None),
    _torchvision("deeplabv3_mobilenet_v3_large", "segmentation", weights_backbone=None),
    _torchvision("shufflenet_v2_x0_5", "shufflenet"),
    _torchvision("mnasnet0_5", "mnasnet"),
    _torchvision("mc3_18", "video", 64, frames=8),
    _torchvision("squeezenet1_1", "squeezenet"),
    Architecture("vgg11_bn", "vgg", 224, arguments={"mlp_ratio": 0.0625}),
    Architecture("resnet18", "resnet"),
    Architecture("legacy_seresnet18", "senet"),
    Architecture("efficientnet_b0", "efficientnet"),
    Architecture("ghostnet_050", "ghostnet"),
    Architecture("ghostnetv2_100", "ghostnet", 224),
    Architecture("ghostnetv3_050", "ghostnet", 224),
    Architecture("hrnet_w18_small", "hrnet"),
    Architecture("dla34", "dla"),
    Architecture("dla46_c", "dla"),
    Architecture("res2net50_14w_8s", "res2net"),
    Architecture("selecsls42", "selecsls"),
    Architecture("tresnet_m", "tresnet"),
    Architecture("mixnet_s", "mixnet"),
    Architecture("tinynet_e", "tinynet"),
    Architecture("edgenext_xx_small", "edgenext"),
    Architecture("mobilevit_xxs", "mobilevit"),
    Architecture("mobilevitv2_050", "mobilevit"),
    Architecture("efficientformer_l1", "efficientformer", 224),
    Architecture("efficientformerv2_s0", "efficientformer", 224),
    Architecture("efficientvit_b0", "efficientvit_mit"),
    Architecture("efficientvit_m0", "efficientvit_msra", 224),
    Architecture("poolformer_s12", "poolformer"),
    Architecture("tiny_vit_5m_224", "tiny_vit", 224),
    Architecture("gernet_s", "gernet"),
    Architecture("rexnet_100", "rexnet"),
    Architecture("cspresnet50", "csp"),
    Architecture("cspdarknet53", "csp"),
    Architecture("cs3darknet_s", "csp"),
    Architecture("nf_resnet26", "nfnet"),
    Architecture("skresnet18", "sknet"),
    Architecture("resnest14d", "resnest"),
    Architecture("starnet_s1", "starnet"),
    Architecture("mobilenetv1_100", "mobilenetv1"),
    Architecture("mobilenetv3_small_050", "mobilenetv3"),
    Architecture("mobilenetv4_conv_small", "mobilenetv4"),
    Architecture("lcnet_050", "lcnet"),
    Architecture("hardcorenas_a", "hardcorenas"),
    Architecture("fbnetc_100", "fbnet"),
    Architecture("spnasnet_100", "spnasnet"),
    Architecture("ese_vovnet19b_dw", "vovnet"),
    Architecture("hgnetv2_b0", "hgnet"),
    Architecture("shvit_s1", "shvit"),
    Architecture("regnety_002", "regnet"),
    Architecture("pit_ti_224", "pit", 224),
    Architecture("convnext_atto", "convnext"),
    *(
        Architecture(name, family, source="own", input_shape=shape)
        for family, networks in LISTED.items()
        for name, shape in networks.items()
    ),
)


def by_name(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        KeyError: there is none.
    """
    return {architecture.name: architecture for architecture in ARCHITECTURES}[name]


def families() -> set[str]:
    """Every family in the list."""
    return {architecture.family for architecture in ARCHITECTURES}
