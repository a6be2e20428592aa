"""Hundreds of broken models, each of which must end in an equal result or one typed line."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from robustness.mutations import MUTATIONS, mutant
from robustness.parallel import run_all
from robustness.sandbox import agree

MUTANTS = 516
"""Twelve rounds of every mutation."""


@pytest.mark.slow
def test_no_mutant_crashes_hangs_balloons_or_gives_a_wrong_result() -> None:
    outcomes = run_all(range(MUTANTS))
    assert [str(o) for o in outcomes if not o.survived] == []
    verdicts = Counter(o.verdict for o in outcomes)
    # Neither all refused nor all let through: then the mutations would show nothing.
    assert verdicts["equal"] > MUTANTS // 10
    assert verdicts["refused"] > MUTANTS // 4


def test_every_mutation_has_its_turn() -> None:
    assert {mutant(seed).mutation for seed in range(len(MUTATIONS))} == set(MUTATIONS)
    assert MUTANTS % len(MUTATIONS) == 0


def test_a_seed_gives_the_same_mutant_every_time() -> None:
    for seed in range(3 * len(MUTATIONS)):
        assert mutant(seed) == mutant(seed)


@pytest.mark.slow
@pytest.mark.parametrize(("commands", "every"), [(("verify", "export"), 1), (("bench",), 4)])
def test_the_other_commands_survive_as_well(commands: tuple[str, ...], every: int) -> None:
    outcomes = run_all(range(1000, 1000 + len(MUTATIONS), every), commands)
    assert [str(o) for o in outcomes if not o.survived] == []


@pytest.mark.parametrize(
    ("expected", "given", "same"),
    [
        ([1.0, 2.0], [1.0, 2.0001], True),
        ([1.0, 2.0], [1.0, 2.1], False),
        ([3e38, 1.0], [np.inf, 1.0], True),
        ([np.inf, 1.0], [2e38, 1.0], True),
        ([np.inf, np.nan], [np.nan, np.inf], True),
        ([np.inf, 1.0], [1e30, 1.0], False),
        ([5.0, 1.0], [np.nan, 1.0], False),
        ([np.nan, 1.0], [5.0, 1.0], False),
        ([3e38, 1.0], [np.inf, 1.1], False),
        ([], [], True),
    ],
)
def test_outputs_near_the_largest_number_may_overflow_one_by_one(
    expected: list[float], given: list[float], same: bool
) -> None:
    assert agree(np.float32(expected), np.float32(given)) is same
    assert agree(np.float32(expected), np.float64(given)) is False
    assert agree(np.int64([1, 2]), np.int64([1, 3])) is True
