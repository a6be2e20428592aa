"""What the tour says, measured on the digits: ``measure.py OUT.json`` (``make tour``). One function a claim."""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "digits"))

from data import digits
from networks import OverTokens, Stack, Transformer
from train import accuracy
from train import train as train_digits

import convbn

BATCH = 64
SEEDS = (0, 1, 2)
KINDS = {"plain": (False, False), "plain + BatchNorm": (False, True), "residual + BatchNorm": (True, True)}


def trained(model: nn.Module, *, rate: float, epochs: int, batch: int = BATCH, seed: int = 0) -> float:
    """Train with SGD, momentum and a rate that rises and falls; the mean loss of the last epoch."""
    images, labels = (torch.from_numpy(array) for array in digits()[:2])
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    steps = epochs * -(-len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    last = 0.0
    for _ in range(epochs):
        # A last batch of one would have no variance.
        parts = [
            part for part in torch.randperm(len(images), generator=generator).split(batch) if len(part) > 1
        ]
        total = 0.0
        for part in parts:
            loss = nn.functional.cross_entropy(model(images[part]), labels[part])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        last = total / len(parts)
    return last


def gradients() -> list[dict[str, Any]]:
    """The first layer's gradient as a share of the last's, and the loss after six epochs; medians of three seeds."""
    images, labels = (torch.from_numpy(array[:256]) for array in digits()[:2])
    rows = []
    for kind, (shortcut, norm) in KINDS.items():
        for depth in (4, 16, 64):
            shares, losses = [], []
            for seed in SEEDS:
                torch.manual_seed(seed)
                model = Stack(depth, shortcut, norm)
                nn.functional.cross_entropy(model(images), labels).backward()
                first, last = (model.layers[place].conv.weight.grad for place in (0, -1))
                shares.append(float(first.square().mean().sqrt() / last.square().mean().sqrt()))
                losses.append(trained(model, rate=0.05, epochs=6, seed=seed))
            rows.append({"kind": kind, "depth": depth, "share": _middle(shares), "loss": _middle(losses)})
    return rows


def batchnorm() -> dict[str, Any]:
    """Accuracy of eight plain layers at four learning rates, and how far inference is from ``s·x + t``."""
    test = digits()[2:]
    rows = []
    for rate in (0.001, 0.01, 0.1, 1.0):
        row: dict[str, Any] = {"rate": rate}
        for name, norm in (("without", False), ("with", True)):
            torch.manual_seed(0)
            model = Stack(8, False, norm)
            trained(model, rate=rate, epochs=10)
            row[name] = accuracy(model, *test)
        rows.append(row)
    layer = nn.BatchNorm2d(16).double()
    torch.manual_seed(0)
    for tensor in (layer.weight, layer.bias, layer.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(layer.running_var, 0.5, 2.0)
    x = torch.randn(8, 16, 8, 8, dtype=torch.float64)
    scale = layer.weight / (layer.running_var + layer.eps).sqrt()
    shift = layer.bias - layer.running_mean * scale
    with torch.no_grad():
        apart = (layer.eval()(x) - (scale[:, None, None] * x + shift[:, None, None])).abs().max()
    return {"rates": rows, "affine": float(apart)}


def layernorm() -> list[dict[str, Any]]:
    """A Transformer with either normalisation: what an image's neighbours in the batch do to it, and its accuracy."""
    test = digits()[2:]
    images = torch.from_numpy(test[0])
    rows = []
    for name, norm in (("LayerNorm", nn.LayerNorm), ("BatchNorm", OverTokens)):
        for batch in (2, 8, 64):
            torch.manual_seed(0)
            model = Transformer(norm)
            trained(model, rate=0.02, epochs=10, batch=batch)
            score = accuracy(model, *test)
            model.train()
            with torch.no_grad():
                one, other = model(images[:batch]), model(torch.cat([images[:1], images[-batch + 1 :]]))
            apart = float((one[0] - other[0]).abs().max() / one[0].abs().max())
            rows.append({"norm": name, "batch": batch, "accuracy": score, "neighbours": apart})
    return rows


def ensemble() -> list[dict[str, Any]]:
    """Take one layer out of a trained network, each in turn: with shortcuts and without."""
    test = digits()[2:]
    rows = []
    for name, shortcut in (("residual", True), ("plain (VGG)", False)):
        torch.manual_seed(0)
        model = Stack(16, shortcut, True)
        trained(model, rate=0.1, epochs=15)
        whole = accuracy(model, *test)
        without = []
        for place, layer in enumerate(model.layers):
            model.layers[place] = nn.Identity()
            without.append(accuracy(model, *test))
            model.layers[place] = layer
        rows.append({"kind": name, "whole": whole, "without": without})
    return rows


def folding() -> dict[str, Any]:
    """Fold the digits ResNet, prove it, build its engine, and time it against the original, side by side."""
    test = digits()[2:]
    model, score = train_digits()
    example = torch.from_numpy(test[0][:8])
    fold = convbn.fuse(model, example)
    result = convbn.bench(model, example_inputs=example, options=convbn.BenchOptions(threads=1)).to_dict()
    times = [
        {
            "runtime": row["runtime"],
            "ratio": "{median:.3f} [{low:.3f}, {high:.3f}]".format(**row["ratio"])
            if row["ratio"]
            else "not measured",
        }
        for case in result["cases"]
        for row in case["rows"]
        if row["side"] == "folded"
    ]
    with tempfile.TemporaryDirectory() as folder:
        graph = convbn.export_onnx(model, example)
        engine = convbn.build_engine(graph, Path(folder) / "digits.engine", backend="tensorrt-rtx")
    return {
        "batchnorms": [fold.report.batchnorm.before, fold.report.batchnorm.after],
        "accuracy": [score, accuracy(fold.model, *test)],
        "proof": fold.report.verify["reason"],
        "times": times,
        "engine_bytes": engine.size,
    }


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


PARTS = {part.__name__: part for part in (gradients, batchnorm, layernorm, ensemble, folding)}


def main(out: Path, names: list[str]) -> None:
    """Measure these parts, or all, and write them beside what the file has of the others."""
    torch.set_num_threads(1)
    found = json.loads(out.read_text()) if out.exists() else {}
    for name in names or PARTS:
        found[name] = PARTS[name]()
        print(name, json.dumps(found[name])[:2000], flush=True)
    packages = ("convbn", "torch", "onnxruntime", "scikit-learn")
    found["machine"] = {
        "processor": platform.machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
