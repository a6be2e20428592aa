"""The stages that trial nothing: what the machine is, equality against float64, and the kernels of one inference."""

from __future__ import annotations

import copy
import timeit
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from convbn.bench.cases.forms import in_precision
from convbn.bench.equivalence.difference import judge
from convbn.bench.models.feeds import model_feeds
from convbn.bench.runtimes.base import Variant
from convbn.bench.runtimes.registry import open_session
from gpu.result_folder import ResultFolder
from gpu.variants import torch_variants

__all__ = ["facts", "kernels", "machine", "proof"]


def machine() -> dict[str, Any]:
    """What results belong to: the device and what computes on it."""
    from convbn.bench.results.environment import library_versions

    gpu = torch.cuda.is_available()
    return {"device": torch.cuda.get_device_name() if gpu else "CPU", "libraries": library_versions()}


def facts(results: ResultFolder, networks: Sequence[str]) -> None:
    """What the device can do, and what a call of ``nn.Identity`` costs."""
    found = results.facts
    idle, x = nn.Identity(), torch.zeros(1)
    with torch.inference_mode():
        found["identity_us"] = min(timeit.repeat(lambda: idle(x), number=2000, repeat=5)) / 2000 * 1e6
    if torch.cuda.is_available():
        found["compute_capability"] = torch.cuda.get_device_capability()
        found["tf32_defaults"] = {
            "cudnn": torch.backends.cudnn.allow_tf32,
            "matmul": torch.backends.cuda.matmul.allow_tf32,
        }
        a = torch.empty(2**30, dtype=torch.uint8, device="cuda").random_()
        b, m = torch.empty_like(a), torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
        found["copy_tb_per_second"] = 2 * 2**30 / _seconds(lambda: b.copy_(a)) / 1e12
        found["bf16_tflops"] = 2 * 8192**3 / _seconds(lambda: m @ m) / 1e12
    results.save_facts()
    print(f"facts: {', '.join(f'{k} {v}' for k, v in found.items() if isinstance(v, float))}", flush=True)


def _seconds(work: Any, times: int = 10) -> float:
    for _ in range(3):
        work()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        work()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / times


def proof(results: ResultFolder, networks: Sequence[str]) -> None:
    """Each variant on the device in float32, TF32 off, against the original in float64 on the CPU."""
    runtime = "torch-cuda" if torch.cuda.is_available() else "torch-cpu"
    told = results.facts.setdefault("proof", {})
    for name in networks[:8]:
        if name in told or results.left() < 0:
            continue
        prepared = torch_variants(name, 2, peers=True)
        original: Any = prepared.variants[0].module
        examples = prepared.subject.example_inputs
        (feeds,) = model_feeds([original], shapes=None, seed=0, samples=1, example_inputs=examples)
        exact_module = copy.deepcopy(original).double()
        wide = {key: array.astype(np.float64) for key, array in feeds.items()}
        with open_session("torch-cpu", Variant("float64", module=exact_module)) as session:
            exact, names = session.run(wide), session.output_names
        rows = {}
        for variant in prepared.variants:
            try:
                with open_session(runtime, variant) as session:
                    outputs = [array.astype(np.float64) for array in session.run(feeds)]
            except Exception as error:  # whatever a variant's kernels refuse
                rows[variant.name] = {"failed": f"{type(error).__name__}: {str(error)[:200]}"}
                continue
            verdict = judge(names, [exact], [outputs], computed_in=("float32",), inputs_differ=True)
            error_of = [output.rel_error for output in verdict.outputs if output.rel_error is not None]
            rows[variant.name] = {"status": verdict.status, "relative_error": max(error_of, default=None)}
            print(f"proof {name}: {variant.name}: {rows[variant.name]}", flush=True)
        told[name] = rows
        results.save_facts()


def kernels(results: ResultFolder, networks: Sequence[str]) -> None:
    """How many kernels an inference starts, how long they run, and the memory that it takes at its peak."""
    told = results.facts.setdefault("kernels", {})
    gpu = torch.cuda.is_available()
    for precision, batch, last in (("fp32", 1, False), ("fp16" if gpu else "fp32", 64 if gpu else 2, True)):
        for name in networks[:8]:
            key = f"{name} b{batch} {precision}{' channels_last' if last else ''}"
            if key in told or results.left() < 0:
                continue
            prepared = torch_variants(name, batch, peers=True)
            rows = {}
            for variant in prepared.variants:
                try:
                    rows[variant.name] = _profiled(
                        in_precision(variant, precision, prepared.subject, 0), last
                    )
                except Exception as error:  # whatever a variant's kernels refuse
                    rows[variant.name] = {"failed": f"{type(error).__name__}: {str(error)[:200]}"}
            told[key] = rows
            results.save_facts()
            print(
                f"kernels {key}: " + ", ".join(f"{k}: {v.get('kernels')}" for k, v in rows.items()),
                flush=True,
            )


def _profiled(variant: Variant, last: bool) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity, profile

    gpu = torch.cuda.is_available()
    device, layout = ("cuda" if gpu else "cpu"), torch.channels_last if last else torch.contiguous_format
    moved: Any = copy.deepcopy(variant.module)
    module = moved.to(device=device, memory_format=layout)
    inputs = [value.to(device).contiguous(memory_format=layout) for value in variant.example_inputs or ()]
    with torch.inference_mode(), _no_tf32():
        for _ in range(3):
            module(*inputs)
        held = 0
        if gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
        with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as seen:
            module(*inputs)
            if gpu:
                torch.cuda.synchronize()
    spent = "self_device_time_total" if gpu else "self_cpu_time_total"
    events = sorted(
        (e for e in seen.key_averages() if getattr(e, spent) > 0), key=lambda e: -getattr(e, spent)
    )
    return {
        "kernels": sum(event.count for event in events),
        "kernel_us": sum(getattr(event, spent) for event in events),
        "peak_activation_bytes": torch.cuda.max_memory_allocated() - held if gpu else None,
        "top": [[event.key[:90], event.count, round(getattr(event, spent), 1)] for event in events[:12]],
    }


@contextmanager
def _no_tf32() -> Iterator[None]:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
