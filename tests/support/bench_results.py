"""Results of ``convbn bench`` by the published schema, made up: for tests of reports, gates and comparisons."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

__all__ = [
    "HOSTILE",
    "case",
    "control",
    "equality",
    "fold",
    "gate",
    "gates",
    "hostile",
    "losses",
    "many",
    "one",
    "ratio",
    "row",
    "times",
]

HOSTILE = [
    "<script>alert(1)</script>",
    "\"' onload='x' ` | \n\n# h1",
    "a\u202egnp.exe",
    "\x1b[31mred\x07\x00",
    "![x](http://evil.example/x.png) @everyone www.evil.example",
    "x" * 10_000,
    "</style></title><img src=x onerror=alert(1)>",
    "\ud800 lone \ufffe",
    "=cmd|' /C calc'!A0",
    "]]><!--&amp;",
]

_SHAPE = {"min": 0.9, "p25": 0.97, "median": 1, "p75": 1.03, "p90": 1.1, "p95": 1.2, "p99": 1.5, "max": 9}

#: name, milliseconds unfused in eager PyTorch, BatchNorms, of them merged into branches, of them kept
_MODELS = (
    ("resnet18", 41.0, 20, 0, 0),
    ("resnet50", 98.2, 53, 0, 0),
    ("vgg16_bn", 305.0, 13, 0, 0),
    ("mobilenet_v2", 17.4, 52, 0, 0),
    ("mobilenet_v3_small", 6.9, 34, 0, 0),
    ("efficientnet_b0", 29.8, 49, 0, 0),
    ("densenet121", 88.0, 121, 0, 62),
    ("googlenet", 33.1, 57, 0, 0),
    ("shufflenet_v2_x1_0", 10.2, 56, 0, 0),
    ("regnet_y_400mf", 16.0, 69, 0, 0),
    ("repvgg_a0", 52.3, 60, 38, 0),
    ("preact_resnet18", 43.6, 17, 0, 8),
)


def times(median: float) -> dict[str, Any]:
    """A distribution around ``median`` seconds, with a long tail."""
    return {key: value * median for key, value in _SHAPE.items()} | {"mean": median, "cv": 0.1, "n": 400}


def equality(name: str = "logits", status: str = "equal") -> dict[str, Any]:
    """A comparison of one output."""
    output = {
        "name": name,
        "dtype": "float32",
        "shape": [2, 10],
        "max_abs_error": 1.5e-6,
        "rel_error": 2.5e-7,
        "worst_channel_error": None,
        "bound": 3.45e-4,
        "ok": status == "equal",
    }
    return {
        "status": status,
        "reason": "because",
        "outputs": [output],
        "samples": 2,
        "seed": 0,
        "input_scale": 1.0,
        "runtime": "onnxruntime-cpu@off",
        "versions": {},
    }


def ratio(low: float, median: float, high: float) -> dict[str, Any]:
    """A time ratio with its interval."""
    return {"median": median, "low": low, "high": high, "confidence": 0.95, "pairs": 30}


def row(
    runtime: str,
    side: str,
    verdict: str | None,
    interval: tuple[float, float, float] | None = None,
    *,
    seconds: float = 2e-3,
) -> dict[str, Any]:
    """One side in one runtime; without a verdict it was not measured."""
    measured = verdict is not None
    median = seconds * (interval[1] if interval else 1.0)
    return {
        "runtime": runtime,
        "side": side,
        "status": "measured" if measured else "not measured",
        "reason": None if measured else "it has no GPU; buy one",
        "equality": equality() if interval else None,
        "latency_seconds": times(median) if measured else None,
        "throughput_per_second": 1 / median if measured else None,
        "block_seconds": [median * (0.93 + i / 200) for i in range(30)] if measured else [],
        "calls_per_block": 20 if measured else None,
        "warm": measured or None,
        "ratio": ratio(*interval) if interval else None,
        "verdict": verdict,
        "peak_memory_bytes": 123_456_789 if measured else None,
        "load_seconds": 0.25 if measured else None,
        "gpu": None,
    }


def control(runtime: str, note: str | None = None, *, measured: bool = True) -> dict[str, Any]:
    """The A/A control of one runtime."""
    return {
        "runtime": runtime,
        "control": ratio(0.99, 1.0, 1.012) if measured else None,
        "noise_floor": 0.012 if measured else None,
        "note": note,
    }


def fold(norms: int = 20, *, merged: int = 0, kept: int = 1) -> dict[str, Any]:
    """A fold report: ``norms`` BatchNorms, ``kept`` of which stay."""
    names = [f"layer{1 + i // 6}.{i % 6 // 2}.bn{1 + i % 2}" for i in range(norms)]
    gone = names[: norms - kept]
    return {
        "batchnorm": {"before": norms, "after": kept},
        "nodes": {"before": 3 * norms + 9, "after": 2 * norms + 9 + kept - merged},
        "folded": [
            {"name": name, "into": [name.replace("bn", "conv")], "rule": "batchnorm-into-conv"}
            if i >= merged
            else {"name": name, "into": [f"block{i // 3}.conv"], "rule": "batchnorm-into-conv"}
            for i, name in enumerate(gone)
        ],
        "kept": [
            {
                "name": name,
                "reason": "fan-out",
                "detail": f"{name.replace('bn', 'conv')} is also read by add3",
            }
            for name in names[norms - kept :]
        ],
        "merged": [
            {
                "names": [f"block{i}.conv", f"block{i}.conv1x1"],
                "into": f"block{i}.conv",
                "rule": "parallel-convs",
            }
            for i in range(merged // 3)
        ],
    }


def case(
    name: str, rows: list[dict[str, Any]], runtimes: list[dict[str, Any]], **more: Any
) -> dict[str, Any]:
    """One model under one set of conditions."""
    return {
        "id": name.lower().replace("_", "-"),
        "name": name,
        "batch": 1,
        "precision": "fp32",
        "threads": 2,
        "inputs": [{"name": "x", "dtype": "float32", "shape": [1, 3, 224, 224]}],
        "sides": [
            {"name": "original", "path": f"{name}.onnx", "sha256": "0" * 64, "bytes": 46_800_000},
            {"name": "folded", "path": None, "sha256": None, "bytes": 46_700_000},
        ],
        "rows": rows,
        "runtimes": runtimes,
        "fold": fold(),
    } | more


def _result(cases: list[dict[str, Any]], title: str, command: str) -> dict[str, Any]:
    return {
        "schema_version": "2",
        "title": title,
        "created": "2026-11-23T01:00:00+00:00",
        "seconds": 12.0 * len(cases),
        "command": command,
        "options": {
            "seed": 0,
            "block_seconds": 0.05,
            "budget_seconds": 5.0,
            "min_blocks": 20,
            "warmup_seconds": 0.5,
            "samples": 2,
            "l2": "warm",
        },
        "environment": {
            "cpu": "AMD EPYC",
            "cores": 2,
            "os": "Linux-6.8-x86_64",
            "python": "3.11.7",
            "libraries": {"convbn": "0.1.0", "numpy": "2.4.6", "onnxruntime": "1.32.0", "torch": "2.13.0"},
            "gpus": [],
            "load_average": 0.05,
        },
        "extra": [],
        "cases": cases,
    }


def one() -> dict[str, Any]:
    """One model in three runtimes: faster, no difference, not measured."""
    rows = [
        row("onnxruntime-cpu@off", "original", "baseline"),
        row("onnxruntime-cpu@off", "folded", "faster", (0.781, 0.787, 0.793)),
        row("torch-cpu", "original", "baseline"),
        row("torch-cpu", "folded", "no difference detected", (0.97, 0.99, 1.01)),
        row("onnxruntime-cuda", "original", None),
        row("onnxruntime-cuda", "folded", None),
    ]
    controls = [
        control("onnxruntime-cpu@off"),
        control("torch-cpu"),
        control("onnxruntime-cuda", "n", measured=False),
    ]
    only = case("resnet18", rows, controls)
    result = _result([only], "resnet18: folded against original", "convbn bench resnet18.onnx")
    result["environment"]["gpus"] = [{"name": "NVIDIA H100", "driver_version": "580.1"}]
    result["extra"] = [{"label": "Top-1", "value": "71.2 %"}]
    return result


def many(seed: int = 7) -> dict[str, Any]:
    """Twelve models in two runtimes: eager PyTorch gains, onnxruntime folds by itself."""
    draw = random.Random(seed)
    note = (
        "onnxruntime folds BatchNorm into convolutions itself when it loads a model, so a time ratio near 1 is "
        "expected; onnxruntime-cpu@off runs both graphs as they stand"
    )
    cases = []
    for name, milliseconds, norms, merged, kept in _MODELS:
        rows = []
        for runtime, gain, speed in (
            ("torch-cpu", draw.uniform(0.02, 0.24), 1.0),
            ("onnxruntime-cpu", 0, 0.4),
        ):
            gain = draw.uniform(0.25, 0.45) if merged else gain
            centre = 1 - gain + draw.gauss(0, 0.002)
            half = draw.uniform(0.003, 0.012)
            seconds = milliseconds * speed / 1000
            verdict = "faster" if centre + half < 0.988 else "no difference detected"
            rows.append(row(runtime, "original", "baseline", seconds=seconds))
            rows.append(
                row(runtime, "folded", verdict, (centre - half, centre, centre + half), seconds=seconds)
            )
            for entry in rows[-2:]:
                _spread(entry, draw)
        controls = [control("torch-cpu"), control("onnxruntime-cpu", note)]
        report = fold(norms, merged=merged, kept=kept)
        cases.append(case(name, rows, controls, fold=report))
    return _result(cases, "12 networks: folded against original", "convbn bench --table")


def _spread(entry: dict[str, Any], draw: random.Random) -> None:
    # A skewed distribution of this row's own, so that charts do not all look the same.
    median, width = entry["latency_seconds"]["median"], draw.uniform(0.01, 0.05)
    far = {"min": -1.6, "p25": -0.6, "median": 0, "p75": 0.8, "p90": 2.2, "p95": 3.5, "p99": 6.0, "max": 12.0}
    for key, steps in far.items():
        entry["latency_seconds"][key] = median * math.exp(width * steps)
    entry["block_seconds"] = [median * math.exp(draw.gauss(0.1, 0.7) * width) for _ in range(30)]


def hostile(result: dict[str, Any], name: str) -> dict[str, Any]:
    """Every text that a user or a model chooses is the hostile name."""
    bad = copy.deepcopy(result)
    bad["title"] = bad["command"] = name
    names = {"original": name, "folded": f"{name}!"}
    for case in bad["cases"]:
        case["name"] = case["precision"] = name
        for side in case["sides"]:
            side["name"] = names[side["name"]]
            side["path"] = name
            side["sensitivity"] = [{"node": name, "operator": name, "error": 0.5}] * 50
        for spec in case["inputs"]:
            spec["name"] = name
        for entry in case["rows"]:
            entry["side"] = names[entry["side"]]
            entry["reason"] = name if entry["reason"] else None
            if entry["equality"]:
                entry["equality"]["reason"] = entry["equality"]["outputs"][0]["name"] = name
        case["fold"]["folded"] = [{"name": name, "into": name, "rule": name}] * 50
        case["fold"]["kept"] = [{"name": name, "reason": name, "detail": name}] * 50
        case["fold"]["merged"] = [{"names": [name], "into": name, "rule": name}]
    bad["environment"]["cpu"] = bad["environment"]["os"] = name
    bad["environment"]["libraries"] = {name: name}
    bad["environment"]["gpus"] = [{name: name}]
    bad["extra"] = [{"label": name, "value": name}]
    return bad


def losses(layers: int = 3) -> list[dict[str, Any]]:
    """What the layers of an int8 model lose, one of them without a bound."""
    found = [
        {"node": f"layer{i}.conv", "operator": "Conv", "error": 0.08 / (i + 1)} for i in range(layers - 1)
    ]
    return [{"node": "head", "operator": "Gemm", "error": None}, *found]


def gate(status: str, name: str | None = None) -> dict[str, Any]:
    """What a gate said."""
    return {
        "gate": name or "ratio > 1.02",
        "status": status,
        "case": "resnet18",
        "runtime": name or "torch-cpu",
        "side": name or "folded",
        "sentence": f"ratio is 1.05 for {name or 'folded'}",
    }


def gates(name: str) -> list[dict[str, Any]]:
    """One gate of each kind, with a hostile name."""
    return [gate(status, name) for status in ("passed", "failed", "not judged", "skipped")]
