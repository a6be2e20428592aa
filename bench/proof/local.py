"""Runs each changed region of the folded model on the original's own values and compares the results.

A region starts at values that both models share and ends at values that they must share again. Whatever stands before
or behind it, a stream of 1e5, a saturated sigmoid, a mask, has no part in it. What may differ:

* in float64 only the rounding of the numbers that the fold stored, ``4 u ‖W_c‖ max|x| + 2 u |b_c|`` for a layer, or the
  most that it can do, ``2 u Σ|W_c||x| + 2 u |b_c|`` (:mod:`convbn.bench.proof.gaps`);
* in float32 the sums as well, ``4 ε √K ‖W_c‖ max|x| + 2 ε |b_c|`` with K products a sum;
* in a region of several nodes 8 times, in float32 8 √K times, what the region's outputs move by where its numbers
  are moved by that rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from convbn.bench.models.inputs import Array
from convbn.bench.proof.claims import Alignment, Claim
from convbn.bench.proof.gaps import (
    Gap,
    beyond,
    epsilon,
    floor_bound,
    gap_of,
    layer_bound,
    noise_bound,
    relative_gap,
    rounding_bound,
    spoil_of,
    unit_of,
)
from convbn.bench.proof.graph.dataflow import COMPUTED, Dataflow, Part
from convbn.bench.proof.graph.execution import in_float64
from convbn.bench.proof.graph.whole import Whole
from convbn.bench.proof.regions import Region, terms_of
from convbn.common.dtypes import is_float
from convbn.common.progress import Progress, silent

__all__ = ["Outcome", "Values", "judge_known", "judge_regions"]

Values = Callable[[Iterable[str]], Mapping[str, Array]]

#: Products up to which everything is judged in float64, and up to which a region is that float32 left open.
_CHEAP, _COSTLY = 20_000_000, 3_000_000_000
#: Bytes of weights that are loaded at a time.
_CHUNK = 64_000_000
#: Folds of one region that are spoilt one by one, and times that its numbers are moved.
_ROUNDS, _MOVES = 256, 3
#: A float64 that is this far from the original's own value is an evaluator's fault.
_ASTRAY = 0.05


@dataclass(frozen=True)
class Outcome:
    """How one claim came out.

    Attributes:
        claim: what was to be shown.
        ok: whether it was.
        error: the largest difference, in units of the channel's largest value.
        bound: what that may be, for the channel that comes closest to it.
        how: "float64" or the type that it was computed in.
        sight: how many times over the bound a deliberate error of 1 % in the whole region stands.
        noticed: folds of the region whose deliberate error was noticed.
    """

    claim: Claim
    ok: bool
    error: float
    bound: float
    how: str
    sight: float
    noticed: frozenset[int] = frozenset()


def judge_known(claims: Iterable[Claim], alignment: Alignment, values: Values) -> list[Outcome]:
    """Claims of values that both models compute alike: that one of the original's equals another."""
    listed = [claim for claim in claims if not claim.computed]
    held = values([name for c in listed for name in (c.original, alignment.same[c.folded])])
    made = []
    for claim in listed:
        a, b = held[claim.original], held[alignment.same[claim.folded]]
        made.append(_outcome(claim, gap_of(a, b, floor_bound(b, 16 * unit_of(a))), str(a.dtype)))
    return made


def judge_regions(
    original: Dataflow,
    folded: Whole,
    alignment: Alignment,
    regions: Sequence[Region],
    folds: Mapping[Region, Sequence[tuple[int, tuple[str, ...]]]],
    values: Values,
    progress: Progress = silent,
) -> list[Outcome]:
    """Judge every region, in float64 where float32 cannot tell or where it costs little.

    Args:
        original: the model before.
        folded: the model after.
        alignment: where they are cut.
        regions: of the folded model.
        folds: by region, the number of each fold in it and the initializers that it stored there.
        values: gives the original's values by name.
        progress: is told of each region.
    """
    judge = _Judge(original, folded, alignment, folds, values)
    found: list[Outcome] = []
    done = 0
    for chunk in _chunks([region for region in regions if region.layer is not None]):
        progress("regions", done, len(regions))
        found += judge.layers(chunk)
        done += len(chunk)
    progress("regions", done, len(regions))
    found += judge.compound([region for region in regions if region.layer is None], wide=False)
    by_claim = {outcome.claim: outcome for outcome in found}
    held = values([claim.original for region in regions for claim in region.claims])
    cheap = sum(region.products(held) for region in regions) <= _CHEAP
    again = [
        region
        for region in regions
        if (cheap or not judge.settled(region, by_claim)) and region.products(held) <= _COSTLY
    ]
    for done, region in enumerate(again):
        progress("regions in float64", done, len(again))
        for outcome in judge.in_float64(region):
            by_claim[outcome.claim] = outcome
    return list(by_claim.values())


def _chunks(regions: Iterable[Region]) -> Iterable[list[Region]]:
    chunk: list[Region] = []
    size = 0
    for region in regions:
        chunk.append(region)
        size += 4 * region.weights
        if size > _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


class _Judge:
    def __init__(
        self,
        original: Dataflow,
        folded: Whole,
        alignment: Alignment,
        folds: Mapping[Region, Sequence[tuple[int, tuple[str, ...]]]],
        values: Values,
    ) -> None:
        self._original, self._folded, self._alignment = original, folded.flow, alignment
        self._run = folded.part
        self._folds, self._values = folds, values

    def settled(self, region: Region, by_claim: Mapping[Claim, Outcome]) -> bool:
        """Whether float32 has shown all there is to show."""
        outcomes = [by_claim[claim] for claim in region.claims]
        if not all(outcome.ok for outcome in outcomes):
            return False
        if region.layer is not None:
            return any(outcome.sight > 1 for outcome in outcomes)
        noticed = frozenset[int]().union(*(outcome.noticed for outcome in outcomes))
        return all(fold in noticed for fold, _ in self._folds.get(region, ()))

    def layers(self, regions: Sequence[Region]) -> list[Outcome]:
        """Regions of one linear layer, all of them in one run."""
        part = self._folded.part(_wanted(regions), self._alignment.same)
        feeds = self._feeds(part)
        given = self._run(_typed(part, feeds)).run(feeds)
        held = self._values([claim.original for region in regions for claim in region.claims])
        made = []
        for region in regions:
            layer = region.layer
            if layer is None:  # the caller picks them
                continue
            for claim in region.claims:
                a, b = held[claim.original], _computed(given, claim)
                bound = layer_bound(layer, feeds[layer.data], unit_of(a), sums=True)
                made.append(_outcome(claim, gap_of(a, b, bound, layer), str(a.dtype)))
        return made

    def compound(self, regions: Sequence[Region], *, wide: bool) -> list[Outcome]:
        """Regions of several nodes: what moves their outputs is found by moving their numbers."""
        if not regions:
            return []
        part = self._folded.part(
            _wanted(regions),
            self._alignment.same,
            {name for region in regions for name in region.loose},
            embedded=wide,
        )
        feeds = self._feeds(part)
        samples = [feeds, *self._moved(regions, feeds, wide=wide), *self._spoilt(regions, feeds)]
        if wide:
            exact = in_float64(part.model, samples)
            if exact is None:
                return []
            given = exact
        else:
            runner = self._run(_typed(part, feeds))
            given = [runner.run(sample) for sample in samples]
        claims = [claim for region in regions for claim in region.claims]
        held = self._in_original(claims) if wide else self._values([claim.original for claim in claims])
        made = []
        for region in regions:
            terms = 1 if wide else max(terms_of(self._folded, region), 1)
            numbers = [fold for fold, _ in self._folds.get(region, ())]
            for claim in region.claims:
                if held is None or claim.original not in held:
                    continue
                a, b, *others = held[claim.original], *(_computed(run, claim) for run in given)
                unit = _stored_unit(self._folded, region, a) if wide else unit_of(a)
                bound = noise_bound(b, others[:_MOVES], math.sqrt(terms), unit)
                outcome = _outcome(claim, gap_of(a, b, bound), "float64" if wide else str(a.dtype))
                seen = frozenset(
                    fold
                    for fold, spoilt in zip(numbers, others[_MOVES:], strict=False)
                    if beyond(b, spoilt, bound)
                )
                made.append(replace(outcome, noticed=seen))
        return made

    def in_float64(self, region: Region) -> list[Outcome]:
        """One region in float64; nothing where the evaluator cannot be trusted with it."""
        if region.layer is None:
            return self.compound([region], wide=True)
        layer = region.layer
        part = self._folded.part(_wanted([region]), self._alignment.same, region.loose, embedded=True)
        feeds = self._feeds(part)
        runs = in_float64(part.model, [feeds])
        held = self._in_original(region.claims)
        if runs is None or held is None:
            return []
        made = []
        for claim in region.claims:
            if claim.original in held:
                a, b = held[claim.original], _computed(runs[0], claim)
                gap = gap_of(a, b, layer_bound(layer, feeds[layer.data], 0.0, sums=False), layer)
                reach = None if gap.ok else in_float64(part.model, [_sizes(self._folded, region, feeds)])
                if reach is not None:
                    gap = gap_of(a, b, rounding_bound(layer, _computed(reach[0], claim)), layer)
                made.append(_outcome(claim, gap, "float64"))
        return made

    def _in_original(self, claims: Sequence[Claim]) -> dict[str, Array] | None:
        """The original's values in float64, computed from the shared values before them."""
        names = list(dict.fromkeys(claim.original for claim in claims))
        fed = [name for name in names if name not in self._original.producer]
        part = self._original.part(
            [n for n in names if n not in fed],
            set(self._alignment.same.values()) | set(names),
            embedded=True,
        )
        feeds = self._values(part.feeds)
        runs = in_float64(part.model, [feeds])
        if runs is None:
            return None
        own = self._values(names)
        found = {}
        for name in names:
            value = own[name] if name in fed else runs[0].get(name + COMPUTED, runs[0].get(name))
            if value is not None and relative_gap(own[name], value) <= _ASTRAY:
                found[name] = value
        return found

    def _feeds(self, part: Part) -> dict[str, Array]:
        same = self._alignment.same
        held = self._values([same[name] for name in part.feeds if name in same])
        return {name: held[same[name]] if name in same else self._folded.array(name) for name in part.feeds}

    def _moved(
        self, regions: Sequence[Region], feeds: Mapping[str, Array], *, wide: bool
    ) -> list[dict[str, Array]]:
        """What the fold stored moved by its rounding, upwards and twice at random; in float32 all that is read."""
        stored = {name for region in regions for name in region.fresh or region.loose}
        made = []
        for seed in range(_MOVES):
            random = np.random.default_rng(seed)
            moved = {}
            for name, array in feeds.items():
                if not is_float(array.dtype) or (wide and name not in stored):
                    moved[name] = array
                    continue
                step = (1 if wide else 2) * epsilon(array.dtype)
                signs = random.integers(0, 2, array.shape) * 2.0 - 1 if seed else np.where(array < 0, -1, 1)
                exact = array.astype(np.float64) * (1 + step * signs)
                moved[name] = exact if wide else exact.astype(array.dtype)
            made.append(moved)
        return made

    def _spoilt(self, regions: Sequence[Region], feeds: Mapping[str, Array]) -> list[dict[str, Array]]:
        """One fold of every region at a time, off by 1 %."""
        rounds = min(_ROUNDS, max((len(self._folds.get(region, ())) for region in regions), default=0))
        made = []
        for turn in range(rounds):
            spoilt = dict(feeds)
            for region in regions:
                folds = self._folds.get(region, ())
                for name in folds[turn][1] if turn < len(folds) else ():
                    spoilt[name] = (
                        feeds[name].astype(np.float64) * (1 + spoil_of(feeds[name].dtype))
                    ).astype(feeds[name].dtype)
            made.append(spoilt)
        return made


def _outcome(claim: Claim, gap: Gap, how: str) -> Outcome:
    return Outcome(claim, gap.ok, gap.error, gap.bound, how, gap.sight)


def _wanted(regions: Sequence[Region]) -> list[str]:
    return list(dict.fromkeys(claim.folded for region in regions for claim in region.claims))


def _sizes(folded: Dataflow, region: Region, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The sizes of what a layer reads, and no bias."""
    biases = [name for i in region.nodes for name in folded.nodes[i].input[2:]]
    return {name: np.zeros_like(a) if name in biases else np.abs(a) for name, a in feeds.items()}


def _computed(given: Mapping[str, Array], claim: Claim) -> Array:
    found = given.get(claim.folded + COMPUTED)
    return given[claim.folded] if found is None else found


def _stored_unit(folded: Dataflow, region: Region, a: Array) -> float:
    """ε of the coarsest numbers that a region stores."""
    from onnx import helper

    kinds = [helper.tensor_dtype_to_np_dtype(folded.constants[name].data_type) for name in region.loose]
    return max((epsilon(np.dtype(kind)) for kind in kinds), default=unit_of(a))


def _typed(part: Part, feeds: Mapping[str, Array]) -> Part:
    """The part with the types of what it is fed with, which onnxruntime wants to know."""
    from onnx import helper

    for value in part.model.graph.input:
        array = feeds[value.name]
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, [None] * array.ndim))
    return part
