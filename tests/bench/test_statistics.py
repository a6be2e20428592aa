from __future__ import annotations

import numpy as np
import pytest

from convbn.bench.results.statistics import latency, paired_ratio


def test_quantiles_of_known_times() -> None:
    found = latency(np.arange(101) / 1000)
    assert (found.min, found.median, found.p90, found.p99, found.max) == pytest.approx(
        (0, 0.05, 0.09, 0.099, 0.1)
    )
    assert found.n == 101
    assert found.cv == pytest.approx(np.std(np.arange(101)) / 50)


@pytest.mark.parametrize("bad", [[], [float("nan")], [1.0, float("inf")]])
def test_a_latency_of_nothing_is_a_bug(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        latency(bad)


def test_the_direction_is_candidate_over_baseline() -> None:
    ratio = paired_ratio([1.0] * 10, [2.0] * 10, seed=0)
    assert (ratio.median, ratio.low, ratio.high, ratio.pairs) == (0.5, 0.5, 0.5, 10)
    assert ratio.excludes_one
    assert ratio.farthest_from_one == 0.5


def test_pairing_cancels_a_drift_that_hits_both() -> None:
    drift = np.linspace(1, 3, 30)
    noise = np.random.default_rng(0).normal(1, 0.002, 30)
    ratio = paired_ratio(1.05 * drift * noise, drift, seed=0)
    assert ratio.low < 1.05 < ratio.high
    assert ratio.high - ratio.low < 0.01


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for trial in range(200):
        a, b = rng.lognormal(0, 0.05, (2, 25))
        ratio = paired_ratio(a, b, seed=trial, resamples=2000)
        hits += ratio.low <= 1.0 <= ratio.high
    assert 180 <= hits <= 199


def test_one_slow_block_does_not_move_the_median() -> None:
    candidate = [1.0] * 29 + [50.0]
    assert paired_ratio(candidate, [1.0] * 30, seed=0).median == 1.0


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0])])
def test_pairs_must_pair(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match=r"pair|clock"):
        paired_ratio(a, b, seed=0)
