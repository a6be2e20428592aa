"""Small networks of domains that timm and torchvision lack, written as their papers and libraries write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["LISTED", "builders"]

#: By domain and name, the shape of the input: known without torch.
LISTED: dict[str, dict[str, tuple[int, ...]]] = {
    "speech": {
        "x_vector": (1, 24, 40),
        "ecapa_tdnn": (1, 24, 40),
        "conformer": (1, 20, 32),
        "quartznet": (1, 24, 40),
        "crepe": (1, 1024),
        "panns_cnn": (1, 1, 48, 32),
    },
    "video": {"r2plus1d": (1, 3, 4, 16, 16), "x3d": (1, 3, 4, 16, 16), "tsm": (1, 4, 3, 24, 24)},
    "medical": {
        "unet_3d": (1, 1, 8, 16, 16),
        "attention_unet_3d": (1, 1, 8, 16, 16),
        "vnet": (1, 1, 8, 16, 16),
    },
    "graphs": {"gcn": (12, 8), "gin": (12, 8), "gated_gcn": (12, 8), "pointnet": (1, 3, 50)},
    "text": {"crnn": (1, 1, 32, 48), "dbnet": (1, 3, 32, 32), "svtr": (1, 3, 16, 32)},
    "detection": {"yolo": (1, 3, 32, 32), "shared_head": (1, 3, 32, 32), "centernet": (1, 3, 32, 32)},
    "tabular": {"tabnet": (4, 12), "tabular_resnet": (4, 12), "tabular_mlp": (4, 12)},
    "recurrent": {
        "deep_speech": (1, 1, 16, 20),
        "lstm_fcn": (1, 6, 24),
        "conv_lstm": (1, 4, 3, 12, 12),
        "siamese": (1, 2, 3, 32, 32),
    },
}


def builders() -> dict[str, Callable[[], nn.Module]]:
    """What builds each network, by its name."""
    from coverage_report.domains import detection, graphs, medical, recurrent, speech, tabular, text, video

    rooms = (speech, video, medical, graphs, text, detection, tabular, recurrent)
    return {name: build for room in rooms for name, build in room.NETWORKS.items()}
