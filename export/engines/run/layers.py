"""TensorRT's description of an engine, in one form for all versions.

10.x lists inputs and outputs by name under ``Bindings`` and says format and type of a tensor in one text,
``Format/Datatype``; 11.x has objects under ``I/O Tensors`` and two fields. A layer is an object, or only its
name if the engine was built with less than detailed verbosity.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from convbn.errors import NotSupportedError

__all__ = ["Inspection", "LayerInfo", "LayerTensor", "parse_inspection"]

# In this order: BF16 and UInt8 hold the names of others.
_TYPES = (
    ("BF16", re.compile(r"bf16|bfloat16", re.IGNORECASE)),
    ("FP4", re.compile(r"fp4|e2m1", re.IGNORECASE)),
    ("FP8", re.compile(r"fp8|e4m3", re.IGNORECASE)),
    ("HALF", re.compile(r"fp16|float16|half", re.IGNORECASE)),
    ("FLOAT", re.compile(r"fp32|float32|float", re.IGNORECASE)),
    ("UINT8", re.compile(r"uint8", re.IGNORECASE)),
    ("INT4", re.compile(r"int4", re.IGNORECASE)),
    ("INT8", re.compile(r"int8", re.IGNORECASE)),
    ("INT32", re.compile(r"int32", re.IGNORECASE)),
    ("INT64", re.compile(r"int64", re.IGNORECASE)),
    ("BOOL", re.compile(r"bool", re.IGNORECASE)),
)


@dataclass(frozen=True)
class LayerTensor:
    """A tensor of an engine; type and shape are None where TensorRT does not say them."""

    name: str
    dtype: str | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class LayerInfo:
    """A layer of an engine, after TensorRT's own fusions.

    Attributes:
        name: TensorRT's, often made of the names of several nodes.
        type: TensorRT's.
        precision: type of its weights, else of its inputs, else of its outputs.
        inputs: of it.
        outputs: of it.
        tactic: the kernel.
    """

    name: str
    type: str | None = None
    precision: str | None = None
    inputs: tuple[LayerTensor, ...] = ()
    outputs: tuple[LayerTensor, ...] = ()
    tactic: str | None = None


@dataclass(frozen=True)
class Inspection:
    """An engine's layers, and the names of its inputs and outputs."""

    layers: tuple[LayerInfo, ...]
    bindings: tuple[str, ...]


def parse_inspection(text: str) -> Inspection:
    """Read what ``EngineInspector.get_engine_information`` returns as JSON.

    Raises:
        NotSupportedError: it is of no form that is known.
    """
    try:
        content = json.loads(text)
        layers = tuple(_layer(entry) for entry in content["Layers"])
        tensors = content["I/O Tensors"] if "I/O Tensors" in content else content.get("Bindings", [])
        names = tuple(entry["Name"] if isinstance(entry, dict) else str(entry) for entry in tensors)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NotSupportedError(f"TensorRT describes the engine in an unknown form: {error!r}") from error
    return Inspection(layers, names)


def _layer(entry: str | Mapping[str, Any]) -> LayerInfo:
    if isinstance(entry, str):
        return LayerInfo(entry)
    inputs = tuple(_tensor(tensor) for tensor in entry.get("Inputs", ()))
    outputs = tuple(_tensor(tensor) for tensor in entry.get("Outputs", ()))
    weights = entry.get("Weights")
    stored = _dtype(str(weights.get("Type", ""))) if isinstance(weights, dict) else None
    known = [tensor.dtype for tensor in (*inputs, *outputs) if tensor.dtype is not None]
    return LayerInfo(
        name=str(entry["Name"]),
        type=entry.get("LayerType"),
        precision=stored or next(iter(known), None),
        inputs=inputs,
        outputs=outputs,
        tactic=entry.get("TacticName") or None,
    )


def _tensor(entry: str | Mapping[str, Any]) -> LayerTensor:
    if isinstance(entry, str):
        return LayerTensor(entry)
    described = entry.get("DataType") or entry.get("Format/Datatype") or entry.get("Format") or ""
    shape = entry.get("Dimensions")
    return LayerTensor(
        str(entry["Name"]),
        _dtype(str(described)),
        None if shape is None else tuple(int(dim) for dim in shape),
    )


def _dtype(text: str) -> str | None:
    return next((name for name, pattern in _TYPES if pattern.search(text)), None)
