"""The engine options of ``convbn export``: from the command line into values, and only where they mean something."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from convbn.errors import UsageError

if TYPE_CHECKING:
    from convbn.export.engines.build.options import EngineOptions

__all__ = ["engine_options", "refuse_engine_options"]

_FOR_ENGINES = (
    *(
        "backend",
        "no_tf32",
        "workspace",
        "optimization_level",
        "compute_capability",
        "hardware_compatibility",
    ),
    *("version_compatible", "strip_weights", "refit", "timing_cache"),
)


def engine_options(options: argparse.Namespace) -> EngineOptions:
    """The options of the build.

    Raises:
        UsageError: a value makes no sense.
    """
    from convbn.export.engines.build.options import EngineOptions, parse_size

    return EngineOptions(
        workspace=None if options.workspace is None else parse_size(options.workspace),
        optimization_level=options.optimization_level,
        compute_capabilities=tuple(
            name for text in options.compute_capability for name in text.split(",") if name
        ),
        hardware_compatibility=options.hardware_compatibility,
        version_compatible=options.version_compatible,
        strip_weights=options.strip_weights,
        refit=options.refit,
        timing_cache=options.timing_cache,
    )


def refuse_engine_options(options: argparse.Namespace) -> None:
    """For an OUT that is no engine.

    Raises:
        UsageError: one of the options for engines is given.
    """
    for name in _FOR_ENGINES:
        if getattr(options, name) not in (None, False, [], "auto"):
            raise UsageError(f"--{name.replace('_', '-')} is for engines", source=options.output)
    if options.shapes and not options.triton:
        raise UsageError(
            "--shapes is for engines, and for the batch of a --triton model",
            source=options.output,
            hint="the shape to fold and compare in is --input-shape, written alike",
        )
