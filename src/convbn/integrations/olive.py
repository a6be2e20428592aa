"""A pass for Olive, named ``ConvBNFold`` in its workflows.

Olive knows passes by its package configuration, so write one that has this pass too, and give it to ``olive run``:

>>> write_package_config("olive-packages.json")
>>> olive.workflows.run({..., "passes": {"fold": {"type": "ConvBNFold"}}}, package_config="olive-packages.json")
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam

import convbn

__all__ = ["ConvBNFold", "write_package_config"]


class ConvBNFold(Pass):  # type: ignore[misc]
    """Folds every BatchNorm of an ONNX model that can be folded exactly, and proves that the outputs did not change.

    Options of the pass: ``only`` and ``skip`` (lists of rules), ``verify`` (true unless said otherwise).
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return {
            "only": PassConfigParam(
                type_=list[str], default_value=None, description="The only rules to use."
            ),
            "skip": PassConfigParam(type_=list[str], default_value=None, description="Rules not to use."),
            "verify": PassConfigParam(type_=bool, default_value=True, description="Compare the outputs."),
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        target = Path(resolve_onnx_path(output_model_path, Path(model.model_path).name))
        target.parent.mkdir(parents=True, exist_ok=True)
        options = convbn.FuseOptions(tuple(config.only or ()), tuple(config.skip or ()), config.verify)
        convbn.fuse_file(model.model_path, target, options=options, overwrite=True)
        return ONNXModelHandler(model_path=str(target.parent), onnx_file_name=target.name)


def write_package_config(path: str | os.PathLike[str]) -> None:
    """Write Olive's own package configuration with :class:`ConvBNFold` added to its passes.

    Raises:
        OSError: the file cannot be written.
    """
    config = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8"))
    everywhere = {f"supported_{what}": ["*"] for what in ("providers", "accelerators", "precisions")}
    nothing: dict[str, list[str]] = {"supported_algorithms": [], "supported_quantization_encodings": []}
    config["passes"][ConvBNFold.__name__] = {
        "module_path": f"{__name__}.{ConvBNFold.__name__}",
        **everywhere,
        **nothing,
    }
    Path(path).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
