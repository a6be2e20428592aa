"""Two models that are compared, and how each of them is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from convbn.bench.equivalence.difference import Verdict
from convbn.bench.equivalence.half_emulation import rounded_graph
from convbn.bench.equivalence.noise import moved_by_rounding
from convbn.bench.equivalence.reference_run import Execution, execute
from convbn.bench.equivalence.tolerance import Tolerance, coarsest_float
from convbn.bench.models.arguments import alike
from convbn.bench.models.errors import ReferenceFailedError, SessionError
from convbn.bench.models.inputs import Array, Feeds, input_specs, is_onnx, shape_example
from convbn.bench.proof.graph.whole import Whole
from convbn.bench.proof.prove import FoldPlan, LocalProver
from convbn.bench.proof.verdict import Proof, joined
from convbn.common.dtypes import dtype_of, is_float
from convbn.errors import BadInputError

if TYPE_CHECKING:
    import onnx
    import torch

    from convbn.export.engines.run.load import EngineFile

    Model: TypeAlias = (
        onnx.ModelProto | str | Path | torch.nn.Module | torch.export.ExportedProgram | EngineFile
    )

__all__ = ["Pair", "pair_of"]

Judge: TypeAlias = Callable[[Sequence[Sequence[Array]]], Verdict]


def pair_of(
    reference: Model,
    candidate: Model,
    tolerance: Tolerance | None,
    runtime: str | None,
    plan: FoldPlan | None,
) -> Pair:
    """The two as they are to be compared.

    Args:
        reference, candidate, tolerance, runtime: as for :class:`Pair`.
        plan: of the fold that made the candidate; None where it is of another origin.
    """
    if plan is not None and is_onnx(reference) and is_onnx(candidate):
        return FoldedPair(reference, candidate, plan)
    if plan is not None and not is_onnx(reference) and not is_onnx(candidate):
        import torch

        if isinstance(reference, torch.nn.Module) and isinstance(candidate, torch.nn.Module):
            return FoldedModules(reference, candidate, plan)
    return Pair(reference, candidate, tolerance, runtime)


class Pair:
    """Two models of any kind, each run as a whole.

    Args:
        reference: the one that the other is held against.
        candidate: the other.
        tolerance: where the candidate is of another precision.
        runtime: what runs both; None for what runs each as it stands.
    """

    def __init__(
        self, reference: Model, candidate: Model, tolerance: Tolerance | None, runtime: str | None
    ) -> None:
        self._reference, self._candidate = reference, candidate
        self._tolerance, self._runtime = tolerance, runtime

    def reference(self, feeds: Sequence[Feeds]) -> Execution:
        """The reference's outputs.

        Raises:
            ReferenceFailedError: it cannot be run.
        """
        try:
            return self._run_reference(feeds)
        except SessionError as error:
            model = self._reference
            specs = input_specs(model) if is_onnx(model) else ()
            example = f" {shape_example(specs[0])}" if specs else ""
            raise ReferenceFailedError(
                f"the original cannot be run, so nothing can be verified: {error.cause}",
                source=model if isinstance(model, str | Path) else None,
                hint=f"give the shapes it expects with --input-shape{example}, inputs of your own with --inputs, "
                "or go without proof with --no-verify",
            ) from error

    def candidate(self, feeds: Sequence[Feeds]) -> Execution:
        """The candidate's outputs.

        Raises:
            SessionError: it cannot be run.
        """
        if self._tolerance is None:
            return execute(self._candidate, "candidate", feeds, self._runtime)
        return _lower(self._candidate, feeds, self._runtime)

    def noise(self, feeds: Feeds) -> list[list[Array]]:
        """The reference's outputs for an input that is moved by what rounding may move it."""
        if self._runtime is not None or (self._tolerance is not None and self._tolerance.unit is None):
            return []
        moved = moved_by_rounding(feeds, None if self._tolerance is None else self._tolerance.unit)
        return [] if moved is None else self._run_reference([moved]).outputs

    def more_noise(self, feeds: Feeds) -> list[list[Array]]:
        """The reference's outputs as its runtime optimises it; nothing where it has no optimiser."""
        if self._tolerance is not None or self._runtime is not None or not is_onnx(self._reference):
            return []
        try:
            return execute(self._reference, "reference", [feeds], "onnxruntime-cpu@all").outputs
        except SessionError:
            return []

    def proven(self, verdict: Verdict, feeds: Sequence[Feeds], judged: Judge) -> tuple[Verdict, Proof | None]:
        """The verdict, with what was shown beside the outputs.

        Args:
            verdict: on the outputs.
            feeds: the inputs.
            judged: gives the verdict on other outputs of a candidate.
        """
        return verdict, None

    def _run_reference(self, feeds: Sequence[Feeds]) -> Execution:
        return execute(self._reference, "reference", feeds, self._runtime)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class FoldedPair(Pair):
    """An ONNX model and the same folded: every value of both can be asked for.

    Args:
        reference: the model before.
        candidate: the model after.
        plan: what the fold says that it did.
    """

    def __init__(self, reference: Any, candidate: Any, plan: FoldPlan) -> None:
        super().__init__(reference, candidate, None, None)
        self._opened = ExitStack()
        self._before = self._opened.enter_context(Whole(reference, "reference"))
        self._after: Whole | None = None
        self._prover: LocalProver | None = None
        try:
            self._after = self._opened.enter_context(Whole(candidate, "candidate"))
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
            local = self._prover.prove(feeds[0])
        except SessionError as error:
            return verdict, Proof(
                f"outputs compared end to end; no part could be run by itself ({error.cause})"
            )
        return joined(verdict, local, len(feeds))

    def _run_reference(self, feeds: Sequence[Feeds]) -> Execution:
        return _executed(self._before, feeds)

    def more_noise(self, feeds: Feeds) -> list[list[Array]]:
        """The reference as onnxruntime optimises it (see :class:`Pair`)."""
        try:
            found = self._before.optimised().run(feeds)
        except SessionError:
            return []
        return [[found[name] for name in self._before.outputs]]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()


class FoldedModules(Pair):
    """A PyTorch module and the same folded.

    Args:
        reference: the module before.
        candidate: the module after.
        plan: what the fold says that it did.
    """

    def __init__(self, reference: torch.nn.Module, candidate: torch.nn.Module, plan: FoldPlan) -> None:
        from convbn.fuse.frontends.torch.modules.copies import checked

        super().__init__(reference, candidate, None, None)
        # Out of what only wraps it, as the fold takes it.
        self._modules, self._plan = (checked(reference), checked(candidate)), plan

    def proven(self, verdict: Verdict, feeds: Sequence[Feeds], judged: Judge) -> tuple[Verdict, Proof | None]:
        """Judge every layer that took a BatchNorm in (see :mod:`convbn.bench.proof.modules`)."""
        from convbn.bench.proof import modules

        name = modules.other_mode(*self._modules)
        if name is not None:
            said = f"module {name!r} is in training mode in only one of the two"
            return Verdict("different", said, verdict.outputs), None

        def run(module: torch.nn.Module, feeds: Feeds) -> list[Array]:
            return execute(module, "copy", [feeds]).outputs[0]

        def notices(module: torch.nn.Module) -> bool:
            return judged([run(module, sample) for sample in feeds]).status == "different"

        local = modules.prove_layers(*self._modules, self._plan, feeds[0], run)
        if local is None:
            return verdict, Proof(
                "outputs compared end to end; the module cannot be copied or run in float64"
            )
        if verdict.outputs and verdict.status != "equal" and not local.wrong:
            exact = modules.settled_in_float64(*self._modules, self._plan, feeds, run)
            if exact is not None:
                verdict = replace(exact, outputs=verdict.outputs)
        local = modules.shown_by_spoiling(self._modules[1], self._plan, local, notices)
        return joined(verdict, local, len(feeds))


def _executed(model: Whole, feeds: Sequence[Feeds]) -> Execution:
    outputs = [model.outputs_for(sample, keep=i == 0) for i, sample in enumerate(feeds)]
    return Execution(tuple(model.outputs), outputs, model.runtime)


def _lower(model: Model, feeds: Sequence[Feeds], runtime: str | None) -> Execution:
    """Run a model of another precision, with every rounding that the CPU provider would leave out."""
    fitted = [_fitted(model, sample) for sample in feeds]
    low = coarsest_float(model) if runtime is None and is_onnx(model) else None
    rounded = None
    if low in ("float16", "bfloat16") and is_onnx(model):
        import onnx

        rounded = rounded_graph(onnx.load(str(model)) if isinstance(model, str | Path) else model)
    # The provider has no bfloat16 convolution to run.
    if rounded is None or low == "float16":
        actual = execute(model, "candidate", fitted, runtime)
        if low != "float16":
            return actual
        if rounded is None:
            return replace(actual, runtime=f"{actual.runtime}, which computes float16 in float32")
    exact = execute(rounded, "candidate", fitted)
    return replace(exact, runtime=f"{exact.runtime}, rounded to {low} after every node")


def _fitted(model: Model, feeds: Feeds) -> Feeds:
    """The feeds with floats in the type that the model takes."""
    if not is_onnx(model):
        return feeds
    dtypes = {spec.name: dtype_of(spec.dtype) for spec in input_specs(model)}
    return alike(
        feeds,
        {
            name: array.astype(dtypes[name])
            if name in dtypes and is_float(array.dtype) and is_float(dtypes[name])
            else array
            for name, array in feeds.items()
        },
    )
