"""TensorRT and TensorRT-RTX among the runtimes: engines that :mod:`convbn.bench.runtimes.engine_session` runs."""

from __future__ import annotations

from functools import partial

from convbn.bench.runtimes.base import Levels, Runtime, Session, SessionOptions, Variant

__all__ = ["RUNTIMES"]


def _load(backend: str) -> None:
    from convbn.bench.runtimes import engine_session

    engine_session.load_library(backend)


def _open(backend: str, model: Variant, options: SessionOptions, levels: Levels) -> Session:
    from convbn.bench.runtimes import engine_session

    return engine_session.open_session(model, options, backend, levels)


RUNTIMES = tuple(
    Runtime(
        backend,
        "cuda",
        "engine",
        "an engine, built for the measurement or given as a file: a CUDA graph is replayed (`@graph`, the "
        "default), or every kernel is launched",
        load=partial(_load, backend),
        open=partial(_open, backend),
        levels=(("graph", "enqueue"), ("tf32",)),
        folds=f"{product} folds BatchNorm into convolutions itself when it builds an engine",
        packages=(package,),
    )
    for backend, product, package in (
        ("tensorrt", "TensorRT", "tensorrt"),
        ("tensorrt-rtx", "TensorRT-RTX", "tensorrt-rtx-cu13"),
    )
)
