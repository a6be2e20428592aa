"""One network in PyTorch: convbn on the module and on its exported program, ``torch.fx`` on the same module.

BatchNorms are counted by what runs or stands in the graph; what a report says is held against that.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from coverage_report.architectures import by_name
from coverage_report.torch_counts import Pass, batchnorm_nodes, error_between, passes, tried
from coverage_report.trained import batchnorms, first_line, trained_network

if TYPE_CHECKING:
    import torch
    from torch import nn

    from convbn.fuse.report import Report

__all__ = ["INPUTS", "TRIALS", "stages", "torch_trial"]

INPUTS = 2
Facts = dict[str, Any]


def torch_trial(name: str, seed: int, sender: Connection) -> None:
    """Send what each stage gives for an architecture as soon as it is known."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of foreign networks under foreign tracers
    try:
        module, inputs = trained_network(by_name(name), seed, INPUTS)
        for stage, facts in stages(module, inputs):
            sender.send({stage: facts})
            gc.collect()
    except Exception as error:  # a foreign network's; those of the tools do not come here
        sender.send({"network": {"failure": first_line(error)}})
    sender.close()


def stages(module: nn.Module, inputs: Sequence[torch.Tensor]) -> Iterator[tuple[str, Facts]]:
    """The network's facts, then those of each trial, by name.

    Args:
        module: in eval mode. No tool may change it, and after each it is looked whether that is so.
        inputs: the first is the example that captures are made with.
    """
    plain = passes(module, inputs)
    yield (
        "network",
        {
            "failure": None,
            "bn_modules": len(batchnorms(module)),
            "called": plain.modules,
            "batchnorms": plain.calls,
            "unrunnable": plain.broken,
        },
    )
    for name, trial in TRIALS.items():
        try:
            facts = {"failure": None, **trial(module, inputs, plain)}
        except Exception as error:  # whatever a tool raises is its row's reason
            facts = {"failure": first_line(error)}
        again = tried(module, inputs)
        facts["original_changed"] = not plain.broken and error_between(plain, again) != 0.0
        yield name, facts


def _module_form(module: nn.Module, inputs: Sequence[torch.Tensor], plain: Pass) -> Facts:
    """convbn on the module itself."""
    import convbn

    options = convbn.FuseOptions(verify=False, materialize=True)
    fused, report = convbn.fuse(module, inputs[0], options=options)
    after = tried(fused, inputs)
    return {
        "left": after.calls,
        "left_modules": after.modules,
        "class_kept": type(fused) is type(module),
        "how": report.how,
        **_judged(plain, after),
        **_said(report, after.calls),
    }


def _graph_form(module: nn.Module, inputs: Sequence[torch.Tensor], plain: Pass) -> Facts:
    """convbn on the program that torch.export makes of the module."""
    import torch

    import convbn

    begun = time.perf_counter()
    try:
        program = torch.export.export(module, (inputs[0],), strict=False)
    except Exception as error:  # torch.export's limits are not convbn's
        return {"not_exported": first_line(error)}
    exported = time.perf_counter() - begun
    fused, report = convbn.fuse(program, options=convbn.FuseOptions(verify=False))
    left = batchnorm_nodes(fused.graph_module)
    return {
        "not_exported": None,
        "before": batchnorm_nodes(program.graph_module),
        "left": left,
        "class_kept": type(fused) is type(program),
        "export_seconds": round(exported, 3),
        **_judged(plain, tried(fused.module(), inputs)),
        **_said(report, left),
    }


def _torch_fx(module: nn.Module, inputs: Sequence[torch.Tensor], plain: Pass) -> Facts:
    """What PyTorch brings along."""
    from torch.fx.experimental.optimization import fuse

    begun = time.perf_counter()
    fused = fuse(module)
    seconds = time.perf_counter() - begun
    after = tried(fused, inputs)
    return {
        "left": after.calls,
        "class_kept": type(fused) is type(module),
        "seconds": round(seconds, 3),
        **_judged(plain, after),
    }


TRIALS = {"module": _module_form, "graph": _graph_form, "fx": _torch_fx}


def _judged(expected: Pass, actual: Pass) -> Facts:
    return {"error": error_between(expected, actual), "unrunnable": actual.broken}


def _said(report: Report, left: int | None) -> Facts:
    """The report in short, and whether it counts what is really left."""
    never = sum(kept.reason == "never-called" for kept in report.kept)
    return {
        "said": report.batchnorm.after - never,
        "disagrees": report.batchnorm.after - never != left,
        "kept": dict(Counter(str(kept.reason) for kept in report.kept)),
        "folded": dict(Counter(folded.rule for folded in report.folded)),
        "capture_seconds": round(report.seconds.capture, 3),
        "fold_seconds": round(report.seconds.fold, 3),
    }
