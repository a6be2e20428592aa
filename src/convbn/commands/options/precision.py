"""The options of ``convbn export`` that say how a precision is reached."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from convbn.commands.options.parsing import number, whole
from convbn.common.text import printable
from convbn.errors import UsageError
from convbn.export.formats import format_of
from convbn.export.precision.options import AUTO, ENDS, METHODS, QUANTISABLE, PrecisionOptions
from convbn.export.precision.precisions import AS_IS, PRECISIONS, Precision, precision_names

if TYPE_CHECKING:
    import onnx

    from convbn.commands.steps.console import Console
    from convbn.converting import Conversion

__all__ = [
    "add_precision_arguments",
    "check_conversion",
    "check_precision",
    "conversion_of",
    "say_conversion",
]

_SHOWN_KEPT = 10
_SHOWN_LOSSES, _BAR = 20, 24


def add_precision_arguments(verb: argparse.ArgumentParser) -> None:
    """Add them."""
    add = verb.add_argument_group("precision (docs/precision.md)").add_argument
    names = precision_names()
    add("--precision", choices=names, default=AS_IS, metavar="P", help=", ".join(names))
    add("--calibration", metavar="PATH", help="inputs as .npz or .npy, or a folder, or images")
    add("--preprocess", metavar="SPEC", help="of images: imagenet, or size=32,mean=0.5,std=0.5")
    add("--keep-fp32", metavar="N", nargs="+", default=[], help="nodes that stay in float32; auto: the worst")
    add("--tolerance", type=number(0), metavar="X", help="how far outputs may be off")
    add("--calibration-samples", type=whole(1), metavar="N", help="most samples to look at")
    add("--calibration-method", choices=METHODS, metavar="M", help=f"of ranges: {', '.join(METHODS)}")
    add("--percentile", type=number(0, 100), metavar="X", help="of values that a range holds")
    add("--quantize", metavar="OP", nargs="+", help="operators that become int8")
    add("--quantize-add", action="store_true", help="additions of int8 values stay int8")
    yes_or_no = argparse.BooleanOptionalAction
    add("--equalize", action=yes_or_no, default=None, help="move scales between layers first")
    add("--bias-correction", action=yes_or_no, default=None, help="biases follow the data")
    add("--sensitivity", action="store_true", help="say what each node in int8 costs")
    add("--rest", choices=("fp32", "fp16"), metavar="P", help="what the rest runs in: fp32, fp16")
    add("--half-io", action="store_true", help="inputs and outputs become half precision too")


def check_precision(options: argparse.Namespace) -> None:
    """Refuse options that the precision does not use, before anything is imported for it.

    Raises:
        UsageError: an option is out of place, or one is missing.
    """
    precision = options.precision
    if precision != AS_IS:
        target = format_of(options.output)
        if "precision" not in target.takes:
            hint = "write .onnx or an engine"
            raise UsageError(
                f"--precision {precision} is not for {target.name}s", source=options.output, hint=hint
            )
    for shown, given, meaning in (
        ("--calibration", options.calibration, "calibration"),
        ("--preprocess", options.preprocess, "calibration"),
        ("--calibration-samples", options.calibration_samples, "calibration"),
        ("--calibration-method", options.calibration_method, "method"),
        ("--percentile", options.percentile, "percentile"),
        ("--quantize", options.quantize, "quantise"),
        ("--quantize-add", options.quantize_add or None, "quantise"),
        ("--equalize", options.equalize, "equalise"),
        ("--bias-correction", options.bias_correction, "correct_biases"),
        ("--sensitivity", options.sensitivity or None, "sensitivity"),
        ("--keep-fp32", options.keep_fp32 or None, "keep_fp32"),
        ("--rest", options.rest, "rest"),
        ("--half-io", options.half_io or None, "keep_io_types"),
        ("--tolerance", options.tolerance, "tolerance"),
    ):
        meant = [row.name for row in PRECISIONS.values() if meaning in _meanings(row, options.rest)]
        if given is not None and precision not in meant:
            raise UsageError(f"{shown} is for --precision {' or '.join(meant)}, not {precision}")
    for shown, given in (
        ("--preprocess", options.preprocess),
        ("--calibration-samples", options.calibration_samples),
    ):
        if given is not None and options.calibration is None:
            raise UsageError(f"{shown} needs --calibration PATH")
    wanted = PRECISIONS.get(precision)
    if wanted is not None and wanted.calibration == "required" and options.calibration is None:
        hint = "give --calibration PATH with inputs like those the network will meet"
        raise UsageError(f"--precision {precision} needs calibration data", hint=hint)
    if options.percentile is not None and options.calibration_method != "percentile":
        raise UsageError("--percentile is for --calibration-method percentile")
    if precision == AS_IS:
        return
    from convbn.bench.equivalence.tolerance import tolerance_of

    tolerance_of(precision, options.tolerance)
    conversion_of(options)
    if options.calibration is not None:
        from convbn.export.precision.int8.calibration import calibration_files

        calibration_files(options.calibration)


def check_conversion(model: onnx.ModelProto, options: argparse.Namespace) -> None:
    """Refuse what does not fit a model, before it is folded.

    Raises:
        UsageError: a node that is to stay in float32 does not exist, or images come without a preprocessing.
        CalibrationError: the calibration data does not fit.
    """
    if options.precision == AS_IS:
        return
    from convbn.export.precision.graphs import refuse_unknown_nodes
    from convbn.export.precision.int8.calibration import calibration_from

    keywords = {AUTO, *(ENDS if options.precision == "int8" else ())}
    refuse_unknown_nodes(model, [name for name in options.keep_fp32 if name not in keywords])
    wanted = conversion_of(options)
    if wanted.calibration is not None:
        calibration_from(wanted.calibration, model, preprocess=wanted.preprocess, limit=wanted.limit)


def _meanings(row: Precision, rest: str | None) -> set[str]:
    """What may be said about a precision: its options, the data it is calibrated on, how far it may be off."""
    found = set(row.options)
    if row.calibration != "none":
        found.add("calibration")
    if row.name != "fp32":
        found.add("tolerance")
    if "rest" in row.options and rest == "fp16":
        found.add("keep_io_types")
    return found


def conversion_of(options: argparse.Namespace) -> Conversion:
    """What the command line asks for."""
    from convbn.converting import Conversion
    from convbn.export.precision.int8.images import parse_preprocess

    given: dict[str, Any] = {
        "method": options.calibration_method,
        "percentile": options.percentile,
        "rest": options.rest,
        "quantise": _operators(options),
        "equalise": options.equalize,
        "correct_biases": options.bias_correction,
        "sensitivity": options.sensitivity or None,
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


def _operators(options: argparse.Namespace) -> tuple[str, ...] | None:
    chosen = tuple(options.quantize or QUANTISABLE)
    if options.quantize_add:
        return tuple(dict.fromkeys((*chosen, "Add")))
    return chosen if options.quantize else None


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
    _say_int8(record, console)
    kept = record.get("kept", ())
    for entry in kept[:_SHOWN_KEPT]:
        console.say(f"  {printable(entry['node'])} ({entry['operator']}): {printable(entry['detail'])}")
    if len(kept) > _SHOWN_KEPT:
        console.say(f"  and {len(kept) - _SHOWN_KEPT} more, see the record")
    if record["method"] == "cast" and record.get("calibration") is not None:
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
    if (whole := record.get("agreement")) is not None:
        console.say(f"over all {whole['samples']} calibration batches:")
        for output in whole["outputs"]:
            told = "" if output["cosine"] is None else f", cosine {output['cosine']:.4f}"
            if output["top1_agreement"] is not None:
                told += f", same class for {output['top1_agreement']:.1%} of the rows"
            console.say(f"  {printable(output['name'])}: relative RMS error {output['rms_error']:.2g}{told}")
        if whole["warning"] is not None:
            console.say(f"WARNING: {printable(whole['warning'])}")


def _say_int8(record: Any, console: Console) -> None:
    moved = record.get("equalised")
    if moved is not None and (moved["scaled"] or moved["absorbed"]):
        console.say(
            f"equalised: {len(moved['scaled'])} groups of channels scaled, biases of {len(moved['absorbed'])} layers "
            f"passed on; outputs changed by {moved['error']:.1e} of their size"
        )
        if moved.get("clips"):
            console.say(
                f"  {len(moved['clips'])} Clips became a Relu and a Min with a limit for each channel"
            )
    if record.get("corrected_biases"):
        console.say(f"biases corrected: {len(record['corrected_biases'])}")
    losses = record.get("sensitivity")
    if losses:
        console.say("what each layer loses by being quantised alone, of the outputs:")
        worst = max(entry["error"] for entry in losses) or 1.0
        for entry in losses[:_SHOWN_LOSSES]:
            drawn = "█" * round(_BAR * entry["error"] / worst)
            layer = f"{printable(entry['node'])} ({entry['operator']})"
            console.say(f"  {entry['error']:8.1e} {drawn:<{_BAR}} {layer}")
        if len(losses) > _SHOWN_LOSSES:
            console.say(f"  and {len(losses) - _SHOWN_LOSSES} that lose less, see the record")
