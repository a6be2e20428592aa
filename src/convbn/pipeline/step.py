"""A step: one piece of work on one model, with what it needs, where it may run and the name of its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ANYWHERE", "BASE_MEMORY", "Place", "Step", "peak_memory"]

BASE_MEMORY = 300 << 20
"""Bytes that a worker holds once onnx and onnxruntime are imported."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a step may run.

    Attributes:
        alone: nothing else may run on the machine at the same time, as it would spoil what is measured.
        gpus: number of GPUs, or the share of one.
        accelerator: kind of GPU as Ray names it, such as ``H100``.
        resources: of Ray's custom resources, how much.
    """

    alone: bool = False
    gpus: float = 0.0
    accelerator: str | None = None
    resources: Mapping[str, float] = field(default_factory=dict)


ANYWHERE = Place()


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One piece of work. Steps are told apart by identity; everything in one can be pickled.

    Attributes:
        name: unique in a run, such as ``resnet18/fold``.
        kind: what it does: ``fold``, ``prove``, ``convert``, ``build``, ``measure``, ``report``, or a verb.
        model: name of the model it works on.
        work: the function that does it, ``module:function``; it returns a :class:`convbn.pipeline.works.Result`.
        options: its arguments by name, JSON-ready; steps may share them.
        needs: steps that come first; this one is cancelled where one of them does not succeed.
        key: the hash of all that goes into it, under which the store keeps its result; None: it is not kept.
        reads: files outside of the store that go into it, each with its SHA-256.
        delivers: kinds of steps, its own or those that it needs, whose files are copied to `target` once it is done.
        target: a folder outside of the store.
        replaces: names of files there that may be replaced by others of what is delivered; None: any.
        memory: bytes that it holds at its peak, estimated.
        place: where it may run.
        part: of a plan, what asks for it: ``fold``, or the name of a target or bench.
    """

    name: str
    kind: str
    model: str
    work: str
    options: Mapping[str, Any]
    needs: tuple[Step, ...] = ()
    key: str | None = None
    reads: tuple[tuple[str, str], ...] = ()
    delivers: tuple[str, ...] = ()
    target: str | None = None
    replaces: tuple[str, ...] | None = ()
    memory: int = BASE_MEMORY
    place: Place = ANYWHERE
    part: str = ""


def peak_memory(model_bytes: int, *, times: float = 6.0, base: int = BASE_MEMORY) -> int:
    """Bytes that a step holds at its peak: what is imported, and the model several times over.

    Args:
        model_bytes: size of the model's file with its external data.
        times: how many copies are held at once: the file, its weights as arrays and in float64, the result, two
            sessions that compare them.
        base: what the imports take.
    """
    return base + int(times * model_bytes)
