"""The engine options of ``convbn export``: from the command line into values, and only where they mean something."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from convbn.commands.options.parsing import whole
from convbn.errors import UsageError

if TYPE_CHECKING:
    from convbn.export.engines.build.options import EngineOptions

__all__ = ["add_engine_arguments", "engine_options", "refuse_engine_options"]

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


def add_engine_arguments(export: argparse.ArgumentParser) -> None:
    """What ``export`` asks of TensorRT."""
    engines = export.add_argument_group("engines (which backend honours what: docs/tensorrt.md)")
    add = engines.add_argument
    add(
        "--shapes",
        metavar="X=MIN:OPT:MAX",
        action="append",
        default=[],
        help="x=1x3x9x9:4x3x9x9:8x3x9x9; ';' or again: another",
    )
    add("--workspace", metavar="SIZE", help="most scratch memory of a layer, 4GiB")
    add("--optimization-level", type=whole(0, 5), metavar="0-5", help="how long to search for kernels")
    add(
        "--compute-capability",
        metavar="X.Y,...",
        action="append",
        default=[],
        help="GPUs to build for, 8.6,8.9; or current",
    )
    add(
        "--hardware-compatibility",
        choices=("ampere+", "same-compute-capability"),
        help="run on more GPUs than the one at hand",
    )
    add("--version-compatible", action="store_true", help="let later versions of TensorRT load the engine")
    add("--strip-weights", action="store_true", help="leave out weights that a refit brings back")
    add("--refit", action="store_true", help="let weights be exchanged later")
    add("--timing-cache", metavar="FOLDER", help="kernel timings of earlier builds, or auto")


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
