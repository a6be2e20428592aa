"""How arguments are read: help with defaults, numbers within their range, the word that was meant."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from convbn.common.text import did_you_mean
from convbn.errors import NotSupportedError

__all__ = ["Completion", "Help", "Parser", "number", "numbers", "whole"]


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A reader of whole numbers from ``least`` to ``most``."""

    def read(text: str) -> int:
        bare = text.removeprefix("-")
        value = int(text) if bare.isdecimal() else None
        if value is None or value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number {_span(least, most)}")
        return value

    return read


def number(least: float, most: float | None = None) -> Callable[[str], float]:
    """A reader of numbers above ``least``, and up to ``most``."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (least < value < math.inf and (most is None or value <= most)):
            upper = "" if most is None else f" and at most {most:g}"
            raise argparse.ArgumentTypeError(f"{text!r} is no number above {least:g}{upper}")
        return value

    return read


def numbers(text: str) -> str:
    """A list of whole numbers above 0, as it was typed."""
    for part in text.split(","):
        if not (part.isdecimal() and int(part) > 0):
            raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers above 0, like 1,8,32")
    return text


def _span(least: int, most: int | None) -> str:
    if most is None:
        return f"of at least {least}"
    return f"between {least} and {'2**63 - 1' if most == 2**63 - 1 else most}"


class Completion(argparse.Action):
    """``--print-completion SHELL``: the script that completes convbn's commands in a shell."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Print it and end."""
        try:
            import shtab
        except ModuleNotFoundError as error:
            hint = "pip install 'convbn[completion]'"
            raise NotSupportedError(
                "shell completion needs shtab, which is not installed", hint=hint
            ) from error
        sys.stdout.write(shtab.complete(parser, values) + "\n")
        parser.exit()


class Help(argparse.HelpFormatter):
    """One line an option, where its name and its meaning fit into one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=27)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        """The help with the default, where it has one and does not name it."""
        text, default = action.help or "", action.default
        plain = isinstance(default, str | int | float) and not isinstance(default, bool)
        if not plain or default == argparse.SUPPRESS or "default" in text or not action.option_strings:
            return text
        return f"{text} (default %(default)s)".lstrip()

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Examples stay as they are written."""
        if text.startswith("examples:"):
            return text
        return super()._fill_text(text, width, indent)

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: str | None = None) -> None:
        """What must be given; the options stand below, once is enough."""
        words = [
            f"{one.option_strings[0]} {one.metavar}" for one in actions if one.required and one.option_strings
        ]
        words += [
            f"[{one.metavar} ...]" if one.nargs == "*" else str(one.metavar)
            for one in actions
            if not one.option_strings
        ]
        super().add_usage(usage or " ".join(["%(prog)s [options]", *words]), actions, groups, prefix)


class Parser(argparse.ArgumentParser):
    """A parser whose errors name the likely verb, option or value."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; a verb itself refuses what it does not know, as it knows its options."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Say in one line what was wrong, and what was likely meant."""
        meant = None
        choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice is not None:
            meant = did_you_mean(choice[1], re.findall(r"[^\s',]+", choice[2]))
        elif message.startswith("unrecognized arguments: "):
            words = message.removeprefix("unrecognized arguments: ").split()
            meant = next(filter(None, (did_you_mean(word, self._options()) for word in words)), None)
            if meant is None and not words[0].startswith("-"):
                meant = "files are named one after the other, before or behind the options"
        self.exit(2, f"{self.prog}: error: {message}; {meant or f'{self.prog} --help lists the options'}\n")

    def _options(self) -> Iterable[str]:
        return list(self._option_string_actions)
