"""``convbn refit``: the weights of a new checkpoint, folded, in the place of those of a folded model or an engine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbn.commands.steps.console import Console
from convbn.commands.steps.shared import (
    console_of,
    fold_summary,
    fuse_options,
    load_options,
    proven,
    refuse_unproven,
    refuse_warnings,
    write_json,
)
from convbn.common.text import printable
from convbn.errors import NotSupportedError, UsageError
from convbn.export.files.sniff import ArtifactKind, sniff
from convbn.export.formats import FORMATS, format_of
from convbn.export.loading.open import open_source
from convbn.export.loading.source_model import SourceModel
from convbn.fuse.fold import fold

if TYPE_CHECKING:
    import onnx

    from convbn.fuse.report import Report

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Fold NEW, compare it, put its weights into IN, and only then write OUT."""
    console = console_of(options)
    refuse_unproven(options)
    engine = sniff(options.input) is ArtifactKind.ENGINE
    group = "engine" if engine else "external_data"
    format_of(options.output, [row for row in FORMATS if group in row.takes])
    if options.onnx is not None and not engine:
        raise UsageError("--onnx is for engines", source=options.input)
    record, opset = _kept_record(options, engine=engine)
    with console.phase("reading"):
        source = open_source(options.new, load_options(options))
        unfused = source.as_onnx(opset=opset)
    with console.phase("folding"):
        folding = fold(unfused, options=fuse_options(options, verify=not options.no_verify))
    refuse_warnings(options, source.named_in(folding.report))
    report = proven(folding, source, console, captured=unfused, strict=options.strict)
    console.report(report)
    fresh, conversion = _in_precision(folding.model, record, source, options, console)
    if engine:
        _engine(fresh, report, conversion, options, console)
    else:
        _onnx(fresh, source, report, conversion, options, console)
    write_json(options.json, report)
    return 0


def _kept_record(options: argparse.Namespace, *, engine: bool) -> tuple[Mapping[str, Any] | None, int | None]:
    """How the target came to its precision, and the opset of an ONNX target that a module is exported in."""
    if engine:
        from convbn.export.engines.run.load import require_trust
        from convbn.export.engines.sidecar import read_sidecar

        require_trust(options.input, options.trust_engine)
        return read_sidecar(options.input)["conversion"], None
    from convbn.export.onnx_io.provenance import precision_record
    from convbn.export.onnx_io.read import load_model
    from convbn.export.precision.graphs import opset_of

    target = load_model(options.input)
    record = precision_record(target, options.input)
    is_onnx = not options.new.startswith("hf-hub:") and sniff(options.new) is ArtifactKind.ONNX
    return record, None if is_onnx or record is not None else opset_of(target)


def _in_precision(
    model: onnx.ModelProto,
    record: Mapping[str, Any] | None,
    source: SourceModel,
    options: argparse.Namespace,
    console: Console,
) -> tuple[onnx.ModelProto, Mapping[str, Any] | None]:
    """The new model in the target's precision, with the same nodes left in float32."""
    if record is None or record["method"] == "none":
        return model, record
    if "quantised" in record:
        raise NotSupportedError(
            "is quantised, and its scales belong to the old weights' values",
            source=options.input,
            hint=f"convbn export {options.new} --precision int8 --calibration PATH",
        )
    from convbn.converting import Conversion, converted
    from convbn.export.precision.options import PrecisionOptions

    kept = tuple(node["node"] for node in record.get("kept", ()))
    how = PrecisionOptions(keep_io_types=bool(record.get("keep_io_types", True)), keep_fp32=kept)
    wanted = Conversion(record["precision"], how, verify=not options.no_verify, seed=options.seed)
    with console.phase(f"converting to {record['precision']}") as progress:
        result = converted(model, wanted, source, progress)
    return result.model, result.record


def _onnx(
    fresh: onnx.ModelProto,
    source: SourceModel,
    report: Report,
    conversion: Mapping[str, Any] | None,
    options: argparse.Namespace,
    console: Console,
) -> None:
    from convbn import __version__
    from convbn.export.onnx_io.provenance import add_provenance
    from convbn.export.onnx_io.read import load_model, save_model
    from convbn.export.onnx_io.refit import refitted

    model, changed = refitted(load_model(options.input), fresh)
    facts = {
        "version": __version__,
        "source": Path(options.new).name,
        "verified": str(report.verify["status"]),
    }
    if source.sha256 is not None:
        facts["source_sha256"] = source.sha256
    if conversion is not None:
        facts["precision"] = json.dumps(conversion, sort_keys=True)
    add_provenance(model, facts)
    save_model(model, options.output, overwrite=options.force)
    console.say(f"{changed} weights exchanged, the graph is {printable(options.input)}'s")
    console.written(options.output)


def _engine(
    fresh: onnx.ModelProto,
    report: Report,
    conversion: Mapping[str, Any] | None,
    options: argparse.Namespace,
    console: Console,
) -> None:
    from convbn.export.engines.refit import refit_engine
    from convbn.export.onnx_io.read import save_model

    if options.onnx is not None:
        save_model(fresh, options.onnx, overwrite=options.force)
        console.written(options.onnx)
    with console.phase("refitting"):
        refit_engine(
            options.input,
            fresh,
            options.output,
            trust=options.trust_engine,
            changes={"fold_summary": fold_summary(report), "conversion": conversion},
            overwrite=options.force,
        )
    console.written(options.output)
