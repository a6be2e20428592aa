"""The options of verbs that take many models: folders, patterns and lists of files."""

from __future__ import annotations

import argparse

from convbn.commands.options.parsing import whole

__all__ = ["add_many_arguments"]


def add_many_arguments(verb: argparse.ArgumentParser, *, more: bool = True, writes: bool = False) -> None:
    """Let a verb take many models.

    Args:
        verb: its parser, which has its first model.
        more: whether further ones may be named; ``verify`` takes two folders.
        writes: whether it writes a file for each.
    """
    if more:
        verb.add_argument(
            "others", metavar="IN", nargs="*", help="more models; each may be a folder or a 'pattern'"
        )
    group = verb.add_argument_group("many models (docs/scale.md)")
    group.add_argument(
        "--workers", type=whole(1), metavar="N", help="how many at once; one a processor without"
    )
    if writes:
        group.add_argument("--suffix", metavar=".S", help="what the files in the folder OUT end in")
