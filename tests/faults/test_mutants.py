"""Hundreds of broken models, each of which must end in an equal result or one typed line."""

from __future__ import annotations

from collections import Counter

import pytest
from robustness.mutations import MUTATIONS, mutant
from robustness.parallel import run_all

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
