"""One network: the module and its exported program folded and proven, and written as all kinds of files."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from coverage_report.trained import first_line

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["FORMS", "trial"]

Facts = dict[str, Any]


def trial(name: str, seed: int, sender: Connection) -> None:
    """Send what each form gives for a network as soon as it is known."""
    import torch

    from field_torch.networks import NETWORKS

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of foreign networks under foreign tracers
    network = next(network for network in NETWORKS if network.name == name)
    try:
        module, x = network.made(seed)
    except ModuleNotFoundError as error:
        sender.send({"failure": f"{error.name} is not installed"})
    except Exception as error:  # a foreign network's
        sender.send({"failure": first_line(error)})
    else:
        for form, made in FORMS.items():
            sender.send({form: _tried(made, module, x)})
    sender.close()


def _tried(form: Callable[..., Facts], module: nn.Module, x: torch.Tensor) -> Facts:
    begun = time.perf_counter()
    try:
        with TemporaryDirectory() as folder:
            facts = {"failure": None, **form(module, x, Path(folder))}
    except Exception as error:  # whatever a form raises is its row's reason
        return {"failure": first_line(error)}
    return {**facts, "seconds": round(time.perf_counter() - begun, 1)}


def _safetensors(module: nn.Module, x: torch.Tensor, folder: Path) -> Facts:
    """The module form, written and loaded again into the same architecture."""
    import torch

    import convbn
    from convbn.bench.models.outputs import named_outputs

    result = convbn.fuse(module, x)
    convbn.save_fused(module, result, folder / "a.safetensors")
    loaded = convbn.load_fused(folder / "a.safetensors", module)
    with torch.no_grad():
        pairs = zip(named_outputs(result.model(x)), named_outputs(loaded(x)), strict=True)
        if any(a.tobytes() != b.tobytes() for (_, a), (_, b) in pairs):
            raise ValueError("what was loaded again computes something else")
    return {**_said(result.report), "size": (folder / "a.safetensors").stat().st_size}


def _pt2(module: nn.Module, x: torch.Tensor, folder: Path) -> Facts:
    """The graph form, written as a torch.export archive and loaded again."""
    import torch

    import convbn
    from convbn.export.torch.save import export_program, save_program

    program = export_program(module, (x,))
    result = convbn.fuse(program, (x,))
    save_program(result.model, (x,), folder / "a.pt2")
    torch.export.load(folder / "a.pt2")
    return {**_said(result.report), "size": (folder / "a.pt2").stat().st_size}


def _onnx(module: nn.Module, x: torch.Tensor, folder: Path) -> Facts:
    """Exported to ONNX as it is, folded there, and compared with the module, if the export itself agrees with it.

    Where it does and the folded file does not, both may sort boxes of equal scores differently; that has to be shown.
    """
    import onnx

    import convbn
    from field_torch.ties import ties_between

    before = convbn.export_onnx(module, x, fold=False)
    after, report = convbn.fuse(before)
    onnx.save(after, folder / "a.onnx")
    answer = convbn.verify(module, folder / "a.onnx", example_inputs=x)
    exported = answer if answer else convbn.verify(module, before, example_inputs=x)
    tied = None
    if exported and not answer:
        tied = ties_between(before, after, {before.graph.input[0].name: x.numpy()})
        if tied is None or not tied.explain_all:
            raise ValueError(answer.reason)
    return {
        **_said(report),
        "export_agrees": bool(exported),
        "ties": None if tied is None else asdict(tied),
        "size": (folder / "a.onnx").stat().st_size,
    }


FORMS: dict[str, Callable[..., Facts]] = {"safetensors": _safetensors, "pt2": _pt2, "onnx": _onnx}


def _said(report: Any) -> Facts:
    return {
        "before": report.batchnorm.before,
        "left": report.batchnorm.after,
        "verify": report.verify["status"],
        "error": report.verify.get("largest_relative_error"),
        "kept": dict(Counter(str(kept.reason) for kept in report.kept)),
    }
