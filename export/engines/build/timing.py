"""Timings of kernels that classic TensorRT takes while it builds, kept from build to build."""

from __future__ import annotations

from typing import Any

from convbn.errors import FileAccessError
from convbn.export.engines.backends.caches import CacheFile

__all__ = ["keep_timings", "use_timings"]


def use_timings(config: Any, cache: CacheFile) -> list[str]:
    """Give a configuration the timings that are known, or an empty cache where they do not fit.

    Args:
        config: an ``IBuilderConfig``.
        cache: the file.

    Returns:
        Warnings.
    """
    try:
        data = cache.read()
    except FileAccessError as error:
        return [f"The timing cache was not used: {error}."]
    if data is not None and _use(config, data):
        return []
    # TensorRT holds a cache against the device and its own version; what it refuses is of no use here.
    warnings = [] if data is None else [f"The timing cache {cache.path} does not fit and was not used."]
    return warnings if _use(config, b"") else [*warnings, "TensorRT took no timing cache."]


def keep_timings(config: Any, cache: CacheFile) -> list[str]:
    """Merge the timings of a build into the file; a file that cannot be written is a warning.

    Args:
        config: of a build that is done.
        cache: the file.

    Returns:
        Warnings.
    """
    own = config.get_timing_cache()
    if own is None:
        return ["TensorRT kept no timings."]

    def merge(data: bytes | None) -> bytes:
        if data is not None:
            merged = config.create_timing_cache(data)
            if merged is not None and merged.combine(own, False):
                return bytes(merged.serialize())
        return bytes(own.serialize())

    try:
        cache.update(merge)
    except FileAccessError as error:
        return [f"The timing cache was not written: {error}."]
    return []


def _use(config: Any, data: bytes) -> bool:
    timings = config.create_timing_cache(data)
    return timings is not None and bool(config.set_timing_cache(timings, False))
