"""Statistics of timings: seconds for times; candidate time / baseline time for ratios (below 1 is faster)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from convbn.common.encoding import JsonReady

__all__ = ["Latency", "Ratio", "Verdict", "latency", "paired_ratio", "unpaired_ratio"]

Verdict: TypeAlias = Literal["faster", "slower", "no difference detected"]

FloatArray = npt.NDArray[np.float64]

#: Resamples of the bootstrap; the interval moves by well under a tenth of its width between seeds.
RESAMPLES = 4000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Latency(JsonReady):
    """Distribution of the time of one inference, in seconds, nothing left out.

    Attributes:
        n: number of inferences.
        cv: coefficient of variation, standard deviation / mean, a pure number.
    """

    min: float
    p25: float
    median: float
    p75: float
    p90: float
    p95: float
    p99: float
    max: float
    mean: float
    cv: float
    n: int


@dataclass(frozen=True)
class Ratio(JsonReady):
    """Median of paired time ratios with its bootstrap interval.

    Attributes:
        median: of candidate / baseline over the pairs.
        low: lower end of the interval.
        high: upper end of the interval.
        confidence: of the interval.
        pairs: number of pairs.
    """

    median: float
    low: float
    high: float
    confidence: float
    pairs: int

    @property
    def excludes_one(self) -> bool:
        """Whether "no difference" lies outside the interval."""
        return not self.low <= 1.0 <= self.high

    def verdict(self, noise_floor: float) -> Verdict:
        """What it shows: a difference leaves 1 out of the interval and is larger than the noise floor."""
        if not self.excludes_one or abs(self.median - 1.0) <= noise_floor:
            return "no difference detected"
        return "faster" if self.median < 1.0 else "slower"

    @property
    def farthest_from_one(self) -> float:
        """How far from 1 the interval reaches, either way."""
        return max(abs(self.low - 1.0), abs(self.high - 1.0))


def latency(seconds: Sequence[float] | FloatArray) -> Latency:
    """Describe single inference times.

    Args:
        seconds: one value an inference, at least one.

    Returns:
        Quantiles by linear interpolation, mean and coefficient of variation.

    Raises:
        ValueError: there are no values, or one of them is not finite.
    """
    values = np.asarray(seconds, dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError("a latency needs at least one time, all of them finite")
    low, p25, median, p75, p90, p95, p99, high = np.percentile(
        values, (0, 25, 50, 75, 90, 95, 99, 100)
    ).tolist()
    mean = float(values.mean())
    cv = float(values.std()) / mean if mean > 0 else 0.0
    return Latency(low, p25, median, p75, p90, p95, p99, high, mean, cv, int(values.size))


def paired_ratio(
    candidate: Sequence[float] | FloatArray,
    baseline: Sequence[float] | FloatArray,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Ratio:
    """How long the candidate takes relative to the baseline.

    Pairs are blocks that ran right after each other, so a slow phase of the machine hits both and
    cancels. The interval is the percentile bootstrap over pairs (Efron and Tibshirani 1993, chapter 13).

    Args:
        candidate: seconds per inference of each block.
        baseline: those of the block it is paired with.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        confidence: of the interval.

    Returns:
        Median and interval of candidate / baseline.

    Raises:
        ValueError: there are no pairs, the lengths differ, or a time is not positive.
    """
    a, b = np.asarray(candidate, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if a.shape != b.shape or a.size == 0:
        raise ValueError("paired ratios need as many candidate as baseline times, at least one each")
    if not ((a > 0) & (b > 0)).all():
        raise ValueError("a block took no time: the clock is too coarse for the block length")
    ratios = a / b
    medians = _medians(ratios, np.random.default_rng(seed), resamples)
    return _ratio(float(np.median(ratios)), medians, confidence, ratios.size)


def unpaired_ratio(
    candidate: Sequence[float] | FloatArray, baseline: Sequence[float] | FloatArray, *, seed: int
) -> Ratio:
    """Ratio of the medians of two independent samples, with its percentile bootstrap interval.

    Args:
        candidate: one sample.
        baseline: the other.
        seed: of the bootstrap.
    """
    samples = [np.asarray(values, dtype=np.float64) for values in (candidate, baseline)]
    draw = np.random.default_rng(seed)
    medians = [_medians(values, draw, RESAMPLES) for values in samples]
    middle = float(np.median(samples[0]) / np.median(samples[1]))
    return _ratio(middle, medians[0] / medians[1], CONFIDENCE, min(values.size for values in samples))


def _medians(values: FloatArray, draw: np.random.Generator, resamples: int) -> FloatArray:
    picks = draw.integers(0, values.size, (resamples, values.size))
    medians: FloatArray = np.median(values[picks], axis=1)
    return medians


def _ratio(middle: float, medians: FloatArray, confidence: float, pairs: int) -> Ratio:
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(medians, (tail, 1.0 - tail)).tolist()
    return Ratio(middle, low, high, confidence, int(pairs))
