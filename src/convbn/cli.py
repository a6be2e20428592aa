"""The command line: arguments in, an exit code out.

Only this module and :mod:`convbn.errors` are imported before the arguments are known to make sense, so
``convbn --help`` and usage errors load no framework.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from convbn.errors import ConvBNError, NotSupportedError

__all__ = ["EXIT_INTERRUPTED", "main", "parser"]

EXIT_INTERRUPTED = 130
EXIT_BUG = 70
"""EX_SOFTWARE of sysexits.h: not the user's doing."""

_EXITS = """exit codes: 0 ok, 1 a check or gate failed, 2 usage, 3 bad input, 4 not supported here,
5 a file could not be read or written, 70 a bug in convbn, 130 interrupted"""

_ARCH_HELP = "architecture of a checkpoint: torchvision:NAME, timm:NAME or package.module:callable"


def parser() -> argparse.ArgumentParser:
    """The argument parser, built without importing anything heavy."""
    from convbn import __version__

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    common.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")

    source = argparse.ArgumentParser(add_help=False)
    source.add_argument("--arch", metavar="SPEC", help=_ARCH_HELP)
    source.add_argument(
        "--arch-arg", metavar="K=V", action="append", default=[], help="argument of the architecture"
    )
    source.add_argument(
        "--input-shape",
        metavar="NAME:DIMS",
        action="append",
        default=[],
        help="shape of an input, x:1x3x224x224; for checkpoints and for open dimensions",
    )
    source.add_argument("--seed", type=int, default=0, help="of random inputs (default 0)")

    rules = argparse.ArgumentParser(add_help=False)
    rules.add_argument(
        "--only", metavar="RULE", action="append", default=[], help="use this rule and no other"
    )
    rules.add_argument("--skip", metavar="RULE", action="append", default=[], help="do not use this rule")

    target = argparse.ArgumentParser(add_help=False)
    target.add_argument("-o", "--output", metavar="OUT", required=True, help="file to write")
    target.add_argument("--force", action="store_true", help="replace an existing file")
    target.add_argument("--no-verify", action="store_true", help="write without comparing outputs first")

    json = argparse.ArgumentParser(add_help=False)
    json.add_argument("--json", metavar="FILE", help="write the report as JSON; - for stdout")

    main_parser = argparse.ArgumentParser(
        prog="convbn",
        description="Fold BatchNorm into the layers around it, prove that nothing changed, export, measure.",
        epilog=_EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    main_parser.add_argument("--version", action="version", version=f"convbn {__version__}")
    verbs = main_parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, summary: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=summary, description=summary, parents=[*parents, common])

    inspect = verb(
        "inspect", "say what a fold would do, and why each remaining BatchNorm stays", source, rules, json
    )
    inspect.add_argument("input", metavar="IN", help="ONNX file or checkpoint")

    fuse = verb("fuse", "fold a model and write it, if its outputs are equal", source, rules, target, json)
    fuse.add_argument("input", metavar="IN", help="ONNX file, or checkpoint with --arch")

    verify = verb("verify", "compare two models on the same random inputs", source, json)
    verify.add_argument("reference", metavar="A")
    verify.add_argument("candidate", metavar="B")

    export = verb(
        "export",
        "fold a model and build a TensorRT engine or an ONNX file of it",
        source,
        rules,
        target,
        json,
    )
    export.add_argument("input", metavar="IN", help="ONNX file, or checkpoint with --arch")
    export.add_argument("--no-fuse", action="store_true", help="export the model as it is")
    export.add_argument("--backend", choices=("auto", "tensorrt", "tensorrt-rtx"), default="auto")
    export.add_argument("--precision", choices=("as-is", "fp32", "fp16", "bf16", "int8"), default="as-is")
    export.add_argument("--no-tf32", action="store_true", help="keep TensorFloat-32 out of FP32 layers")
    export.add_argument(
        "--shapes",
        metavar="NAME=MIN:OPT:MAX",
        action="append",
        default=[],
        help="range of a dynamic input, x=1x3x224x224:8x3x224x224:32x3x224x224",
    )
    export.add_argument("--calibration", metavar="PATH", help="data for int8 (not built yet)")

    bench = verb("bench", "measure the original against the folded model, or against OTHER", source, json)
    bench.add_argument("input", metavar="IN", help="ONNX file, or checkpoint with --arch")
    bench.add_argument("others", metavar="OTHER", nargs="*", help="further ONNX files to measure against IN")
    bench.add_argument("--runtime", metavar="NAME,...", help="runtimes to measure on (see convbn doctor)")
    bench.add_argument("--threads", type=int, help="threads of each runtime (default: its own choice)")
    bench.add_argument("--budget", type=float, metavar="SECONDS", help="time to measure each runtime for")
    bench.add_argument("--markdown", metavar="FILE", help="write the table as Markdown; - for stdout")
    bench.add_argument("--html", metavar="FILE", help="write the report as one offline HTML page")
    bench.add_argument("--force", action="store_true", help="replace existing files")

    verb("doctor", "say which optional parts are present, and how to get the others", json)
    return main_parser


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(arguments)
    try:
        if getattr(options, "calibration", None):
            raise NotSupportedError("--calibration is for int8, which is not built yet")
        command = import_module(f"convbn.commands.{options.verb}")
        code = int(command.run(options))
        sys.stdout.flush()
    except ConvBNError as error:
        return _fail(f"convbn: {_one_line(error)}", error.exit_code, debug=options.debug)
    except KeyboardInterrupt:
        return _fail("convbn: interrupted", EXIT_INTERRUPTED, debug=options.debug)
    except BrokenPipeError:
        # The reader went away; point stdout elsewhere so that Python's exit does not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        missing = _missing(error)
        if missing is not None:
            return _fail(f"convbn: {_one_line(missing)}", missing.exit_code, debug=options.debug)
        # A bug: the user gets a sentence too, and the traceback on request.
        text = f"convbn: internal error: {type(error).__name__}: {_one_line(error)}; --debug shows where"
        return _fail(text, EXIT_BUG, debug=options.debug)
    return code


def _missing(error: Exception) -> ConvBNError | None:
    """The error for a package that is not there; a missing module of convbn's own is a bug."""
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package in ("", "convbn"):
        return None
    extra = "convbn[torch]" if package in ("torch", "onnxscript", "safetensors") else "convbn"
    return NotSupportedError(
        f"{package} is not installed", hint=f"pip install '{extra}'; convbn doctor shows what is missing"
    )


def _fail(text: str, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(text, file=sys.stderr)
    return code


def _one_line(error: BaseException) -> str:
    from convbn.console import printable

    return printable(" ".join(str(error).split()))
