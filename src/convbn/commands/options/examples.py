"""Two examples a verb, with which its ``--help`` ends; they need nothing but a model of the user's own."""

from __future__ import annotations

__all__ = ["EXAMPLES"]

EXAMPLES = {
    "inspect": ("convbn inspect model.onnx", "convbn inspect models/ --json report.json"),
    "fuse": (
        "convbn fuse model.onnx -o folded.onnx",
        "convbn fuse r50.pth --arch torchvision:resnet50 \\\n      --input-shape x:1x3x224x224 -o folded.safetensors",
    ),
    "verify": (
        "convbn verify model.onnx folded.onnx",
        "convbn verify model.onnx half.onnx --precision fp16 --layers",
    ),
    "refit": (
        "convbn refit folded.onnx --from new.onnx -o refitted.onnx",
        "convbn refit model.engine --trust-engine --from new.onnx -o new.engine",
    ),
    "export": (
        "convbn export model.onnx -o model.engine",
        "convbn export model.onnx -o half.onnx --precision fp16",
    ),
    "bench": (
        "convbn bench model.onnx --html report.html",
        "convbn bench model.onnx --runtime onnxruntime-cpu --fail-if 'ratio > 1.02'",
    ),
    "report": (
        "convbn report result.json --markdown -",
        "convbn report result.json --fail-if 'batchnorm.left > 0'",
    ),
    "compare": (
        "convbn compare before.json after.json",
        "convbn compare before.json after.json --markdown changes.md",
    ),
    "history": ("convbn history results/ -o history.html", "convbn history results/ -o history.html --force"),
    "run": ("convbn run plan.toml --init", "convbn run plan.toml --html fleet.html"),
    "doctor": ("convbn doctor", "convbn doctor --json -"),
}
