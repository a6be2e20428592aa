"""The whole road on a network that was really trained: train, fold, prove, export, engine, measure, report.

Run ``python examples/digits/road.py OUT_FOLDER``. Each step is one call of convbn's Python API; the command
line that does the same is printed beside it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch

sys.path.insert(0, str(Path(__file__).parent))

from data import digits
from network import digits_resnet
from train import accuracy, train

import convbn
from convbn.bench.report import html, markdown, terminal
from convbn.export.onnx_io.read import save_model

INPUT = (8, 1, 8, 8)
ENOUGH = 0.95
ARCH = "--arch network:digits_resnet --input-shape x:" + "x".join(map(str, INPUT))


def onnx_accuracy(model: onnx.ModelProto, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of the images that an ONNX model classifies right, in batches of its own fixed size."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    padding = -len(images) % INPUT[0]
    padded = np.concatenate([images, np.zeros((padding, *INPUT[1:]), np.float32)])
    logits = np.concatenate(
        [session.run(None, {name: batch})[0] for batch in np.split(padded, len(padded) // INPUT[0])]
    )
    return float((logits[: len(images)].argmax(1) == labels).mean())


def main() -> int:
    """Walk the road; exit code 1 if the network did not learn or a fold changed what it says."""
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    _, _, test_images, test_labels = digits()

    print("1  train a ResNet on scikit-learn's digits")
    checkpoint = out / "digits.pth"
    trained, _ = train()
    torch.save(trained.state_dict(), checkpoint)
    model = digits_resnet().eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    example = torch.from_numpy(test_images[: INPUT[0]])

    print(f"2  fold the module                convbn fuse {checkpoint.name} -o folded.safetensors {ARCH}")
    fold = convbn.fuse(model, example)
    report = fold.report
    tensors = out / "folded.safetensors"
    convbn.save_fused(model, fold, tensors, arch="network:digits_resnet", overwrite=True)
    folded = convbn.load_fused(tensors, digits_resnet)

    print(f"3  export it, unfused and folded  convbn export {checkpoint.name} -o folded.onnx {ARCH}")
    unfused = convbn.export_onnx(model, example, fold=False)
    fused = convbn.fuse(unfused)
    save_model(unfused, out / "unfused.onnx", overwrite=True)
    save_model(fused.model, out / "folded.onnx", overwrite=True)

    print("4  build the engine               convbn export folded.onnx -o digits.engine")
    engine = convbn.build_engine(
        fused.model,
        out / "digits.engine",
        backend="tensorrt-rtx",
        unfused_model=unfused,
        fold_summary=fused.report.to_dict(),
        overwrite=True,
    )

    print(f"5  measure                        convbn bench {checkpoint.name} --html report.html {ARCH}")
    # One thread: with more, a busy neighbour on a small machine widens every interval.
    result = convbn.bench(model, example_inputs=example, options=convbn.BenchOptions(threads=1))
    scores = {
        "PyTorch, original": accuracy(model, test_images, test_labels),
        "PyTorch, folded": accuracy(folded, test_images, test_labels),
        "ONNX, original": onnx_accuracy(unfused, test_images, test_labels),
        "ONNX, folded": onnx_accuracy(fused.model, test_images, test_labels),
    }
    scale = engine.sidecar["scale_layers"]
    facts = [{"label": f"Test accuracy, {name}", "value": f"{score:.2%}"} for name, score in scores.items()]
    seen = f"{scale['before']} → {scale['after']}"
    facts.append({"label": "Scale layers TensorRT-RTX sees", "value": seen})
    result = replace(result, title="Digits ResNet, original against folded", command="make demo", extra=facts)
    value = result.to_dict()
    (out / "report.json").write_text(json.dumps(value, indent=2))
    (out / "report.md").write_text(markdown.render(value))
    (out / "report.html").write_text(html.render(value))

    print()
    print(terminal.render(value))
    print(f"BatchNorms  module {report.batchnorm.before} → {report.batchnorm.after}, ", end="")
    print(f"ONNX {fused.report.batchnorm.before} → {fused.report.batchnorm.after}")
    print(f"proof       {fused.report.verify['status']}, {fused.report.verify['reason']}")
    print(f"accuracy    {', '.join(f'{name} {score:.2%}' for name, score in scores.items())}")
    print(f"engine      {engine.path} ({engine.size:,} bytes)")
    print(f"report      {out / 'report.html'}")
    good = min(scores.values()) > ENOUGH and len(set(scores.values())) == 1
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
