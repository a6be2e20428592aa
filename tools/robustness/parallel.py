"""Many mutants, on every core there is."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from functools import partial

from robustness.mutations import mutant
from robustness.sandbox import Outcome, run_mutant, warm

__all__ = ["run_all"]


def run_all(seeds: Sequence[int], commands: tuple[str, ...] = ("inspect", "fuse")) -> list[Outcome]:
    """The outcome of each seed, in order.

    Each worker imports everything once and forks a child a command, so a worker itself never runs a model.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    workers = len(os.sched_getaffinity(0))
    with multiprocessing.get_context("spawn").Pool(workers, warm) as pool:
        return pool.map(partial(_one, commands=commands), seeds, chunksize=4)


def _one(seed: int, commands: tuple[str, ...]) -> Outcome:
    return run_mutant(mutant(seed), commands)
