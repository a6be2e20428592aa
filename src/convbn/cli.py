"""The command line: arguments in, an exit code out.

Only this module, :mod:`convbn.errors` and :mod:`convbn.common` are imported before the arguments are known to
make sense, so ``convbn --help`` and usage errors load no framework.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from convbn.errors import BadInputError, CheckFailedError, ConvBNError, FileAccessError

__all__ = ["EXIT_INTERRUPTED", "main", "parser"]

EXIT_INTERRUPTED = 130
EXIT_BUG = 70
"""EX_SOFTWARE of sysexits.h: not the user's doing."""

_EXITS = """exit codes: 0 ok, 1 a check or gate failed, 2 usage, 3 bad input,
4 not supported here, 5 a file could not be read or written,
70 a bug in convbn, 130 interrupted"""

_ARCH_HELP = "of a checkpoint: torchvision:NAME, timm:NAME, hf-hub:ORG/NAME or package.module:callable"


def parser() -> argparse.ArgumentParser:
    """The argument parser, built without importing anything heavy."""
    from convbn import __version__
    from convbn.commands.options.engine import add_engine_arguments
    from convbn.commands.options.examples import EXAMPLES
    from convbn.commands.options.many import add_many_arguments, add_run_arguments
    from convbn.commands.options.measuring import add_measuring_arguments
    from convbn.commands.options.parsing import Completion, Help, Parser, number, whole
    from convbn.commands.options.precision import add_precision_arguments
    from convbn.commands.options.report import add_history_verbs, add_report_arguments
    from convbn.export.precision.precisions import PRECISIONS

    common = Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    common.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")

    source = Parser(add_help=False)
    source.add_argument("--arch", metavar="SPEC", help=_ARCH_HELP)
    source.add_argument(
        "--arch-arg", metavar="K=V", action="append", default=[], help="argument of the architecture"
    )
    source.add_argument(
        "--input-shape",
        metavar="NAME:DIMS",
        action="append",
        default=[],
        help="x:1x3x224x224, for checkpoints and open dimensions",
    )
    source.add_argument(
        "--inputs",
        metavar="PATH",
        help="inputs to use: .npz, .npy, or a folder of them",
    )
    source.add_argument(
        "--allow-cwd", action="store_true", help="let --arch be imported from the current folder"
    )
    source.add_argument("--checkpoint-key", metavar="KEY", help="where in a checkpoint the weights lie")
    source.add_argument("--strip-prefix", metavar="P", help="take P away from the names in a checkpoint")
    source.add_argument(
        "--drop-unexpected", action="store_true", help="leave out weights that the architecture lacks"
    )
    source.add_argument(
        "--trust-checkpoint", action="store_true", help="run the code in a pickle, .pt2 or TorchScript file"
    )
    source.add_argument(
        "--max-pickle-mib",
        type=whole(1),
        default=8,
        metavar="N",
        help="largest pickle to look at (default 8)",
    )
    source.add_argument(
        "--max-unpacked-mib",
        type=whole(1),
        default=256,
        metavar="N",
        help="how much an archive may grow by (default 256)",
    )
    source.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, help="of random inputs (default 0)")

    rules = Parser(add_help=False)
    rules.add_argument(
        "--only", metavar="RULE", action="append", default=[], help="use this rule and no other"
    )
    rules.add_argument("--skip", metavar="RULE", action="append", default=[], help="do not use this rule")
    rules.add_argument("--freeze", action="store_true", help="make constants of inputs that have a value")
    rules.add_argument("--strict", action="store_true", help="fail where there would only be a warning")

    target = Parser(add_help=False)
    target.add_argument("-o", "--output", metavar="OUT", required=True, help="file to write")
    target.add_argument("--force", action="store_true", help="replace an existing file")
    target.add_argument("--no-verify", action="store_true", help="write without comparing outputs first")

    json = Parser(add_help=False)
    json.add_argument("--json", metavar="FILE", help="write the report as JSON; - for stdout")

    main_parser = Parser(
        prog="convbn",
        description="Fold BatchNorm into the layers around it, prove it, export, measure.",
        epilog=_EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    main_parser.add_argument(
        "--print-completion",
        action=Completion,
        choices=("bash", "zsh", "tcsh"),
        metavar="SHELL",
        help="print what completes convbn's commands in bash, zsh or tcsh",
    )
    main_parser.add_argument("--version", action="version", version=f"convbn {__version__}")
    verbs = main_parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, summary: str, *parents: Parser) -> Parser:
        return verbs.add_parser(
            name,
            help=summary,
            description=summary,
            epilog="\n  ".join(("examples:", *EXAMPLES[name])),
            parents=[*parents, common],
            formatter_class=Help,
        )

    inspect = verb(
        "inspect", "say what a fold would do, and why each remaining BatchNorm stays", source, rules, json
    )
    inspect.add_argument(
        "input", metavar="IN", help="ONNX file, .pt2, checkpoint with --arch, engine, or a folder of models"
    )
    add_many_arguments(inspect)
    inspect.add_argument("--all", action="store_true", help="list every fold, and not the first twenty")
    inspect.add_argument(
        "--trust-engine", action="store_true", help="load an engine to list its layers, which runs its code"
    )

    fuse = verb("fuse", "fold a model and write it, if its outputs are equal", source, rules, target, json)
    fuse.add_argument("input", metavar="IN", help="ONNX file, .pt2, or checkpoint with --arch")
    add_many_arguments(fuse, writes=True)
    fuse.add_argument(
        "--external-data",
        choices=("auto", "always", "never"),
        default="auto",
        help="weights in a file of their own beside OUT; auto: as IN has them, and beyond 2 GiB",
    )

    for parser in (inspect, fuse):
        parser.add_argument(
            "--materialize", action="store_true", help="make parameters of weights that a module computes"
        )

    verify = verb("verify", "compare two models on the same random inputs", source, json)
    verify.add_argument("reference", metavar="A")
    verify.add_argument("candidate", metavar="B")
    verify.add_argument(
        "--precision",
        choices=tuple(PRECISIONS),
        help="of B: allow the error that this precision brings (docs/precision.md)",
    )
    verify.add_argument("--calibration", metavar="PATH", help="inputs to use, as convbn export takes them")
    verify.add_argument("--preprocess", metavar="SPEC", help="of images there (docs/precision.md)")
    verify.add_argument(
        "--layers", action="store_true", help="name the first value that differs, and list those that do"
    )
    verify.add_argument(
        "--tolerance", type=number(0), metavar="X", help="allow a relative error of X instead"
    )
    verify.add_argument(
        "--trust-engine", action="store_true", help="run an engine given, which runs its code"
    )
    verify.add_argument("--runtime", metavar="NAME", help="run both in this one (docs/benchmarks.md)")
    add_many_arguments(verify, more=False)

    export = verb(
        "export",
        "fold a model and write an engine, an ONNX file, a program or a package of it",
        source,
        rules,
        target,
        json,
    )
    export.add_argument("input", metavar="IN", help="ONNX file, .pt2, or checkpoint with --arch")
    add_many_arguments(export, writes=True)
    export.add_argument("--no-fuse", action="store_true", help="export the model as it is")
    export.add_argument(
        "--backend", choices=("auto", "tensorrt", "tensorrt-rtx"), default="auto", help="what builds it"
    )
    export.add_argument("--no-tf32", action="store_true", help="keep TensorFloat-32 out of FP32 layers")
    export.add_argument("--opset", type=whole(1), metavar="N", help="version of ONNX's default operator set")
    export.add_argument(
        "--dynamic-batch", action="store_true", help="leave dimension 0 of a checkpoint's inputs free"
    )
    export.add_argument("--triton", metavar="DIR", help="also put OUT into a Triton model repository")
    add_engine_arguments(export)
    add_precision_arguments(export)

    refit = verb("refit", "put new weights into a folded model or an engine", source, rules, target, json)
    refit.add_argument("input", metavar="IN", help="folded ONNX file, or engine built with --refit")
    refit.add_argument(
        "--from", dest="new", metavar="NEW", required=True, help="checkpoint or ONNX file, unfolded"
    )
    refit.add_argument("--onnx", metavar="FILE", help="of an engine: also write the new folded ONNX file")
    refit.add_argument("--trust-engine", action="store_true", help="load the engine, which runs its code")

    bench = verb("bench", "measure the original against the folded model, or against OTHER", source, json)
    bench.add_argument("input", metavar="IN", help="ONNX file, .pt2, or checkpoint with --arch")
    bench.add_argument("others", metavar="OTHER", nargs="*", help="files to measure against IN")
    bench.add_argument(
        "--trust-engine", action="store_true", help="run the engines given, which runs their code"
    )
    add_measuring_arguments(bench)
    add_report_arguments(bench)

    add_history_verbs(
        verb("report", "reports and gates from a stored result of bench", json),
        verb("compare", "what changed between two stored results of bench", json),
        verb("history", "a page of all results in a folder"),
    )

    add_run_arguments(verb("run", "do what a plan of many models says and is not done yet", json))
    verb("doctor", "say which optional parts are present, and how to get the others", json)
    return main_parser


def main(arguments: Sequence[str], given: Mapping[str, Any] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: as typed after ``convbn``.
        given: options, by their names, that are set whatever was typed: those of one model of many.
    """
    from convbn.commands.steps.streams import open_streams, silence, writing_stdout

    options = argparse.Namespace(debug=False, input=None)
    try:
        options = _parsed(arguments)
        vars(options).update(given or {})
        reports = (getattr(options, name, None) for name in ("json", "markdown"))
        open_streams(needed=not options.quiet or "-" in reports)
        from convbn.common.garbage import seldom_collected

        with seldom_collected():
            code = _run(arguments, options)
        with writing_stdout():
            sys.stdout.flush()
    except ConvBNError as error:
        if error.source is None and isinstance(error, BadInputError | CheckFailedError):
            error.source = getattr(options, "input", None)
        return _fail(f"convbn: {_one_line(error)}", error.exit_code, debug=options.debug)
    except MemoryError as error:
        text = f"convbn: {options.input}: there is not enough memory for it: {_one_line(error)}"
        return _fail(text.rstrip(": "), FileAccessError.exit_code, debug=options.debug)
    except KeyboardInterrupt:
        return _fail("convbn: interrupted", EXIT_INTERRUPTED, debug=options.debug)
    except BrokenPipeError:
        silence()  # the reader went away
        return 0
    except Exception as error:
        from convbn.common.public import missing_package

        missing = missing_package(error)
        if missing is not None:
            return _fail(f"convbn: {_one_line(missing)}", missing.exit_code, debug=options.debug)
        # A bug: the user gets a sentence too, and the traceback on request.
        text = f"convbn: internal error: {type(error).__name__}: {_one_line(error)}; --debug shows where"
        return _fail(text, EXIT_BUG, debug=options.debug)
    return code


def _run(arguments: Sequence[str], options: argparse.Namespace) -> int:
    """The verb on one model, or on each of many."""
    from convbn.commands.many.files import asked_for_many
    from convbn.commands.steps.remote import local_files
    from convbn.commands.steps.targets import check_targets

    worst = 0
    if asked_for_many(options):
        verb = "many.verbs"  # found by its name like every verb, as workers come back here for one model
        many = import_module(f"convbn.commands.{verb}")
        if options.verb != "bench":
            return int(many.run(arguments, options))
        worst = int(many.expand_bench(options))
    if options.verb == "export":
        from convbn.commands.options.precision import check_precision

        check_precision(options)
    if hasattr(options, "skip"):
        from convbn.fuse.fold import check_rules

        check_rules(options)
    with local_files(options):
        check_targets(options)
        return max(worst, int(import_module(f"convbn.commands.{options.verb}").run(options)))


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; help and the version are written out before the process ends."""
    from convbn.commands.steps.streams import writing_stdout

    try:
        return parser().parse_args(_without_bench(arguments))
    finally:
        if sys.stdout is not None:
            with writing_stdout():
                sys.stdout.flush()


def _without_bench(arguments: Sequence[str]) -> Sequence[str]:
    """``bench compare`` and ``bench history`` are verbs of their own; a model of that name is ``./compare``."""
    nested = (
        len(arguments) > 1 and arguments[0] == "bench" and arguments[1] in ("compare", "history", "report")
    )
    return arguments[1:] if nested else arguments


def _fail(text: str, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(text, file=sys.stderr)
    return code


def _one_line(error: BaseException) -> str:
    from convbn.common.text import printable

    return printable(" ".join(str(error).split()))
