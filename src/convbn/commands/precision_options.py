"""The options of ``convbn export`` that say how a precision is reached."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from convbn.common.text import printable
from convbn.console import Console
from convbn.errors import UsageError

if TYPE_CHECKING:
    from convbn.converting import Conversion

__all__ = ["add_precision_arguments", "check_precision", "conversion_of", "say_conversion"]

_LOWER = ("fp16", "bf16", "int8")
_SHOWN_KEPT = 10


def add_precision_arguments(verb: argparse.ArgumentParser) -> None:
    """Add them. Help shows the ones that most need; docs/precision.md has them all."""
    add = verb.add_argument_group("precision (all options: docs/precision.md)").add_argument
    precisions = ("as-is", "fp32", *_LOWER)
    add("--precision", choices=precisions, default="as-is", metavar="P", help=", ".join(precisions))
    add("--calibration", metavar="PATH", help="inputs as .npz or .npy, or a folder, or images")
    add("--preprocess", metavar="SPEC", help="of images: imagenet, or size=32,mean=0.5,std=0.5")
    add("--keep-fp32", metavar="N", nargs="+", default=[], help="nodes that stay in float32")
    add("--tolerance", type=float, metavar="X", help="how far outputs may be off")
    hidden = argparse.SUPPRESS
    add("--calibration-samples", type=int, help=hidden)
    add("--calibration-method", choices=("minmax", "entropy", "percentile"), help=hidden)
    add("--percentile", type=float, help=hidden)
    add("--quantize", nargs="+", help=hidden)
    add("--rest", choices=("fp32", "fp16"), help=hidden)
    add("--half-io", action="store_true", help=hidden)


def check_precision(options: argparse.Namespace) -> None:
    """Refuse options that the precision does not use, before anything is imported for it.

    Raises:
        UsageError: an option is out of place, or one is missing.
    """
    precision = options.precision
    if options.output.lower().endswith(".pt2") and precision != "as-is":
        hint = "write .onnx or an engine"
        raise UsageError(
            f"--precision {precision} is not for PyTorch programs", source=options.output, hint=hint
        )
    half, int8 = ("fp16", "bf16"), ("int8",)
    for shown, given, meant in (
        ("--calibration", options.calibration is not None, _LOWER),
        ("--preprocess", options.preprocess is not None, _LOWER),
        ("--calibration-samples", options.calibration_samples is not None, _LOWER),
        ("--calibration-method", options.calibration_method is not None, int8),
        ("--percentile", options.percentile is not None, int8),
        ("--quantize", options.quantize is not None, int8),
        ("--keep-fp32", bool(options.keep_fp32), _LOWER),
        ("--rest", options.rest is not None, int8),
        ("--half-io", options.half_io, (*half, "int8") if options.rest == "fp16" else half),
        ("--tolerance", options.tolerance is not None, _LOWER),
    ):
        if given and precision not in meant:
            raise UsageError(f"{shown} is for --precision {' or '.join(meant)}, not {precision}")
    for shown, given in (
        ("--preprocess", options.preprocess is not None),
        ("--calibration-samples", options.calibration_samples is not None),
    ):
        if given and options.calibration is None:
            raise UsageError(f"{shown} needs --calibration PATH")
    if precision == "int8" and options.calibration is None:
        hint = "give --calibration PATH with inputs like those the network will meet"
        raise UsageError("--precision int8 needs calibration data", hint=hint)
    if options.percentile is not None and options.calibration_method != "percentile":
        raise UsageError("--percentile is for --calibration-method percentile")


def conversion_of(options: argparse.Namespace) -> Conversion:
    """What the command line asks for."""
    from convbn.converting import Conversion
    from convbn.export.precision.int8.images import parse_preprocess
    from convbn.export.precision.options import PrecisionOptions

    given: dict[str, Any] = {
        "method": options.calibration_method,
        "percentile": options.percentile,
        "rest": options.rest,
        "quantise": None if options.quantize is None else tuple(options.quantize),
    }
    return Conversion(
        options.precision,
        PrecisionOptions(
            keep_io_types=not options.half_io,
            keep_fp32=tuple(options.keep_fp32),
            **{key: value for key, value in given.items() if value is not None},
        ),
        calibration=options.calibration,
        preprocess=None if options.preprocess is None else parse_preprocess(options.preprocess),
        limit=options.calibration_samples,
        verify=not options.no_verify,
        tolerance=options.tolerance,
        seed=options.seed,
    )


def say_conversion(record: Any, console: Console) -> None:
    """What was done, node by node where nodes stay in float32, and how close the result is."""
    precision = record["precision"]
    if record["note"]:
        console.say(f"note: {printable(record['note'])}")
    if record["method"] == "none":
        return
    if "cast_nodes" in record:
        console.say(f"{precision}: {record['cast_nodes']} nodes cast, {len(record['kept'])} stay in float32")
    if "quantised" in record:
        data = record["calibration"]
        console.say(
            f"{precision}: {len(record['quantised'])} nodes quantised, ranges by {record['method']} over "
            f"{data['samples']} batches of {printable(data['origin'])}"
        )
    kept = record.get("kept", ())
    for entry in kept[:_SHOWN_KEPT]:
        console.say(f"  {printable(entry['node'])} ({entry['operator']}): {printable(entry['detail'])}")
    if len(kept) > _SHOWN_KEPT:
        console.say(f"  and {len(kept) - _SHOWN_KEPT} more, see the record")
    if precision == "fp16" and record["method"] == "cast" and record["calibration"] is not None:
        console.say(f"activations looked at on {printable(record['calibration']['origin'])}")
    outcome = record["verify"]
    if outcome["status"] == "not run":
        console.say(f"{precision} not verified: {outcome['reason']}")
        return
    console.say(f"{precision} against the original: {printable(outcome['reason'])} ({outcome['runtime']})")
    for output in outcome["outputs"]:
        agreement = output["top1_agreement"]
        if agreement is not None:
            told = f"cosine {output['cosine']:.4f}, " if output["cosine"] is not None else ""
            console.say(f"  {printable(output['name'])}: {told}same class for {agreement:.1%} of the rows")
