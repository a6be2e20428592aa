"""Two models that are compared, and how each of them is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias

from convbn.bench.equivalence.difference import Moved, Verdict
from convbn.bench.equivalence.noise import moved_by_rounding
from convbn.bench.equivalence.reference_run import Execution, execute
from convbn.bench.equivalence.saturation import hides, saturated_outputs
from convbn.bench.models.errors import ReferenceFailedError, SessionError
from convbn.bench.models.inputs import Array, Feeds, input_specs, is_onnx, shape_example
from convbn.bench.proof.graph.whole import Whole
from convbn.bench.proof.verdict import Proof
from convbn.common.progress import Progress, silent

if TYPE_CHECKING:
    import onnx

    from convbn.bench.equivalence.reference_run import Model

__all__ = ["Judge", "Pair"]

#: Gives the verdict on a candidate's outputs, or on other values of both models.
Judge: TypeAlias = Callable[..., Verdict]


class Pair:
    """Two models of any kind, each run as a whole.

    Args:
        reference: the one that the other is held against.
        candidate: the other.
        runtime: what runs both; None for what runs each as it stands.

    Attributes:
        tell: is told how far the proof is.
    """

    #: ε of the type that the candidate computes in, where that is another than the reference's.
    unit: float | None = None
    #: Whether an output is also looked for before a function that only rounds: where every fold is shown by itself.
    rounding = False

    def __init__(self, reference: Model, candidate: Model, runtime: str | None = None) -> None:
        self._reference, self._candidate, self._runtime = reference, candidate, runtime
        self.tell: Progress = silent

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
        return execute(self._candidate, "candidate", feeds, self._runtime)

    def noise(self, feeds: Sequence[Feeds]) -> list[Moved]:
        """The reference's outputs for the first input, moved by what rounding may move it."""
        return [] if self._runtime is not None else self._moved(feeds, [0])

    def more_noise(self, feeds: Sequence[Feeds]) -> list[Moved]:
        """The same for the other inputs, and the outputs as the reference's runtime optimises it."""
        if self._runtime is not None:
            return []
        return self._moved(feeds, range(1, len(feeds))) + self._rewritten(feeds)

    def proven(self, verdict: Verdict, feeds: Sequence[Feeds], judged: Judge) -> tuple[Verdict, Proof | None]:
        """The verdict, with what was shown beside the outputs.

        Args:
            verdict: on the outputs.
            feeds: the inputs.
            judged: gives the verdict on other values.
        """
        return self._before_saturation(verdict, feeds, judged), None

    def _before_saturation(self, verdict: Verdict, feeds: Sequence[Feeds], judged: Judge) -> Verdict:
        """The verdict, looked for where nothing hides a difference if the outputs themselves may hide one."""
        a, b = self._reference, self._compared()
        may_hide = hides(verdict) or (self.rounding and bool(verdict.outputs))
        if not may_hide or self._runtime is not None or not (is_onnx(a) and is_onnx(b)):
            return verdict
        try:
            return self._at_what_hides(a, b, verdict, feeds, judged)
        except SessionError:
            return verdict

    def _at_what_hides(
        self,
        a: onnx.ModelProto | str | Path,
        b: onnx.ModelProto | str | Path,
        verdict: Verdict,
        feeds: Sequence[Feeds],
        judged: Judge,
    ) -> Verdict:
        """The verdict on what the functions read that may hide a difference."""
        with ExitStack() as opened:
            before = opened.enter_context(Whole(a, "reference", tried=True))
            after = opened.enter_context(Whole(b, "candidate", tried=True))
            found = saturated_outputs(before.flow, after.flow, rounding=self.rounding)
            plain = [
                pair
                for pair in zip(before.outputs, after.outputs, strict=True)
                if all(s.output != pair[0] for s in found)
            ]
            names = [s.reference for s in found] + [name for name, _ in plain]
            others = [s.candidate for s in found] + [name for _, name in plain]
            moved = moved_by_rounding(feeds[0], self.unit)
            seen = judged(
                [_values(after, self._fed(sample), others) for sample in feeds],
                names,
                [_values(before, sample, names) for sample in feeds],
                moved=[] if moved is None else [(0, _values(before, moved, names))],
            )
        if seen.status != "equal":
            return verdict
        shown = ", ".join(dict.fromkeys(f"what the {s.op} before output {s.output!r} reads" for s in found))
        return Verdict("equal", f"judged at {shown}: {seen.reason}", verdict.outputs)

    def _compared(self) -> Model:
        """The candidate as it was run."""
        return self._candidate

    def _fed(self, feeds: Feeds) -> Feeds:
        """What the candidate is fed."""
        return feeds

    def _moved(self, feeds: Sequence[Feeds], numbers: Sequence[int]) -> list[Moved]:
        made: list[Moved] = []
        for i in numbers:
            moved = moved_by_rounding(feeds[i], self.unit)
            if moved is not None:
                made.append((i, self._run_reference([moved]).outputs[0]))
        return made

    def _rewritten(self, feeds: Sequence[Feeds]) -> list[Moved]:
        """The reference's outputs as its runtime optimises it; nothing where it has no optimiser."""
        if not is_onnx(self._reference):
            return []
        try:
            runs = execute(self._reference, "reference", feeds, "onnxruntime-cpu@all").outputs
        except SessionError:
            return []
        return [*enumerate(runs)]

    def _run_reference(self, feeds: Sequence[Feeds]) -> Execution:
        return execute(self._reference, "reference", feeds, self._runtime)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def _values(model: Whole, feeds: Feeds, names: Sequence[str]) -> list[Array]:
    held = model.values(feeds, names)
    return [held[name] for name in names]
