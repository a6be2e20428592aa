"""``convbn inspect`` on a TensorRT engine."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import TYPE_CHECKING, Any

from convbn.commands.steps.console import Console
from convbn.commands.steps.shared import console_of, write_json
from convbn.common.document.model import Facts
from convbn.common.text import shape_text
from convbn.errors import ConvBNError, UsageError

if TYPE_CHECKING:
    from convbn.export.engines.run.inspect import EngineReport

__all__ = ["is_engine", "run_on_engine"]


def is_engine(path: str) -> bool:
    """Whether the file begins as an engine does."""
    from convbn.export.files.sniff import ArtifactKind, sniff

    try:
        return sniff(path) is ArtifactKind.ENGINE
    except ConvBNError:
        return False  # a name of a hub, or something that opening it as a model says more of


def run_on_engine(options: argparse.Namespace) -> int:
    """Say what file and sidecar prove, and list the layers of an engine that is trusted where a GPU is."""
    from convbn.export.engines.run.inspect import inspect_engine

    if options.arch is not None or options.input_shape or options.only or options.skip:
        raise UsageError("options of a fold mean nothing for an engine", source=options.input)
    console = console_of(options)
    with console.phase("reading"):
        report = inspect_engine(options.input, trust=options.trust_engine)
    console.show(Facts(_facts(report)))
    _layers(report, console)
    write_json(options.json, report.to_dict())
    return 0


def _facts(report: EngineReport) -> list[tuple[str, str]]:
    header = report.header
    kind = header.backend or "an engine of unknown kind"
    rows = [
        ("engine", f"{report.path}, {header.size:,} bytes"),
        ("built with", f"{kind} {header.version or '(version not in the header)'}"),
        ("sha256", report.sha256),
    ]
    if report.sidecar is None:
        return [*rows, ("sidecar", report.no_sidecar or "none")]
    return [*rows, ("sidecar", "describes this file"), *_claims(report.sidecar)]


def _claims(sidecar: Any) -> list[tuple[str, str]]:
    device, scale = sidecar["device"], sidecar["scale_layers"]
    where = device if isinstance(device, str) else f"built on {device['name']}, driver {device['driver']}"
    rows = [
        ("model", f"{sidecar['onnx']['file'] or 'from memory'}, sha256 {sidecar['onnx']['sha256']}"),
        *_origin(sidecar["fold_summary"]),
        ("device", where),
        ("precision", f"{sidecar['precision']}, TF32 {'on' if sidecar['tf32'] else 'off'}"),
        *((kind[:-1], _tensor(tensor)) for kind in ("inputs", "outputs") for tensor in sidecar[kind]),
    ]
    for index, profile in enumerate(sidecar["profiles"]):
        spans = (
            f"{name}={':'.join(shape_text(bounds[k]) for k in ('min', 'opt', 'max'))}"
            for name, bounds in profile.items()
        )
        rows.append((f"profile {index}", ", ".join(spans)))
    if sidecar["options"]:
        rows.append(("options", ", ".join(f"{name}={value}" for name, value in sidecar["options"].items())))
    before = "not counted" if scale["before"] is None else scale["before"]
    rows.append(("Scale layers", f"{before} before, {scale['after']} after the fold"))
    rows += [("warning", text) for text in sidecar["warnings"]]
    return [*rows, ("command", sidecar["command"])]


def _origin(summary: Any) -> list[tuple[str, str]]:
    origin = (summary or {}).get("input", {})
    return [("folded from", f"{origin['path']}, sha256 {origin['sha256']}")] if origin.get("path") else []


def _layers(report: EngineReport, console: Console) -> None:
    console.say()
    if report.layers is None:
        console.say(f"layers are not listed: {report.no_layers}")
        return
    precisions = Counter(layer.precision or "unknown" for layer in report.layers)
    counted = ", ".join(f"{count} {name}" for name, count in precisions.most_common())
    console.say(f"{len(report.layers)} layers: {counted}")
    rows = [(layer.name, layer.type or "-", layer.precision or "-") for layer in report.layers]
    console.table(("layer", "type", "precision"), rows)


def _tensor(tensor: Any) -> str:
    return f"{tensor['name']} {tensor['dtype']} {shape_text(tensor['shape'])}"
