"""Unfused ONNX files of the architectures, with inputs and float64 truth, in a cache folder.

For each there are ``<name>.onnx`` (every γ positive), ``<name>.signed.onnx`` (γ of both signs), arrays beside
each (``.npz``: inputs ``x_k``, float64 truth ``truth_k_i`` from the module itself, float32 outputs
``reference_k_i`` of onnxruntime with its optimisations off, for input k and output i), and ``<name>.json``, which
says what was done or why it could not be.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coverage_report.architectures import Architecture, by_name
from coverage_report.graphs import count_batchnorms, multiply_initializers, run_plain
from coverage_report.isolated import isolated
from coverage_report.trained import batchnorms, first_line, flip_signs, trained_network

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

__all__ = ["VARIANTS", "export_all", "model_path", "sidecar"]

SEED = 0
VARIANTS = ("", ".signed")
INPUTS = 4
"""Rounding errors of one input scatter by a factor of several; the largest of four says more."""
TIMEOUT_S = 180.0


def model_path(cache: Path, name: str, variant: str = "") -> Path:
    """Where an exported model lies."""
    return cache / "models" / f"{name}{variant}.onnx"


def sidecar(cache: Path, name: str) -> dict[str, Any] | None:
    """What is known of an export; None if it was not tried."""
    path = cache / "models" / f"{name}.json"
    if not path.exists():
        return None
    facts: dict[str, Any] = json.loads(path.read_text())
    return facts


def export_all(
    cache: Path, architectures: Sequence[Architecture], tell: Callable[[str], None], *, retry: bool = False
) -> None:
    """Export what is not in the cache yet, each in a process of its own, forked from one that has torch.

    Args:
        cache: the folder.
        architectures: what to export.
        tell: is told one line a model.
        retry: try those again that could not be exported or run.
    """
    (cache / "models").mkdir(parents=True, exist_ok=True)
    for architecture in architectures:
        known = sidecar(cache, architecture.name)
        if known is not None and not (retry and _failed(known)):
            continue
        start = time.perf_counter()
        facts, ended = isolated(_export_one, (str(cache), architecture.name), timeout_s=TIMEOUT_S)
        facts = facts or {"failed": ended or "the process ended without a word"}
        seconds = round(time.perf_counter() - start, 2)
        facts = {"name": architecture.name, "failed": None, **facts, "seconds": seconds}
        (cache / "models" / f"{architecture.name}.json").write_text(json.dumps(facts, indent=1) + "\n")
        tell(f"export {architecture.name}: {facts['failed'] or facts['batchnorms']} ({seconds} s)")


def _failed(facts: dict[str, Any]) -> bool:
    return bool(facts["failed"]) or any(variant["unrunnable"] for variant in facts["variants"].values())


def _export_one(cache: str, name: str, sender: Connection) -> None:
    try:
        facts = export_one(Path(cache), by_name(name))
    except Exception as error:  # whatever a foreign model raises is the row's reason
        facts = {"failed": first_line(error)}
    gc.collect()
    sender.send(facts)
    sender.close()


def export_one(cache: Path, architecture: Architecture) -> dict[str, Any]:
    """Build, randomise and export one architecture in both variants; its facts."""
    import numpy as np
    import onnx
    import torch

    from convbn.export.torch.save import export_onnx

    torch.set_num_threads(2)
    module, inputs = trained_network(architecture, SEED, INPUTS)
    x = inputs[0]
    model = export_onnx(module, x)
    facts: dict[str, Any] = {
        "bn_modules": sum(1 for _ in batchnorms(module)),
        "batchnorms": count_batchnorms(model),
        "nodes": len(model.graph.node),
        "parameters": sum(p.numel() for p in module.parameters()),
        "shape": list(architecture.shape),
        "variants": {},
    }
    for variant in VARIANTS:
        if variant:
            flips = flip_signs(module, SEED)
            if not multiply_initializers(model, flips):  # some γ is not stored under its own name
                model = export_onnx(module, x)
        path = model_path(cache, architecture.name, variant)
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for k, values in enumerate(inputs):
            arrays[f"x_{k}"] = values.numpy()
            arrays |= {f"truth_{k}_{i}": value for i, value in enumerate(_truth(module, values))}
        onnx.save(model, path)
        try:
            outputs = [run_plain(path, values.numpy()) for values in inputs]
        except Exception as error:
            facts["variants"][variant] = {"unrunnable": str(error).splitlines()[0][:300]}
        else:
            finite = all(np.isfinite(value).all() for given in outputs for value in given)
            if finite:
                arrays |= {
                    f"reference_{k}_{i}": v for k, given in enumerate(outputs) for i, v in enumerate(given)
                }
            facts["variants"][variant] = {"unrunnable": None if finite else "its outputs hold Inf or NaN"}
        np.savez(path.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]  # the stub wants a bool
        facts["variants"][variant]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return facts


def _truth(module: nn.Module, x: torch.Tensor) -> list[np.ndarray[Any, Any]]:
    """Outputs in float64; none where a module insists on float32 inside."""
    import torch

    try:
        with torch.no_grad():
            outputs = copy.deepcopy(module).double()(x.double())
    except RuntimeError:
        return []
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    tensors = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    return [tensor.numpy() for tensor in tensors] if all(t.dtype == torch.float64 for t in tensors) else []
