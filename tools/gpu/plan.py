"""What is tried in which stage, in order of worth: a run that is cut off has the best of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from gpu.networks import REPARAMETERISABLE
from gpu.result_folder import Trial

__all__ = ["TRIALS", "trials"]

#: Stages that trial, the main results first.
TRIALS = ("eager", "graphs", "compile", "onnxruntime", "engines")
BATCHES = (1, 64, 32, 256)
LAST = "torch-cudagraph@channels_last"


def trials(stage: str, networks: Sequence[str]) -> list[Trial]:
    """The trials of a stage.

    Args:
        stage: its name.
        networks: their names, in order of worth.
    """
    made = {
        "eager": _eager,
        "graphs": _graphs,
        "compile": _compile,
        "onnxruntime": _onnxruntime,
        "engines": _engines,
    }[stage](networks)
    first: dict[str, Trial] = {}
    for trial in made:
        first.setdefault(trial.key, trial)
    return list(first.values())


def _eager(networks: Sequence[str]) -> Iterator[Trial]:
    for name in networks:  # the peers of a network take longer to make than to measure
        peers = name in networks[:8] or name in REPARAMETERISABLE
        yield Trial("eager", name, 1, "fp32", "torch-cuda", peers=peers)
    for name in networks:
        yield Trial("eager", name, 1, "fp16", "torch-cuda@channels_last")
    for name in networks[:6]:
        yield Trial("eager", name, 64, "fp16", "torch-cuda@channels_last", peers=True)
        yield Trial("eager", name, 32, "fp32", "torch-cuda@tf32")
        yield Trial("eager", name, 32, "fp32", "torch-cuda@tf32+cudnn-benchmark")


def _graphs(networks: Sequence[str]) -> Iterator[Trial]:
    for name in networks[:4]:
        yield Trial("graphs", name, 1, "fp16", LAST, peers=True)
        yield Trial("graphs", name, 64, "fp16", LAST, peers=True)
    for name in networks[4:]:
        yield Trial("graphs", name, 64, "fp16", LAST)
    for name in networks[:6]:
        yield Trial("graphs", name, 32, "fp32", "torch-cudagraph")
        yield Trial("graphs", name, 32, "fp32", "torch-cudagraph@tf32")
    # Then everything: layouts, precisions, batches, the first networks first.
    for batch, name in product(BATCHES, networks):
        for level in ("channels_last", ""):
            for precision in ("fp16", "bf16"):
                yield Trial("graphs", name, batch, precision, f"torch-cudagraph@{level}".rstrip("@"))
            for arithmetic in ("tf32", ""):
                levels = "+".join(filter(None, (level, arithmetic)))
                yield Trial("graphs", name, batch, "fp32", f"torch-cudagraph@{levels}".rstrip("@"))


def _compile(networks: Sequence[str]) -> Iterator[Trial]:
    small = [name for name in ("resnet18", "mobilenet_v2", "repvgg_a0") if name in networks] or networks[:2]
    for level in ("channels_last", "channels_last+freezing"):
        for name, batch in zip(small, (1, 64, 64), strict=False):
            yield Trial("compile", name, batch, "fp16", f"torch-compile-cuda@{level}")
    for level in ("reduce-overhead", "max-autotune", "max-autotune+freezing"):
        yield Trial("compile", small[0], 1, "fp16", f"torch-compile-cuda@channels_last+{level}")
    for name in networks:
        yield Trial("compile", name, 1, "fp32", "torch-compile-cuda")


def _onnxruntime(networks: Sequence[str]) -> Iterator[Trial]:
    kinds = ("decoder", "mobilenet_v2", "resnet50", "densenet121")
    for name in [name for name in kinds if name in networks] or networks[:2]:
        for level in ("off", "all"):
            yield Trial("onnxruntime", name, 1, "fp32", f"onnxruntime-cuda@{level}")
        for level in ("all", "all+nhwc", "all+cuda-graph"):
            yield Trial("onnxruntime", name, 32, "fp16", f"onnxruntime-cuda@{level}")
        yield Trial("onnxruntime", name, 32, "fp32", "onnxruntime-cuda@all+tf32")
        yield Trial("onnxruntime", name, 32, "bf16", "onnxruntime-cuda@all")


def _engines(networks: Sequence[str]) -> Iterator[Trial]:
    for name in networks[:4]:
        for precision in ("fp16", "fp32"):
            for runtime in ("tensorrt-rtx", "tensorrt-rtx@enqueue", "tensorrt", "onnxruntime-tensorrt"):
                yield Trial("engines", name, 1, precision, runtime)
