"""What lower precision costs on networks that were really trained: accuracy in fp32, fp16, bf16 and int8.

Run ``python examples/digits/precisions.py [PAGE.md]``. The tables go to the terminal and, between two marks, into the
page; what each layer loses alone goes into a picture beside it. The original and the folded network are measured side
by side, and other quantisers on the same data (:mod:`peers`).
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import torch

sys.path.insert(0, str(Path(__file__).parent))

from data import digits
from networks import NETWORKS
from peers import PEERS, quantised_by
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


PLAIN = {"equalise": False, "correct_biases": False}
PRECISIONS: dict[str, tuple[str, PrecisionOptions]] = {
    "fp32": ("fp32", PrecisionOptions()),
    "fp16": ("fp16", PrecisionOptions()),
    "bf16": ("bf16", PrecisionOptions()),
    "int8": ("int8", PrecisionOptions()),
    "int8, not equalised": ("int8", PrecisionOptions(equalise=False)),
    "int8, neither equalised nor corrected": ("int8", PrecisionOptions(**PLAIN)),
    "int8, minmax": ("int8", PrecisionOptions(method="minmax")),
    "int8, entropy": ("int8", PrecisionOptions(method="entropy")),
    "int8, rest fp16": ("int8", PrecisionOptions(rest="fp16")),
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


def measure(names: Sequence[str] = tuple(PRECISIONS), network: str = "ResNet") -> list[Row]:
    """Train, export, convert in these precisions or by these peers, the first of them fp32, and count."""
    return trained(network).rows(names)


class Trained:
    """A trained network as ONNX, as it is and folded, with the data."""

    def __init__(self, network: str) -> None:
        torch.set_num_threads(1)  # so small a network gains nothing by more, and loses on a busy machine
        train_x, _, self.images, self.labels = digits()
        module, _ = train(network=NETWORKS[network])
        self.unfused = convbn.export_onnx(module, torch.from_numpy(self.images[:BATCH]), fold=False)
        self.folded = convbn.fuse(self.unfused).model
        rng = np.random.default_rng(0)
        self.calibration = train_x[rng.choice(len(train_x), CALIBRATION_IMAGES, replace=False)]

    def rows(self, names: Sequence[str]) -> list[Row]:
        """A row for each precision or peer that works; the reason to the terminal for the others."""
        reference = logits(self.folded, self.images)
        best = self.accuracy(reference)
        found = []
        for name in names:
            made = [self.converted(model, name) for model in (self.unfused, self.folded)]
            if isinstance(made[0], str) or isinstance(made[1], str):
                print(f"{name}: {made[1] if isinstance(made[1], str) else made[0]}")
                continue
            plain, after = (logits(model, self.images) for model in made)
            gap = float(np.linalg.norm(after - reference) / np.linalg.norm(reference))
            same = 100 * float((after.argmax(1) == reference.argmax(1)).mean())
            correct = self.accuracy(after)
            found.append(Row(name, self.accuracy(plain), correct, best - correct, gap, same))
        return found

    def converted(self, model: onnx.ModelProto, name: str) -> onnx.ModelProto | str:
        """The model in a precision or by a peer, or why there is none."""
        if name in PEERS:
            return quantised_by(name, model, np.split(self.calibration, len(self.calibration) // BATCH))
        precision, options = PRECISIONS[name]
        data = None if precision == "fp32" else [self.calibration]
        return converted(model, Conversion(precision, options, calibration=data)).model

    def losses(self) -> list[tuple[str, float]]:
        """What each layer of the folded network loses by being quantised alone, in running order."""
        options = PrecisionOptions(sensitivity=True)
        record = converted(self.folded, Conversion("int8", options, calibration=[self.calibration])).record
        error = {loss["node"]: loss["error"] for loss in record["sensitivity"]}
        return [(node.name, error[node.name]) for node in self.folded.graph.node if node.name in error]

    def accuracy(self, said: np.ndarray) -> float:
        """In percent."""
        return 100 * float((said.argmax(1) == self.labels).mean())


trained = cache(Trained)
"""Each network once: training takes most of the time."""


def bars(title: str, rows: list[tuple[str, float]]) -> str:
    """A bar plot as SVG, readable on light and on dark pages."""
    height, left, wide = 18, 230, 420
    most = max(value for _, value in rows) or 1.0
    drawn = [
        f'<text x="0" y="14" font-weight="bold">{title}</text>',
        *(
            f'<text x="{left - 8}" y="{height * i + 42}" text-anchor="end">{name[-34:]}</text>'
            f'<rect x="{left}" y="{height * i + 31}" width="{wide * value / most:.1f}" height="13" fill="#4f8fd6"/>'
            f'<text x="{left + wide * value / most + 6:.1f}" y="{height * i + 42}">{value:.1e}</text>'
            for i, (name, value) in enumerate(rows)
        ),
    ]
    size = f'width="{left + wide + 70}" height="{height * len(rows) + 40}"'
    style = 'font-family="sans-serif" font-size="11" fill="#808890"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>' + "\n".join(drawn) + "</svg>\n"


def table(rows: dict[str, list[Row]]) -> str:
    """The table as Markdown, with what it was measured on."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "onnx", "torch", "numpy"))
    lines = []
    for network, found in rows.items():
        lines += [
            f"**{network}**",
            "",
            "| precision | original | folded | points lost, folded | RMS error of the logits | same class as fp32 |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {r.precision} | {r.original:.2f} % | {r.folded:.2f} % | {r.lost:.2f} | {r.rms_error:.1e} | "
            f"{r.same_class:.1f} % |"
            for r in found
        ]
        lines.append("")
    lines.append(
        f"Accuracy on 450 test images; int8 calibrated with {CALIBRATION_IMAGES} training images. {versions}; "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, CPU, "
        f"{time.strftime('%Y-%m-%d')}."
    )
    return "\n".join(lines)


def main() -> int:
    """Measure, show, write; exit code 1 if a folded network lost too much in any precision of ours."""
    rows: dict[str, list[Row]] = {}
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    for network in NETWORKS:
        rows[network] = measure((*PRECISIONS, *PEERS), network)
    text = table(rows)
    print(text)
    if page is not None:
        before, _, rest = page.read_text().partition(START)
        _, _, after = rest.partition(END)
        page.write_text(f"{before}{START}\n{text}\n{END}{after}")
        if (pictures := page.parent / "img").is_dir():
            title = "The network's output error with one layer alone in int8 (MobileNetV2)"
            (pictures / "sensitivity.svg").write_text(bars(title, trained("MobileNetV2").losses()))
    return int(
        any(row.lost > MOST_LOST for found in rows.values() for row in found if row.precision in PRECISIONS)
    )


if __name__ == "__main__":
    sys.exit(main())
