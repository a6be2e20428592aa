"""What every exporting process needs, imported once in the process that they are forked from."""

from __future__ import annotations

from importlib import import_module

from support.networks import torchvision_models

torchvision_models()  # before timm, which imports torchvision and may need the help in there
for _name in ("onnx", "onnxruntime", "onnxscript.optimizer", "timm", "torch.onnx._internal.exporter._core"):
    import_module(_name)
