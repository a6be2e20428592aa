"""How arguments are read: short help, and the word that was meant beside one that is none."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from convbn.common.text import did_you_mean

__all__ = ["Help", "Parser"]


class Help(argparse.HelpFormatter):
    """One line an option, where its name and its meaning fit into one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=27)

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
        """Say what was wrong, and what was likely meant."""
        meant = None
        choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice is not None:
            meant = did_you_mean(choice[1], re.findall(r"'(.*?)'", choice[2]))
        elif message.startswith("unrecognized arguments: "):
            words = message.removeprefix("unrecognized arguments: ").split()
            meant = next(filter(None, (did_you_mean(word, self._options()) for word in words)), None)
        super().error(message if meant is None else f"{message}; {meant}")

    def _options(self) -> Iterable[str]:
        return list(self._option_string_actions)
