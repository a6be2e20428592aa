"""Each folded region, run on the original's own values, against what the original made of them.

A region starts at values that both models share and ends at values that they must share again. Whatever stands before
or behind it, a stream of 1e5, a saturated sigmoid, a mask, has no part in it. What may differ:

* in float64 only the rounding of the numbers that the fold stored, ``4 u ‖W_c‖ max|x| + 2 u |b_c|`` for a layer;
* in float32 the sums as well, ``4 ε √K ‖W_c‖ max|x| + 2 ε |b_c|`` with K products a sum;
* in a region of several nodes 8 times, in float32 8 √K times, what the region's outputs move by where its numbers
  are moved by that rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from convbn.bench.models.errors import SessionError
from convbn.bench.models.inputs import Array
from convbn.common.dtypes import dtype_of, is_float
from convbn.bench.proof.claims import Alignment, Claim
from convbn.bench.proof.dataflow import COMPUTED, Dataflow, Part
from convbn.bench.proof.execution import in_float64
from convbn.bench.proof.regions import LinearLayer, Region
from convbn.bench.proof.whole import Whole

__all__ = ["Outcome", "Values", "judge_known", "judge_regions", "relative_gap"]

Values = Callable[[Iterable[str]], Mapping[str, Array]]

#: The deliberate error by which a comparison shows that it could have failed.
SPOIL = 0.01
_MARGIN, _NOISE_MARGIN = 4.0, 8.0
#: Products up to which everything is judged in float64, and up to which a region is that float32 left open.
_CHEAP, _COSTLY = 20_000_000, 3_000_000_000
#: Bytes of weights that are loaded at a time.
_CHUNK = 64_000_000
#: Folds of one region that are spoilt one by one.
_ROUNDS = 48
#: A float64 that is this far from the original's own value is an evaluator's fault.
_ASTRAY = 0.05
#: Values below which a channel's noise is no less than that of half of the channels.
_FEW = 64


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
        unit = _unit(a)
        made.append(_outcome(claim, a, b, _floor(b, 1, 16 * unit), str(a.dtype), 1))
    return made


def judge_regions(
    original: Dataflow,
    folded: Whole,
    alignment: Alignment,
    regions: Sequence[Region],
    folds: Mapping[Region, Sequence[tuple[int, tuple[str, ...]]]],
    values: Values,
) -> list[Outcome]:
    """Judge every region, in float64 where float32 cannot tell or where it costs little.

    Args:
        original: the model before.
        folded: the model after.
        alignment: where they are cut.
        regions: of the folded model.
        folds: by region, the number of each fold in it and the initializers that it stored there.
        values: gives the original's values by name.
    """
    judge = _Judge(original, folded, alignment, folds, values)
    found: list[Outcome] = []
    for chunk in _chunks([region for region in regions if region.layer is not None]):
        found += judge.layers(chunk)
    found += judge.compound([region for region in regions if region.layer is None], wide=False)
    by_claim = {outcome.claim: outcome for outcome in found}
    held = values([claim.original for region in regions for claim in region.claims])
    cheap = sum(region.products(held) for region in regions) <= _CHEAP
    again = [
        region
        for region in regions
        if (cheap or not judge.settled(region, by_claim)) and region.products(held) <= _COSTLY
    ]
    for region in again:
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
                bound = layer_bound(layer, feeds[layer.data], _unit(a), sums=True)
                made.append(_outcome(claim, a, b, bound, str(a.dtype), layer.axis))
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
            terms = 1 if wide else max(_terms(self._folded, region), 1)
            numbers = [fold for fold, _ in self._folds.get(region, ())]
            for claim in region.claims:
                if held is None or claim.original not in held:
                    continue
                a, b, *others = held[claim.original], *(_computed(run, claim) for run in given)
                unit = _unit_of(self._folded, region, a)
                bound = _noise_bound(b, others[:2], math.sqrt(terms), unit if wide else _unit(a))
                outcome = _outcome(claim, a, b, bound, "float64" if wide else str(a.dtype), 1)
                seen = frozenset(
                    fold
                    for fold, spoilt in zip(numbers, others[2:], strict=False)
                    if _beyond(b, spoilt, bound)
                )
                made.append(replace(outcome, noticed=seen))
        return made

    def in_float64(self, region: Region) -> list[Outcome]:
        """One region in float64; nothing where the evaluator cannot be trusted with it."""
        if region.layer is None:
            return self.compound([region], wide=True)
        part = self._folded.part(_wanted([region]), self._alignment.same, embedded=True)
        feeds = self._feeds(part)
        runs = in_float64(part.model, [feeds])
        held = self._in_original(region.claims)
        if runs is None or held is None:
            return []
        layer = region.layer
        made = []
        for claim in region.claims:
            if claim.original in held:
                bound = layer_bound(layer, feeds[layer.data], _epsilon(layer.dtype), sums=False)
                a, b = held[claim.original], _computed(runs[0], claim)
                made.append(_outcome(claim, a, b, bound, "float64", layer.axis))
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
            if value is not None and _near(value, own[name]):
                found[name] = value
        return found

    def _feeds(self, part: Part) -> dict[str, Array]:
        same = self._alignment.same
        held = self._values([same[name] for name in part.feeds if name in same])
        return {
            name: held[same[name]] if name in same else self._folded.array(name) for name in part.feeds
        }

    def _moved(
        self, regions: Sequence[Region], feeds: Mapping[str, Array], *, wide: bool
    ) -> list[dict[str, Array]]:
        """The numbers moved by their rounding, twice over, and in float32 the values as well."""
        loose = {name for region in regions for name in region.loose}
        made = []
        for seed in range(2):
            random = np.random.default_rng(seed)
            moved = {}
            for name, array in feeds.items():
                if not is_float(array.dtype) or (wide and name not in loose):
                    moved[name] = array
                    continue
                step = (1 if wide else 2) * _epsilon(array.dtype)
                signs = random.integers(0, 2, array.shape) * 2.0 - 1
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
                    spoilt[name] = (feeds[name].astype(np.float64) * (1 + spoil_of(feeds[name].dtype))).astype(
                        feeds[name].dtype
                    )
            made.append(spoilt)
        return made


def layer_bound(layer: LinearLayer, data: Array, unit: float, *, sums: bool) -> Array:
    """How far one layer's output may be off, by channel.

    Args:
        layer: the layer.
        data: its input.
        unit: the type's ε.
        sums: whether the sums are rounded as well as the weights.
    """
    largest = float(np.abs(np.nan_to_num(data.astype(np.float64), posinf=0, neginf=0)).max(initial=0.0))
    stored = _epsilon(layer.dtype) / 2
    weights = _MARGIN * (stored + (unit * math.sqrt(layer.terms) if sums else 0.0)) * layer.norms * largest
    bound: Array = weights + 2 * (stored + (unit if sums else 0.0)) * layer.bias
    return bound


def spoil_of(dtype: np.dtype[np.generic]) -> float:
    """The deliberate error: 1 %, or what 16 bits can tell."""
    return max(SPOIL, 16 * _epsilon(dtype))


def _noise_bound(b: Array, moved: Sequence[Array], root_of_terms: float, unit: float) -> Array:
    if not is_float(b.dtype) and b.dtype.kind != "c":
        share = max((float(np.mean(b != other)) for other in moved), default=0.0)
        return np.asarray(_NOISE_MARGIN * share)
    rows = [_by_channel(_difference(b, other), 1) for other in moved]
    noise = np.max([row.max(axis=1, initial=0.0) for row in rows], axis=0)
    if rows[0].shape[1] < _FEW and noise.size:  # of a few values none may have moved
        noise = np.maximum(noise, np.median(noise))
    bound: Array = _NOISE_MARGIN * root_of_terms * noise + _floor(b, 1, 4 * unit)
    return bound


def _outcome(claim: Claim, a: Array, b: Array, bound: Array, how: str, axis: int) -> Outcome:
    if a.shape != b.shape or (a.dtype.kind in "fc") != (b.dtype.kind in "fc"):
        return Outcome(claim, False, math.inf, 0.0, how, 0.0)
    if not is_float(a.dtype) and a.dtype.kind != "c":
        share = float(np.mean(a != b)) if a.size else 0.0
        return Outcome(claim, share <= float(np.max(bound, initial=0)), share, float(np.max(bound)), how, 0.0)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return Outcome(claim, False, math.inf, 0.0, how, 0.0)
    gaps = _by_channel(_difference(a, b), axis).max(axis=1, initial=0.0)
    level = _by_channel(_finite(b), axis).max(axis=1, initial=0.0)
    bounds = np.broadcast_to(np.maximum(bound, np.finfo(np.float64).tiny), gaps.shape)
    worst = int(np.argmax(gaps / bounds)) if gaps.size else 0
    if not gaps.size:
        return Outcome(claim, True, 0.0, 0.0, how, 0.0)
    unit = float(level[worst]) or 1.0
    sight = float((spoil_of(a.dtype) * level / bounds).max())
    ok = bool((gaps <= bounds).all())
    return Outcome(claim, ok, float(gaps[worst]) / unit, float(bounds[worst]) / unit, how, sight)


def _beyond(base: Array, spoilt: Array, bound: Array) -> bool:
    if base.shape != spoilt.shape:
        return True
    if not is_float(base.dtype) and base.dtype.kind != "c":
        return float(np.mean(base != spoilt)) > float(np.max(bound, initial=0.0))
    if not np.array_equal(np.isfinite(base), np.isfinite(spoilt)):
        return True
    gaps = _by_channel(_difference(base, spoilt), 1).max(axis=1, initial=0.0)
    return bool((gaps > bound).any())


def relative_gap(a: Array, b: Array) -> float:
    """max |a − b| / max |a|; infinite where they cannot be compared."""
    if a.shape != b.shape or not np.array_equal(_nonfinite(a), _nonfinite(b)):
        return math.inf
    gap = float(_difference(a, b).max(initial=0.0))
    return gap if gap == 0.0 else gap / (float(_finite(a).max(initial=0.0)) or gap)


def _nonfinite(array: Array) -> Array:
    return ~np.isfinite(array if array.dtype.kind == "c" else array.astype(np.float64))


def _difference(a: Array, b: Array) -> Array:
    difference: Array = np.abs(_plain(a) - _plain(b))
    return difference


def _plain(array: Array) -> Array:
    wide = array if array.dtype.kind == "c" else array.astype(np.float64)
    plain: Array = np.where(np.isfinite(wide), wide, 0)
    return plain


def _finite(array: Array) -> Array:
    absolute: Array = np.abs(_plain(array))
    return absolute


def _floor(b: Array, axis: int, unit: float) -> Array:
    floor: Array = unit * _by_channel(_finite(b), axis).max(axis=1, initial=0.0)
    return floor


def _by_channel(array: Array, axis: int) -> Array:
    if array.ndim < 2:
        return array.reshape(1, -1)
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def _near(exact: Array, own: Array) -> bool:
    if exact.shape != own.shape:
        return False
    if not is_float(own.dtype) and own.dtype.kind != "c":
        return True
    largest = float(_finite(own).max(initial=0.0))
    return float(_difference(exact, own).max(initial=0.0)) <= _ASTRAY * largest + 1e-30


def _wanted(regions: Sequence[Region]) -> list[str]:
    return list(dict.fromkeys(claim.folded for region in regions for claim in region.claims))


def _computed(given: Mapping[str, Array], claim: Claim) -> Array:
    found = given.get(claim.folded + COMPUTED)
    return given[claim.folded] if found is None else found


def _terms(folded: Dataflow, region: Region) -> int:
    """Products in the longest sum of a region, about: the numbers of a weight over its output channels."""
    terms = 0
    for i in region.nodes:
        for name in folded.nodes[i].input[1:2]:
            if name in folded.constants and len(folded.constants[name].dims) > 1:
                dims = folded.constants[name].dims
                terms = max(terms, math.prod(dims) // max(1, min(dims)))
    return terms


def _unit_of(folded: Dataflow, region: Region, a: Array) -> float:
    from onnx import helper

    units = [
        _epsilon(np.dtype(helper.tensor_dtype_to_np_dtype(folded.constants[name].data_type)))
        for name in region.loose
    ]
    return max(units, default=_unit(a))


def _unit(array: Array) -> float:
    return _epsilon(array.dtype) if is_float(array.dtype) else float(np.finfo(np.float32).eps)


def _epsilon(dtype: np.dtype[np.generic]) -> float:
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype_of(dtype.name)).eps)


def _typed(part: Part, feeds: Mapping[str, Array]) -> Part:
    """The part with the types of what it is fed with, which onnxruntime wants to know."""
    from onnx import helper

    for value in part.model.graph.input:
        array = feeds[value.name]
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, [None] * array.ndim))
    return part
