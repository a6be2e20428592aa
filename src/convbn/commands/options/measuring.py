"""Options of ``convbn bench`` that say what is measured, and how."""

from __future__ import annotations

import argparse

from convbn.commands.options.parsing import number, numbers, whole
from convbn.export.precision.precisions import PRECISIONS

__all__ = ["add_measuring_arguments"]


def add_measuring_arguments(bench: argparse.ArgumentParser) -> None:
    """What is measured, and how."""
    what = bench.add_argument_group("what is measured")
    what.add_argument("--alone", action="store_true", help="measure IN by itself, against nothing")
    what.add_argument(
        "--each", action="store_true", help="measure IN and every OTHER against its folded self"
    )
    what.add_argument("--runtime", metavar="NAME,...", help="runtimes to measure in (see convbn doctor)")
    what.add_argument("--batch", type=numbers, metavar="N,...", help="batch sizes, as in 1,8,32")
    what.add_argument(
        "--precision", metavar="P,...", help=f"{', '.join(PRECISIONS)}: convert every side first"
    )
    what.add_argument(
        "--threads", type=numbers, metavar="N,...", help="threads of each runtime; its default without"
    )
    how = bench.add_argument_group("how it is measured")
    how.add_argument(
        "--budget", type=number(0), metavar="S", help="seconds for each runtime of a case (default 5)"
    )
    how.add_argument(
        "--total-budget", type=number(0), metavar="S", help="seconds for everything, kept to a round"
    )
    how.add_argument(
        "--blocks", type=whole(1), metavar="N", help="paired blocks after which there are enough"
    )
    how.add_argument(
        "--flush-l2", action="store_true", help="overwrite a GPU's L2 cache before each inference"
    )
    how.add_argument("--no-memory", action="store_true", help="do not measure memory, in a process a side")
