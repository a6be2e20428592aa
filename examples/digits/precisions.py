"""What lower precision costs on a network that was really trained: accuracy in fp32, fp16, bf16 and int8.

Run ``python examples/digits/precisions.py [PAGE.md]``. The table goes to the terminal and, between its two marks,
into the page. The original and the folded network are measured side by side.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

sys.path.insert(0, str(Path(__file__).parent))

from data import digits
from train import train

import convbn
from convbn.bench.equivalence.half_emulation import rounded_graph
from convbn.bench.equivalence.reference_run import execute
from convbn.converting import Conversion, converted
from convbn.export.precision.options import PrecisionOptions

BATCH = 50
CALIBRATION_IMAGES = 400
MOST_LOST = 0.5
"""Points of accuracy that a folded network may lose in any precision."""
START, END = "<!-- precision-table -->", "<!-- /precision-table -->"


@dataclass(frozen=True)
class Row:
    """One line: accuracy of the original and of the folded network, in percent, and the folded one's distance."""

    precision: str
    original: float
    folded: float
    lost: float
    rms_error: float
    same_class: float


PRECISIONS: dict[str, tuple[str, PrecisionOptions]] = {
    "fp32": ("fp32", PrecisionOptions()),
    "fp16": ("fp16", PrecisionOptions()),
    "bf16": ("bf16", PrecisionOptions()),
    "int8, minmax": ("int8", PrecisionOptions(method="minmax")),
    "int8, entropy": ("int8", PrecisionOptions(method="entropy")),
    "int8, entropy, rest fp16": ("int8", PrecisionOptions(method="entropy", rest="fp16")),
    "int8, percentile 99.99": ("int8", PrecisionOptions(method="percentile", percentile=99.99)),
}


def batches(images: np.ndarray, name: str) -> list[dict[str, np.ndarray]]:
    """Batches of the model's fixed size, the last one filled up with zeros."""
    padding = np.zeros((-len(images) % BATCH, *images.shape[1:]), np.float32)
    padded = np.concatenate([images, padding])
    return [{name: batch} for batch in np.split(padded, len(padded) // BATCH)]


def logits(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """What the model says in onnxruntime, float16 rounded after every node; bfloat16 in onnx's evaluator."""
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
    runnable = rounded_graph(model) if half else model
    outputs = execute(runnable or model, "model", batches(images, model.graph.input[0].name)).outputs
    return np.concatenate([sample[0] for sample in outputs])[: len(images)]


def measure(names: Sequence[str] = tuple(PRECISIONS)) -> list[Row]:
    """Train, export, convert in these precisions, the first of them fp32, and count."""
    torch.set_num_threads(1)  # so small a network gains nothing by more, and loses on a busy machine
    train_x, _, test_x, test_y = digits()
    module, _ = train()
    example = torch.from_numpy(test_x[:BATCH])
    unfused = convbn.export_onnx(module, example, fold=False)
    folded = convbn.fuse(unfused).model
    rng = np.random.default_rng(0)
    calibration = train_x[rng.choice(len(train_x), CALIBRATION_IMAGES, replace=False)]
    reference = logits(folded, test_x)
    rows: list[Row] = []
    for name in names:
        precision, options = PRECISIONS[name]

        def said(
            model: onnx.ModelProto, precision: str = precision, options: PrecisionOptions = options
        ) -> Any:
            data = None if precision == "fp32" else [calibration]
            return logits(converted(model, Conversion(precision, options, calibration=data)).model, test_x)

        plain, after = said(unfused), said(folded)
        correct = 100 * float((after.argmax(1) == test_y).mean())
        rows.append(
            Row(
                name,
                100 * float((plain.argmax(1) == test_y).mean()),
                correct,
                (rows[0].folded if rows else correct) - correct,
                float(np.linalg.norm(after - reference) / np.linalg.norm(reference)),
                100 * float((after.argmax(1) == reference.argmax(1)).mean()),
            )
        )
    return rows


def table(rows: list[Row]) -> str:
    """The table as Markdown, with what it was measured on."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "onnx", "torch", "numpy"))
    lines = [
        "| precision | original | folded | points lost, folded | RMS error of the logits | same class as fp32 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r.precision} | {r.original:.2f} % | {r.folded:.2f} % | {r.lost:.2f} | {r.rms_error:.1e} | "
        f"{r.same_class:.1f} % |"
        for r in rows
    ]
    lines += [
        "",
        f"Accuracy on 450 test images; int8 calibrated with {CALIBRATION_IMAGES} training images. {versions}; "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, CPU, "
        f"{time.strftime('%Y-%m-%d')}.",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure, show, write; exit code 1 if the folded network lost too much in any precision."""
    rows = measure()
    text = table(rows)
    print(text)
    if len(sys.argv) > 1:
        page = Path(sys.argv[1])
        before, _, rest = page.read_text().partition(START)
        _, _, after = rest.partition(END)
        page.write_text(f"{before}{START}\n{text}\n{END}{after}")
    return int(any(row.lost > MOST_LOST for row in rows))


if __name__ == "__main__":
    sys.exit(main())
