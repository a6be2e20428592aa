"""What TensorRT-RTX makes of three networks, unfused and folded, in fp32, fp16 and int8.

Run ``python tools/performance/engines.py [--only NAME]... DOCUMENT RESULT``. It counts the Scale layers that the
parser sees, one for each BatchNorm, and gives the engine's size and how long the build took. No GPU is needed,
and no inference is timed. It writes the document (Markdown) and the result (JSON).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.extend(str(Path(__file__).resolve().parents[2] / folder) for folder in ("tools", "tests"))

from coverage_report.trained import as_trained
from support.networks import torchvision_models

import convbn
from convbn.converting import Conversion, converted
from convbn.errors import CheckFailedError
from convbn.export.loading.source_model import SourceModel

BACKEND = "tensorrt-rtx"
NETWORKS = ("resnet50", "mobilenet_v2", "densenet121")
PRECISIONS = ("fp32", "fp16", "int8")
SHAPE = (1, 3, 224, 224)
SAMPLES = 8
#: What a densenet keeps: BatchNorms that several layers read through a ReLU.
MOST_SCALES = {"resnet50": 0, "mobilenet_v2": 0, "densenet121": 62}
_HEAD = """# Engines

TensorRT-RTX {rtx}, built without a GPU by `make engines-report` on {machine}, {date}. Input {shape};
torchvision's architectures with random weights and BatchNorms as training leaves them, so sizes and layers are those of
the real networks and outputs mean nothing; int8 is calibrated with {samples} random inputs. The other versions:
{versions}. **No inference was timed: there was no GPU.**

*Scale layers* is what the parser sees before TensorRT optimises, one for each BatchNorm. *Built* is the wall-clock
time of parsing and building in one run on a shared machine. *Error* is that of the folded model in this precision
against the unfused one in fp32, in onnxruntime: `max |a − b| / max |a|` for fp32 and fp16, `‖a − b‖ / ‖a‖` for int8
([what is allowed](precision.md)).

| network | precision | Scale layers, unfused → folded | engine, unfused → folded | built, unfused → folded | error |
|---|---|---:|---:|---:|---:|
"""


def main() -> int:
    """Build and write; exit code 1 if the parser sees more Scale layers than a folded network should have."""
    parser = argparse.ArgumentParser(description="docs/engines.md")
    parser.add_argument("document", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument(
        "--only", action="append", choices=NETWORKS, help="only this network; may be repeated"
    )
    options = parser.parse_args()
    rows = [row for name in options.only or NETWORKS for row in network_rows(name)]
    facts = {
        "rtx": version("tensorrt-rtx-cu13"),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d"),
        "shape": "x".join(map(str, SHAPE)),
        "samples": SAMPLES,
        "versions": ", ".join(
            f"{name} {version(name)}" for name in ("onnx", "onnxruntime", "torch", "torchvision")
        ),
    }
    options.document.write_text(_HEAD.format(**facts) + "\n".join(map(line, rows)) + "\n")
    options.result.write_text(json.dumps({"schema_version": "1", **facts, "rows": rows}, indent=1) + "\n")
    return int(any(row["folded"]["scale_layers"] > MOST_SCALES[row["network"]] for row in rows))


def network_rows(name: str) -> list[dict[str, Any]]:
    """A row a precision."""
    import torch

    torch.manual_seed(0)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    module = as_trained(torchvision_models().get_model(name, weights=None), x, 0)
    unfused = convbn.export_onnx(module, x, fold=False)
    folding = convbn.fuse(unfused)
    inputs = [
        np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32) for seed in range(SAMPLES)
    ]
    rows = []
    for precision in PRECISIONS:
        row: dict[str, Any] = {"network": name, "precision": precision}
        for side, model in (("unfused", unfused), ("folded", folding.model)):
            row[side] = built(model, unfused, precision, inputs)
        row["error"] = row["folded"].pop("error")
        del row["unfused"]["error"]
        if precision == "fp32":
            row["error"] = max(output["rel_error"] for output in folding.report.verify["outputs"])
        rows.append(row)
        print(line(row), file=sys.stderr, flush=True)
    return rows


def built(model: Any, unfused: Any, precision: str, inputs: list[Any]) -> dict[str, Any]:
    """One engine: what the parser saw, size, seconds, and the error of its model."""
    data = None if precision == "fp32" else inputs
    result = converted(model, Conversion(precision, calibration=data), SourceModel(unfused))
    with tempfile.TemporaryDirectory() as folder:
        artifact = convbn.build_engine(
            result.model,
            Path(folder) / "a.engine",
            backend=BACKEND,
            precision=precision,
            conversion=result.record,
        )
    sidecar: dict[str, Any] = dict(artifact.sidecar)
    outputs = result.record.get("verify", {}).get("outputs", [])
    key = "rms_error" if precision == "int8" else "rel_error"
    return {
        "scale_layers": sidecar["scale_layers"]["after"],
        "layers": sum(sidecar["layers"].values()),
        "bytes": artifact.size,
        "build_seconds": sidecar["build_seconds"],
        "error": max((output[key] for output in outputs), default=None),
    }


def line(row: dict[str, Any]) -> str:
    """A row as Markdown."""
    a, b = row["unfused"], row["folded"]
    return (
        f"| {row['network']} | {row['precision']} | {a['scale_layers']} → {b['scale_layers']} | "
        f"{a['bytes'] / 1e6:.1f} → {b['bytes'] / 1e6:.1f} MB | "
        f"{a['build_seconds']:.1f} → {b['build_seconds']:.1f} s | {row['error']:.1e} |"
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CheckFailedError as error:
        sys.exit(f"engines.py: {error}")
