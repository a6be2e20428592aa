"""The entry point of a fold: the frontend captures the model, the planner plans, the frontend applies the edits."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from convbn.common.garbage import seldom_collected
from convbn.common.text import did_you_mean
from convbn.errors import UsageError
from convbn.fuse.algebra.rounding import unit_roundoff
from convbn.fuse.frontends.frontend import Frontend, Request
from convbn.fuse.kinds import frontend_of
from convbn.fuse.operators.registry import known_names
from convbn.fuse.options import FuseOptions
from convbn.fuse.overview import graph_of, other_normalisations
from convbn.fuse.plan.plan import Kept
from convbn.fuse.plan.planner import make_plan
from convbn.fuse.refusal import Reason
from convbn.fuse.report import Before, Report, Seconds
from convbn.fuse.view.dataflow import Constant
from convbn.fuse.view.edits import Edit, Replace, SetConstant
from convbn.fuse.view.view import View

__all__ = ["Folding", "check_rules", "fold"]


@dataclass(frozen=True, slots=True)
class Folding:
    """A folded model, of the kind that came in, and the report of the fold.

    Attributes:
        model: the model.
        report: what was folded where, and what stays.
        computed: with ``read``: what gives the values of folded weights, by the location that stands for
            them in the model.
    """

    model: Any
    report: Report
    computed: Mapping[str, Callable[[], NDArray[Any]]] = field(default_factory=dict)


def fold(
    model: Any,
    example_inputs: tuple[Any, ...] | None = None,
    *,
    options: FuseOptions | None = None,
    owned: bool = False,
    read: Callable[[Any], bytes] | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Folding:
    """Fold every BatchNorm of ``model`` that can be folded exactly.

    Args:
        model: an ``onnx.ModelProto``, an ``onnx_graphsurgeon.Graph``, a ``torch.nn.Module`` or a
            ``torch.export.ExportedProgram``. It is left as it is.
        example_inputs: positional inputs of a module; shapes are taken from them.
        options: which rules may be used.
        owned: an ONNX model may be edited in place, which saves a copy of its weights.
        read: gives the raw bytes of an ONNX model's external tensors, so that it can be folded without
            holding its weights; the folded ones are then computed when they are written.
        input_shapes: full shapes by input name, from which ranks follow that an ONNX model does not state.

    Raises:
        UsageError: the object is none of these, or a rule in the options does not exist.
        BadInputError: the model cannot be read.
    """
    options = options or FuseOptions()
    check_rules(options)
    frontend = frontend_of(model)
    if frontend is None:
        raise UsageError(
            f"cannot fold a {type(model).__module__}.{type(model).__qualname__}",
            hint="give a torch module, an ExportedProgram, an ONNX model, a graphsurgeon Graph or a path",
        )
    with seldom_collected():
        request = Request(
            example_inputs, options.freeze, owned, read, options.materialize, input_shapes=input_shapes
        )
        return _folded(frontend, model, request, options)


def _folded(frontend: Frontend, model: Any, request: Request, options: FuseOptions) -> Folding:
    captured = frontend.capture(model, request)
    start = time.perf_counter()
    before = sum(1 for _ in captured.view.batchnorms()) + len(captured.unreachable)
    others, graph = other_normalisations(captured.view), graph_of(captured.view)
    plan = make_plan(captured.view, options)
    state = None if frontend.state is None else frontend.state(model)
    applied = captured.apply(plan.edits)
    seconds = Seconds(capture=captured.seconds, fold=time.perf_counter() - start)
    kept = (*_with_locks(plan.kept, captured.view), *captured.unreachable)
    folding = Folding(
        applied.model,
        Report(
            kind=frontend.kind,
            batchnorm=Before(before, len(kept)),
            nodes=Before(captured.operators.total(), applied.operators.total()),
            operators=_by_operator(captured.operators, applied.operators),
            folded=tuple(plan.folded),
            kept=kept,
            merged=tuple(plan.merged),
            options=options,
            how=captured.how,
            seconds=seconds,
            notes=tuple(captured.notes),
            rounding=_rounding(plan.edits),
            moved=tuple(plan.moved),
            merges=tuple(plan.merges),
            normalisations=others,
            graph=graph,
            keys=() if state is None else state.keys(applied.model, plan.folded),
        ),
        applied.computed,
    )
    captured.view.release()
    return folding


def _by_operator(before: Counter[str], after: Counter[str]) -> dict[str, Before]:
    """The counts of each operator: first those that the fold changed, then the most frequent."""
    counts = {name: Before(before[name], after[name]) for name in before | after}
    return dict(
        sorted(counts.items(), key=lambda one: (one[1].before == one[1].after, -one[1].before, one[0]))
    )


def _rounding(edits: Sequence[Edit]) -> dict[str, float]:
    """The unit roundoff of what each node stores after the edits, the coarsest of its constants."""
    found: dict[str, float] = {}
    for edit in edits:
        stored: tuple[object, ...] = ()
        if isinstance(edit, SetConstant):
            stored = (edit.constant,)
        elif isinstance(edit, Replace):
            stored = edit.operands
        for constant in stored:
            unit = unit_roundoff(constant.dtype) if isinstance(constant, Constant) else None
            if unit is not None:
                found[edit.node.name] = max(unit, found.get(edit.node.name, 0.0))
    return found


def _with_locks(kept: Sequence[Kept], view: View) -> Iterator[Kept]:
    """The refusals, with the lock named where a value is out of reach for the very reason of the lock."""
    locks = {node.name: node.locks.get("bypass") for node in view.batchnorms()}
    for item in kept:
        lock = locks.get(item.name)
        if lock is not None and item.reason is Reason.OBSERVED:
            yield Kept(item.name, lock.reason, lock.detail)
        else:
            yield item


def check_rules(options: Any) -> None:
    """Refuse names in ``only`` and ``skip`` that are none of a rule.

    Raises:
        UsageError: there is one.
    """
    known = known_names()
    for name in (*options.only, *options.skip):
        if name not in known:
            raise UsageError(
                f"there is no rule '{name}'",
                hint=did_you_mean(name, known) or f"the rules are {', '.join(sorted(known))}",
            )
