"""Options of ``convbn export`` that say how an engine is built."""

from __future__ import annotations

import argparse

__all__ = ["add_engine_arguments"]


def add_engine_arguments(export: argparse.ArgumentParser) -> None:
    """What ``export`` asks of TensorRT."""
    from convbn.commands.options.parsing import whole

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
