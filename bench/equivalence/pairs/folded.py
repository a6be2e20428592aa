"""A model and the same folded: beside the outputs, every fold is judged where it happened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from convbn.bench.equivalence.difference import Moved, Verdict
from convbn.bench.equivalence.pairs.pair import Judge, Pair
from convbn.bench.equivalence.reference_run import Execution, execute
from convbn.bench.models.errors import SessionError
from convbn.bench.models.inputs import Array, Feeds
from convbn.bench.proof.graph.whole import Whole
from convbn.bench.proof.prove import FoldPlan, LocalProof, LocalProver, Shown
from convbn.bench.proof.verdict import Proof, joined, unseen
from convbn.errors import BadInputError

if TYPE_CHECKING:
    import torch

    from convbn.bench.proof.torch.modules import Run

__all__ = ["ExportedPair", "FoldedModules", "FoldedPair", "FoldedPrograms"]


class FoldedPair(Pair):
    """An ONNX model and the same folded: every value of both can be asked for.

    Args:
        reference: the model before.
        candidate: the model after.
        plan: what the fold says that it did.
        tried: whether the reference is known to end no process.
    """

    rounding = True
    #: What sentences call the model whose values the regions are fed with.
    original = "the original"

    def __init__(self, reference: Any, candidate: Any, plan: FoldPlan, *, tried: bool = False) -> None:
        super().__init__(reference, candidate)
        self._plan = plan
        self._opened = ExitStack()
        self._before = self._opened.enter_context(Whole(reference, "reference", tried=tried))
        self._after: Whole | None = None
        self._prover: LocalProver | None = None
        try:
            self._after = self._opened.enter_context(Whole(candidate, "candidate", tried=True))
            self._prover = LocalProver(self._before, self._after, plan)
        except BadInputError:  # it will be said when the candidate is run
            pass

    def candidate(self, feeds: Sequence[Feeds]) -> Execution:
        """The candidate's outputs (see :class:`Pair`)."""
        if self._after is None:
            return super().candidate(feeds)
        # One model is loaded at a time; what was computed stays.
        self._before.release()
        found = _executed(self._after, feeds)
        self._after.release()
        return found

    def proven(self, verdict: Verdict, feeds: Sequence[Feeds], judged: Judge) -> tuple[Verdict, Proof | None]:
        """Judge every region where it stands (see :class:`convbn.bench.proof.prove.LocalProver`)."""
        if self._prover is None:
            return verdict, None
        try:
            local = self._prover.prove(feeds[0], self.tell)
        except SessionError as error:
            said = f"outputs compared end to end; no part could be run by itself ({error.cause})"
            return verdict, unseen(self._plan, said)
        if verdict.status == "different":
            verdict = self._before_saturation(verdict, feeds, judged)
        return joined(verdict, local, len(feeds), self.original)

    def _run_reference(self, feeds: Sequence[Feeds]) -> Execution:
        return _executed(self._before, feeds)

    def _rewritten(self, feeds: Sequence[Feeds]) -> list[Moved]:
        try:
            runner = self._before.optimised(feeds[0])
            runs = [runner.run(sample) for sample in feeds]
        except SessionError:
            return []
        return [(i, [found[name] for name in self._before.outputs]) for i, found in enumerate(runs)]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()


class ExportedPair(FoldedPair):
    """A PyTorch model, and the ONNX model that was exported from it and folded.

    The folds are judged region by region on the values of the exported model before it was folded, the outputs of
    the folded one against the PyTorch model's: only these tell of the export itself.

    Args:
        reference: the PyTorch model.
        candidate: the ONNX model after.
        plan: what the fold says that it did, with the ONNX model before.
    """

    original = "the exported original"

    def __init__(
        self, reference: torch.nn.Module | torch.export.ExportedProgram, candidate: Any, plan: FoldPlan
    ) -> None:
        super().__init__(plan.exported, candidate, plan, tried=True)
        self._reference = reference

    def proven(self, verdict: Verdict, feeds: Sequence[Feeds], judged: Judge) -> tuple[Verdict, Proof | None]:
        """Judge every region, and let nothing pass that the outputs did not show (see :class:`FoldedPair`)."""
        found, proof = super().proven(verdict, feeds, judged)
        return (verdict if found.status == "equal" else found), proof

    def _run_reference(self, feeds: Sequence[Feeds]) -> Execution:
        return Pair._run_reference(self, feeds)

    def _rewritten(self, feeds: Sequence[Feeds]) -> list[Moved]:
        return []


class FoldedModules(Pair):
    """A PyTorch module and the same folded.

    Args:
        reference: the module before.
        candidate: the module after.
        plan: what the fold says that it did.
    """

    def __init__(self, reference: torch.nn.Module, candidate: torch.nn.Module, plan: FoldPlan) -> None:
        from convbn.fuse.frontends.torch.modules.copies import checked

        super().__init__(reference, candidate)
        # Out of what only wraps it, as the fold takes it.
        self._modules, self._plan = (checked(reference), checked(candidate)), plan

    def proven(self, verdict: Verdict, feeds: Sequence[Feeds], judged: Judge) -> tuple[Verdict, Proof | None]:
        """Judge every layer that took a BatchNorm in (see :mod:`convbn.bench.proof.torch.modules`)."""
        from convbn.bench.proof.torch import modules

        name = modules.other_mode(*self._modules)
        if name is not None:
            said = f"module {name!r} is in training mode in only one of the two"
            return Verdict("different", said, verdict.outputs), None

        self.tell("layers in float64", 0, 1)
        local = modules.prove_layers(*self._modules, self._plan, feeds[0], _run)
        if local is None:
            return verdict, unseen(self._plan, "outputs compared end to end; the module cannot be copied")
        notices = _telling(feeds, judged, _run)
        if not local.wrong:
            verdict, notices = _settled(self._modules, self._plan, verdict, feeds, _run, notices)
        local = modules.shown_by_spoiling(self._modules[1], self._plan, local, notices, self.tell)
        return joined(verdict, local, len(feeds))


class FoldedPrograms(Pair):
    """An exported program and the same folded.

    Args:
        reference: the program before.
        candidate: the program after.
        plan: what the fold says that it did.
    """

    def __init__(
        self,
        reference: torch.export.ExportedProgram,
        candidate: torch.export.ExportedProgram,
        plan: FoldPlan,
    ) -> None:
        super().__init__(reference, candidate)
        self._programs, self._plan = (reference, candidate), plan

    def proven(self, verdict: Verdict, feeds: Sequence[Feeds], judged: Judge) -> tuple[Verdict, Proof | None]:
        """Look in the outputs for a deliberate error in every layer that took a BatchNorm in."""
        from convbn.bench.proof.torch.modules import layer_named, shown_by_spoiling
        from convbn.fuse.frontends.torch.modules.isolation import in_order

        def run(module: torch.nn.Module, sample: Feeds) -> list[Array]:
            return _run(in_order(self._programs[0], module), sample)

        before, after = (program.module() for program in self._programs)
        layers = (layer_named(after, one) for _, into in self._plan.folds for one in into)
        if all(layer is None for layer in layers):
            return verdict, None
        notices = _telling(feeds, judged, run)
        verdict, notices = _settled((before, after), self._plan, verdict, feeds, run, notices)
        if verdict.status != "equal":
            return verdict, None
        nothing = LocalProof((), tuple(Shown(name, None) for name, _ in self._plan.folds), 0)
        local = shown_by_spoiling(after, self._plan, nothing, notices, self.tell)
        if _in_16_bits(after) and all(shown.how is None for shown in local.shown):
            # Behind several such layers the error of one is below what all of them round.
            said = "outputs compared end to end; in 16 bits they are too coarse to show one fold"
            return verdict, unseen(self._plan, said)
        return joined(verdict, local, len(feeds))


def _in_16_bits(module: torch.nn.Module) -> bool:
    return any(p.is_floating_point() and p.element_size() == 2 for p in module.parameters())


Notices: TypeAlias = "Callable[[torch.nn.Module], bool]"


def _run(module: torch.nn.Module, feeds: Feeds) -> list[Array]:
    return execute(module, "copy", [feeds]).outputs[0]


def _telling(feeds: Sequence[Feeds], judged: Judge, run: Run) -> Notices:
    """What tells by the outputs whether a module is another one than the original."""
    return lambda module: judged([run(module, sample) for sample in feeds]).status == "different"


def _settled(
    pair: tuple[torch.nn.Module, torch.nn.Module],
    plan: FoldPlan,
    verdict: Verdict,
    feeds: Sequence[Feeds],
    run: Run,
    notices: Notices,
) -> tuple[Verdict, Notices]:
    """The verdict of float64 where the outputs' own type cannot tell, and what then tells another module."""
    from convbn.bench.proof.torch.modules import settled_in_float64

    if verdict.status == "equal" or not verdict.outputs:
        return verdict, notices
    exact = settled_in_float64(*pair, plan, feeds, run)
    if exact is None:
        return verdict, notices
    # By the outputs in their own type every module would be another one.
    return (
        replace(exact, outputs=verdict.outputs),
        lambda module: settled_in_float64(pair[0], module, plan, feeds, run) is None,
    )


def _executed(model: Whole, feeds: Sequence[Feeds]) -> Execution:
    outputs = [model.outputs_for(sample, keep=i == 0) for i, sample in enumerate(feeds)]
    return Execution(tuple(model.outputs), outputs, model.runtime)
