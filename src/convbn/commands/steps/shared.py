"""What several verbs do alike: options into values, reports into files."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convbn.commands.steps.console import Console
from convbn.commands.steps.streams import writing_stdout
from convbn.errors import CheckFailedError, UsageError
from convbn.export.loading.source_model import LoadOptions, SourceModel

if TYPE_CHECKING:
    from convbn.fuse.fold import Folding
    from convbn.fuse.options import FuseOptions
    from convbn.fuse.report import Report

__all__ = [
    "console_of",
    "fold_summary",
    "fuse_options",
    "load_options",
    "proven",
    "refuse_unproven",
    "refuse_unseen",
    "refuse_warnings",
    "write_json",
    "write_text",
]


def load_options(options: argparse.Namespace) -> LoadOptions:
    """How the command line says to open IN.

    Raises:
        UsageError: a value makes no sense.
    """
    from convbn.export.checkpoints.architectures import parse_arguments, parse_spec
    from convbn.export.checkpoints.limits import Limits
    from convbn.export.checkpoints.names import Naming

    if options.arch is not None:
        parse_spec(options.arch)
    parse_arguments(options.arch_arg)
    return LoadOptions(
        options.arch,
        tuple(options.arch_arg),
        _shapes(options),
        options.inputs,
        seed=options.seed,
        trust=options.trust_checkpoint,
        allow_cwd=options.allow_cwd,
        key=options.checkpoint_key,
        naming=Naming(options.strip_prefix, options.drop_unexpected),
        limits=Limits(options.max_pickle_mib, options.max_unpacked_mib),
    )


def _shapes(options: argparse.Namespace) -> tuple[str, ...]:
    """Shapes of the inputs as typed; those that an engine is optimised for, where nothing else is said of one."""
    from convbn.export.shapes import parse_shape, usual_shapes

    typed = tuple(options.input_shape)
    named = {parse_shape(text)[0] for text in typed}
    if None in named:
        return typed
    usual = [
        text for text in usual_shapes(getattr(options, "shapes", ())) if parse_shape(text)[0] not in named
    ]
    return (*typed, *(text for text in usual if not named or parse_shape(text)[0] is not None))


def fuse_options(options: argparse.Namespace, *, verify: bool) -> FuseOptions:
    """How the command line says to fold."""
    from convbn.fuse.options import FuseOptions

    return FuseOptions(
        only=tuple(options.only),
        skip=tuple(options.skip),
        verify=verify,
        seed=options.seed,
        freeze=options.freeze,
        materialize=getattr(options, "materialize", False),
    )


def console_of(options: argparse.Namespace) -> Console:
    """The console; it leaves stdout to JSON or Markdown where one of them asks for it."""
    taken = options.json == "-" or getattr(options, "markdown", None) == "-"
    return Console(json_on_stdout=taken, quiet=options.quiet, names=getattr(options, "shown_as", None))


def refuse_warnings(options: argparse.Namespace, report: Report) -> None:
    """Hold a report against ``--strict``.

    Raises:
        CheckFailedError: there are warnings, and they were not to pass.
    """
    if options.strict and report.warnings:
        first, *others = report.warnings
        more = f" (and {len(others)} more)" if others else ""
        hint = "--strict lets no warning pass; nothing was written"
        raise CheckFailedError(f"{first}{more}", source=report.path, hint=hint)


def refuse_unseen(verify: Mapping[str, Any], path: str | None) -> None:
    """Hold the proof of a fold against ``--strict``.

    Args:
        verify: the outcome of the comparison, as reports hold it.
        path: of the original.

    Raises:
        CheckFailedError: a fold was seen by no comparison.
    """
    folds = (verify.get("proof") or {}).get("folds", ())
    unseen = [fold["name"] for fold in folds if fold["how"] is None]
    if unseen:
        more = f" (and {len(unseen) - 1} more)" if len(unseen) > 1 else ""
        raise CheckFailedError(
            f"no comparison could see the fold of {unseen[0]}{more}",
            source=path,
            hint="--strict lets nothing pass that was not shown; nothing was written",
        )


def refuse_unproven(options: argparse.Namespace) -> None:
    """What is not compared is not proven, and that is what ``--strict`` asks for.

    Raises:
        UsageError: ``--strict`` with ``--no-verify``.
    """
    if options.strict and options.no_verify:
        raise UsageError("--strict lets nothing pass that was not verified", hint="leave out --no-verify")


def proven(
    folding: Folding,
    source: SourceModel,
    console: Console,
    *,
    candidate: Any = None,
    captured: Any = None,
    strict: bool = False,
) -> Report:
    """The report of a fold, with the file it came from and, unless told otherwise, the comparison with it.

    Args:
        folding: the fold.
        source: what was folded.
        console: is told what goes on.
        candidate: what is compared with it, if not the folded model itself.
        captured: the form of it that was folded, if it is another.
        strict: every fold must have been seen.
    """
    from convbn.proof import verified

    report = source.named_in(folding.report)
    if not report.options.verify:
        return report
    with console.phase("verifying") as progress:
        report = verified(
            report,
            source.runnable,
            folding.model if candidate is None else candidate,
            example_inputs=source.example_inputs,
            input_shapes=source.input_shapes,
            inputs=source.inputs,
            exported=captured if source.is_torch and report.kind == "onnx" else None,
            progress=progress,
        )
    if strict:
        refuse_unseen(report.verify, report.path)
    return report


def fold_summary(report: Report) -> dict[str, Any]:
    """What a sidecar says of a fold."""
    full = report.to_dict()
    keys = ("input", "batchnorm", "nodes", "folded", "kept", "merged", "verify")
    return {key: full[key] for key in keys}


def write_json(
    path: str | None, value: Mapping[str, Any] | list[Any] | Report, *, overwrite: bool = True
) -> None:
    """Write JSON to ``path``, to stdout for ``-``, nowhere for None."""
    if path is not None:
        ready = value if isinstance(value, Mapping | list) else value.to_dict()
        write_text(path, json.dumps(ready, indent=2, ensure_ascii=False) + "\n", overwrite=overwrite)


def write_text(path: str, text: str, *, overwrite: bool = True) -> None:
    """Write text to ``path`` or a URL, to stdout for ``-``."""
    if path == "-":
        with writing_stdout():
            sys.stdout.write(text)
            sys.stdout.flush()
        return
    from convbn.export.files.atomic import write_atomically
    from convbn.export.loading.remote import is_url, put

    if is_url(path):
        with tempfile.NamedTemporaryFile("wb", suffix=".tmp") as file:
            file.write(text.encode("utf-8", "backslashreplace"))
            file.flush()
            put(file.name, path)
        return
    write_atomically(path, text.encode("utf-8", "backslashreplace"), overwrite=overwrite)
