"""The architectures exported by PyTorch's TorchScript exporter, with static and with open batch, unfused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coverage_report.architectures import Architecture, by_name
from coverage_report.export import SEED, model_path
from coverage_report.isolated import isolated
from coverage_report.trained import first_line, trained_network

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["FORMS", "export", "export_legacy", "form_path"]

#: Exporter and batch; the first is what :mod:`coverage_report.export` leaves in the same cache.
FORMS = ("dynamo", "legacy", "legacy-open")
TIMEOUT_S = 300.0


def form_path(cache: Path, name: str, form: str) -> Path:
    """Where one export of a network lies."""
    return model_path(cache, name) if form == "dynamo" else cache / "legacy" / f"{name}.{form}.onnx"


def export_legacy(cache: Path, architectures: Sequence[Architecture], tell: Callable[[str], None]) -> None:
    """Export what the cache lacks, each network in a process of its own.

    Args:
        cache: the folder; ``legacy/NAME.json`` says what could not be exported and why.
        architectures: what to export.
        tell: is told one line a network.
    """
    (cache / "legacy").mkdir(parents=True, exist_ok=True)
    for architecture in architectures:
        known = cache / "legacy" / f"{architecture.name}.json"
        if known.exists():
            continue
        failed, ended = isolated(_export, (str(cache), architecture.name), timeout_s=TIMEOUT_S)
        failed |= {"process": ended} if ended else {}
        known.write_text(json.dumps(failed) + "\n")
        tell(f"export {architecture.name}: {failed or 'done'}")


def export(module: nn.Module, x: torch.Tensor, path: Path, **options: Any) -> None:
    """Export a module unfused: whole, or not at all.

    Args:
        module: in eval mode.
        x: its input.
        path: the file.
        options: further ones of ``torch.onnx.export``.
    """
    import torch

    part = path.with_suffix(".part")
    # Otherwise this exporter folds some BatchNorms itself.
    torch.onnx.export(
        module,
        (x,),
        part,
        input_names=["x"],
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        **options,
    )
    part.rename(path)


def _export(cache: str, name: str, sender: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    failed: dict[str, Any] = {}
    module, (x,) = trained_network(by_name(name), SEED, 1)
    for form in FORMS[1:]:
        batch = {"dynamic_axes": {"x": {0: "N"}}} if form == "legacy-open" else {}
        try:
            export(module, x, form_path(Path(cache), name, form), **batch)
        except Exception as error:  # whatever a foreign model raises is the row's reason
            failed[form] = first_line(error)
    sender.send(failed)
    sender.close()
