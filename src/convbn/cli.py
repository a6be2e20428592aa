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


def parser(verb: str | None = None) -> argparse.ArgumentParser:
    """The argument parser, built without importing anything heavy.

    Args:
        verb: the only one that it need know, if there is one of this name: most of its cost is the other ones'.
    """
    from convbn import __version__
    from convbn.commands.options.examples import EXAMPLES
    from convbn.commands.options.parsing import Completion, Help, Parser
    from convbn.commands.options.verbs import VERBS

    whole = Parser(
        prog="convbn",
        description="Fold BatchNorm into the layers around it, prove it, export, measure.",
        epilog=_EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument(
        "--print-completion",
        action=Completion,
        choices=("bash", "zsh", "tcsh"),
        metavar="SHELL",
        help="print what completes convbn's commands in bash, zsh or tcsh",
    )
    whole.add_argument("--version", action="version", version=f"convbn {__version__}")
    verbs = whole.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name in [verb] if verb is not None and verb in VERBS else [*VERBS]:
        made = verbs.add_parser(
            name,
            help=VERBS[name].summary,
            description=VERBS[name].summary,
            epilog="\n  ".join(("examples:", *EXAMPLES[name])),
            formatter_class=Help,
        )
        for add_arguments in VERBS[name].groups:
            add_arguments(made)
    return whole


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
        words = _without_bench(arguments)
        return parser(next(iter(words), None)).parse_args(words)
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
