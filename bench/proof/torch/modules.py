"""The proof of a fold of a PyTorch module, in float64: each layer that took a BatchNorm in, and the whole module.

A layer is given what its counterpart in the original was given, and must give what the BatchNorm gave (or, where the
BatchNorm stood in front, what the counterpart gave). Casts, new tensors and autocast of the module itself keep float64;
one that does not run in it all the same gives both in its own type. The whole module is compared in float64 where its
own type is too coarse: what the outputs then move by where the stored weights are moved by their rounding is what they
may be off by.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from convbn.bench.equivalence.difference import Verdict
from convbn.bench.models.arguments import array_of
from convbn.bench.models.inputs import Array, Feeds
from convbn.bench.proof.claims import Claim
from convbn.bench.proof.gaps import Bound, beyond, gap_of, noise_bound
from convbn.bench.proof.local import Outcome
from convbn.bench.proof.prove import IN_OUTPUTS, FoldPlan, LocalProof, Shown
from convbn.bench.proof.torch.copies import (
    in_float64,
    kept_wide,
    moved_by_rounding,
    put_off,
    spoilt_copy,
    wide_feeds,
)
from convbn.common.progress import Progress, silent
from convbn.fuse.frontends.torch.modules.copies import duplicate

if TYPE_CHECKING:
    import torch

__all__ = ["Run", "layer_named", "other_mode", "prove_layers", "settled_in_float64", "shown_by_spoiling"]

Run = Callable[["torch.nn.Module", Feeds], list[Array]]


def other_mode(reference: torch.nn.Module, candidate: torch.nn.Module) -> str | None:
    """The first module that is in training mode in only one of the two; None if there is none.

    Modules without a class, which hold the tensors of a graph module, run nothing.
    """
    import torch

    modes = {
        name: part.training for name, part in reference.named_modules() if type(part) is not torch.nn.Module
    }
    return next(
        (name for name, part in candidate.named_modules() if name in modes and part.training != modes[name]),
        None,
    )


def prove_layers(
    reference: torch.nn.Module, candidate: torch.nn.Module, plan: FoldPlan, feeds: Feeds, run: Run
) -> LocalProof | None:
    """Judge every layer that took one BatchNorm in, right behind or in front of it.

    Args:
        reference: the module before; a copy of it runs.
        candidate: the module after, likewise.
        plan: the folds; names are paths of modules.
        feeds: the input.
        run: runs a module.

    Returns:
        None where the module cannot be copied.
    """
    for copied, given, kept in (
        (in_float64, wide_feeds(feeds), kept_wide),
        (partial(duplicate, share=False), feeds, nullcontext),
    ):
        watch = _Watch(candidate, plan)
        with suppress(Exception):  # whatever a module's own code raises in another type
            original = copied(reference)
            with watch.on(original), kept():
                run(original, given)
            shown = (Shown(name, watch.seen.get(number)) for number, (name, _) in enumerate(plan.folds))
            return LocalProof(tuple(watch.outcomes), tuple(shown), len(watch.outcomes))
    return None


def settled_in_float64(
    reference: torch.nn.Module,
    candidate: torch.nn.Module,
    plan: FoldPlan,
    feeds: Sequence[Feeds],
    run: Run,
) -> Verdict | None:
    """The verdict of float64 on the whole module; None where it cannot tell.

    Args:
        reference: the module before; a copy of it runs.
        candidate: the module after, likewise.
        plan: the folds.
        feeds: the inputs.
        run: runs a module.
    """
    worst = 0.0
    try:
        before, after = in_float64(reference), in_float64(candidate)
        moved = list(moved_by_rounding(candidate, {layer for _, into in plan.folds for layer in into}))
        for sample in map(wide_feeds, feeds):
            with kept_wide():
                a, b, *others = (run(module, sample) for module in (before, after, *moved))
            for x, y, *noisy in zip(a, b, *others, strict=True):
                gap = gap_of(x, y, noise_bound(y, noisy, 1.0, 2.0**-23))
                if not gap.ok or gap.bound > _BLIND:
                    return None
                worst = max(worst, gap.error)
    except Exception:  # whatever a module's own code raises in another type
        return None
    reason = (
        f"in float64, where the whole module is as far apart as its stored weights are rounded ({worst:.1g})"
    )
    return Verdict("equal", reason)


def layer_named(module: torch.nn.Module, name: str) -> torch.nn.Module | None:
    """The layer of that path; where one is called by its tensors alone, a module that holds these, or the first.

    Args:
        module: the whole, or that of an exported program.
        name: a path, that of a tensor, or the name of a node in the program's graph.
    """
    import torch

    part: torch.nn.Module | None = dict(module.named_modules()).get(name)
    if part is not None:
        return part
    held = dict(module.named_parameters()).get(name)
    tensors = [] if held is None else [held]
    if isinstance(module, torch.fx.GraphModule):
        node = next((node for node in module.graph.nodes if node.name == name), None)
        read = [one for one in (node.all_input_nodes if node is not None else ()) if one.op == "get_attr"]
        tensors += [attrgetter(str(one.target))(module) for one in read]
    if not tensors:
        return None
    layer = torch.nn.Module()
    for place, tensor in enumerate(tensors):
        layer.register_parameter(str(place), torch.nn.Parameter(tensor.detach(), requires_grad=False))
    return layer


def shown_by_spoiling(
    candidate: torch.nn.Module,
    plan: FoldPlan,
    local: LocalProof,
    notices: Callable[[torch.nn.Module], bool],
    progress: Progress = silent,
) -> LocalProof:
    """What is not shown layer by layer may be seen in the outputs: a deliberate error of 1 % in one layer.

    Args:
        candidate: the module after; copies of it are spoilt.
        plan: the folds.
        local: what is shown so far.
        notices: whether the outputs of a spoilt copy are told from the original's.
        progress: is told of each fold.
    """
    shown = list(local.shown)
    unseen = [number for number, (_, into) in enumerate(plan.folds) if shown[number].how is None and into]
    if not unseen:
        return local
    try:
        spoilt = duplicate(candidate, share=False)
    except Exception:  # whatever a module's own code raises
        return local
    turns = unseen[:_TURNS]
    for done, number in enumerate(turns):
        progress("folds in the outputs", done, len(turns))
        name, into = plan.folds[number]
        layer = next(filter(None, (layer_named(spoilt, one) for one in into)), None)
        if layer is None:
            continue
        with suppress(Exception), put_off(layer) as has_weights:  # what a run raises shows nothing
            if has_weights and notices(spoilt):
                shown[number] = Shown(name, IN_OUTPUTS)
    return replace(local, shown=tuple(shown))


#: Folds that are looked for in the outputs, each of which costs a run.
_TURNS = 256
#: A bound from which on float64 proves nothing either.
_BLIND = 0.1
#: What the name of a BatchNorm ends in from its second call on.
_CALL = re.compile(r" \(call \d+\)$")


@dataclass
class _Call:
    """What a module was given and what it gave, the last time."""

    given: Any
    given_place: tuple[object, ...]
    gave: Any
    gave_place: tuple[object, ...]
    times: int


class _Watch:
    """Judges a layer as soon as it and its BatchNorm have run in the original, and keeps no more than that."""

    def __init__(self, candidate: torch.nn.Module, plan: FoldPlan) -> None:
        self._parts = dict(candidate.named_modules())
        taken: dict[str, set[str]] = {}
        numbers: dict[tuple[str, str], list[int]] = {}
        for number, (name, into) in enumerate(plan.folds):
            norm = _CALL.sub("", name)
            for layer in into:
                taken.setdefault(layer, set()).add(norm)
            if len(into) == 1:
                numbers.setdefault((norm, into[0]), []).append(number)
        #: By BatchNorm and layer the folds that are still to be judged, a call after the other.
        self._folds = {pair: found for pair, found in numbers.items() if len(taken[pair[1]]) == 1}
        self._calls: dict[str, _Call] = {}
        self.outcomes: list[Outcome] = []
        self.seen: dict[int, str] = {}

    @contextmanager
    def on(self, module: torch.nn.Module) -> Iterator[None]:
        """Watch a module while the block runs it."""
        parts = dict(module.named_modules())
        watched = {name for pair in self._folds for name in pair}
        with ExitStack() as stack:
            for name in watched & set(parts):
                stack.callback(parts[name].register_forward_hook(self._hook(name)).remove)
            yield

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(_: Any, given: tuple[Any, ...], gave: Any) -> None:
            if len(given) != 1 or not hasattr(given[0], "data_ptr") or not hasattr(gave, "data_ptr"):
                return
            x = given[0]
            times = self._calls[name].times + 1 if name in self._calls else 1
            self._calls[name] = _Call(
                x.detach().clone(), _place(x), gave.detach().clone(), _place(gave), times
            )
            for pair in self._folds:
                if name in pair and all(one in self._calls for one in pair):
                    self._judge(*pair)

        return hook

    def _judge(self, batchnorm: str, layer: str) -> None:
        import torch

        norm, linear = self._calls.pop(batchnorm), self._calls.pop(layer)
        if norm.times > 1 or linear.times > 1 or layer not in self._parts:
            return
        # The same memory may hold other numbers by then: of an operator in place, or of a tensor that came after.
        if norm.given_place == linear.gave_place and torch.equal(norm.given, linear.gave):
            given, wanted, name = linear.given, norm.gave, batchnorm
        elif linear.given_place == norm.gave_place and torch.equal(linear.given, norm.gave):
            given, wanted, name = norm.given, linear.gave, layer
        else:
            return
        part = self._parts[layer]
        weight = next(part.parameters())
        how = str(wanted.dtype).removeprefix("torch.")
        # In its own type sums are rounded as well.
        root = 1.0 if wanted.dtype == torch.float64 else math.sqrt(weight.numel() / min(weight.shape))
        # Under autocast weights are rounded to the type that is computed in.
        unit = max(float(torch.finfo(kind).eps) for kind in (weight.dtype, wanted.dtype))
        with torch.no_grad():
            exact, off, *moved = (
                array_of(made(given.double()))
                for made in (in_float64(part), spoilt_copy(part), *moved_by_rounding(part, {""}, unit))
            )
        bound = _with_bias(noise_bound(exact, moved, root, unit), part, unit)
        gap = gap_of(array_of(wanted.double()), exact, bound)
        self.outcomes.append(Outcome(Claim(name, name, True), gap.ok, gap.error, gap.bound, how, gap.sight))
        numbers = self._folds[batchnorm, layer]
        number = numbers.pop(0) if len(numbers) > 1 else numbers[0]
        if gap.ok and beyond(exact, off, bound):
            self.seen[number] = how


def _with_bias(bound: Bound, layer: torch.nn.Module, unit: float) -> Bound:
    """The bound with what rounding does where a bias and the sum beside it cancel: one draw of noise may miss it."""
    bias = layer._parameters.get("bias")
    if bias is None or tuple(bias.shape) != np.shape(bound.mean):
        return bound
    return replace(bound, mean=bound.mean + 4 * unit * np.abs(array_of(bias).astype(np.float64)))


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    """Which numbers in memory a tensor shows, and how: a transposed one is another one."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
