"""Do two models compute the same function? Run both on the same random inputs and compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from convbn.bench.equivalence.difference import (
    Moved,
    OutputDifference,
    Status,
    Verdict,
    has_nonfinite,
    judge,
)
from convbn.bench.equivalence.pairs.choice import pair_of
from convbn.bench.equivalence.tolerance import Tolerance, coarsest_float
from convbn.bench.models.errors import ReferenceFailedError, SessionError
from convbn.bench.models.feeds import inputs_differ, model_feeds, scaled
from convbn.bench.models.inputs import Array, Feeds
from convbn.bench.proof.prove import FoldPlan
from convbn.bench.proof.verdict import Proof, unseen
from convbn.bench.results.environment import library_versions
from convbn.common.encoding import JsonReady
from convbn.common.progress import Progress, silent
from convbn.common.text import plural
from convbn.errors import UsageError
from convbn.export.engines.run.load import EngineFile
from convbn.export.packages.package import LoadedPackage

if TYPE_CHECKING:
    import onnx
    import torch

    Model: TypeAlias = (
        onnx.ModelProto
        | str
        | Path
        | torch.nn.Module
        | torch.export.ExportedProgram
        | EngineFile
        | LoadedPackage
    )

__all__ = ["Equality", "compare"]

#: What tells of itself no more than its session does.
_PREPARED = (EngineFile, LoadedPackage)
#: Inputs are scaled by this once if the reference overflows on standard normal ones.
RETRY_SCALE = 0.1


@dataclass(frozen=True, repr=False)
class Equality(JsonReady):
    """The answer of :func:`compare`.

    Attributes:
        status: "equal", "different", or "inconclusive" where the outputs prove nothing.
        reason: one sentence.
        outputs: one entry an output; empty if the models could not be compared output by output.
        samples: number of inputs both models were run on.
        seed: of the random inputs; None for inputs that were given.
        input_scale: factor on the inputs, 1 unless the reference overflowed.
        runtime: what ran the reference and the candidate.
        versions: of the libraries that ran them.
        tolerance: that was asked for; None where the bound follows from the models.
        proof: what was shown beside the outputs; None where they are all there is.
    """

    status: Status
    reason: str
    outputs: tuple[OutputDifference, ...]
    samples: int
    seed: int | None
    input_scale: float
    runtime: str
    versions: Mapping[str, str]
    tolerance: Tolerance | None = None
    proof: Proof | None = None

    def __bool__(self) -> bool:
        """Whether equality was shown."""
        return self.equal

    @property
    def equal(self) -> bool:
        """Whether equality was shown."""
        return self.status == "equal"

    def __str__(self) -> str:
        return f"{self.status}: {self.reason} ({self.runtime})"

    def __repr__(self) -> str:
        return f"<Equality {self}>"

    def _repr_html_(self) -> str:
        """For a notebook: the answer, and output by output how far apart they are."""
        from convbn.common.document.html import fragment
        from convbn.common.document.model import Banner, Column, Row, Table, Text
        from convbn.common.text import number
        from convbn.fuse.summary import equality_marks

        head = ("output", "relative error", "worst channel", "bound")
        columns = [Column(name, "num" if index else "name") for index, name in enumerate(head)]
        rows = [
            Row((one.name, *(number(value) for value in (one.rel_error, one.worst_channel_error, one.bound))))
            for one in self.outputs
        ]
        banner = Banner(list(equality_marks([self.to_dict()])), kind="" if self.equal else "failed")
        return fragment([banner, Text(self.reason), Table("Outputs", columns, rows)])


def compare(
    reference: Model,
    candidate: Model,
    *,
    inputs: Sequence[Feeds] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
    samples: int = 2,
    example_inputs: Sequence[Any] | None = None,
    tolerance: Tolerance | None = None,
    runtime: str | None = None,
    plan: FoldPlan | None = None,
    progress: Progress | None = None,
) -> Equality:
    """Run two models on the same inputs and compare what they give.

    ONNX graphs run in onnxruntime on the CPU with its optimisations off: left on, onnxruntime folds the
    reference itself and the comparison would be between two folded graphs. Where it has no kernel
    (bfloat16 convolutions), onnx's reference evaluator runs them. PyTorch runs eagerly on the CPU. A float16
    candidate with a tolerance is judged by :mod:`convbn.bench.equivalence.half_emulation`, after it ran as it is.

    Outputs are equal if the relative error and the error of the worst channel stay below √ε of the
    coarsest float type involved (:func:`convbn.bench.equivalence.tolerance.bound_of`), or below a multiple of what
    the reference itself moves by where its inputs move by one unit in the last place; integers and booleans must be
    identical, beside those that such a move changes.

    Args:
        reference: ONNX model, path of an ONNX file, PyTorch module or exported program.
        candidate: likewise, or an engine or package; the two may be of different kinds.
        inputs: arrays by name, one mapping a sample; a PyTorch model takes them in this order.
            Random without.
        shapes: full shapes by input name, for models with open axes.
        seed: of the random inputs; sample i has ``seed + i``.
        samples: number of random inputs.
        example_inputs: positional inputs of a PyTorch model: their shapes and types are used,
            not their values.
        tolerance: for a candidate in another precision (:func:`convbn.bench.equivalence.tolerance.tolerance_of`); its
            inputs and outputs may then be of another float type than the reference's.
        runtime: run both in this one instead (:mod:`convbn.bench.runtimes.registry`); the two are then of the
            kind that it takes, and a float16 candidate is judged as the runtime computes it.
        plan: of the fold that made the candidate. Of ONNX models every region that it changed is then judged by
            itself as well, of modules every layer that took a BatchNorm in (:mod:`convbn.bench.proof`).
        progress: is told a phase, the steps that are done, and the steps in all.

    Returns:
        The answer with its numbers.

    Raises:
        ReferenceFailedError: the reference cannot be run.
        UsageError: shapes are missing or do not fit, or there is nothing to make inputs from.
        NotSupportedError: onnxruntime or torch is missing.
    """
    models = [model for model in (reference, candidate) if not isinstance(model, _PREPARED)]
    if inputs is None and not models:
        raise UsageError("nothing says what to feed an engine", hint="name its ONNX model")

    def drawn(*, vary: bool) -> list[Feeds]:
        return model_feeds(
            models,
            shapes=shapes,
            seed=seed,
            samples=samples,
            example_inputs=example_inputs,
            vary=vary,
        )

    feeds = drawn(vary=True) if inputs is None else list(inputs)
    if not feeds:
        raise UsageError("a comparison needs at least one sample")
    with pair_of(reference, candidate, tolerance, runtime, plan) as pair:
        pair.tell = tell = progress or silent
        scale = 1.0
        tell("original", 0, 3)
        try:
            expected = pair.reference(feeds)
        except ReferenceFailedError:
            if inputs is not None or samples < 2:
                raise
            # Not every model takes another size where it leaves one open, or integers in another order.
            feeds = drawn(vary=False)
            expected = pair.reference(feeds)
        if has_nonfinite(expected.outputs):
            smaller = [scaled(sample, RETRY_SCALE) for sample in feeds]
            again = pair.reference(smaller)
            if not has_nonfinite(again.outputs):
                scale, feeds, expected = RETRY_SCALE, smaller, again
        ran, proof = expected.runtime, None
        tell("noise of the original", 1, 3)
        moved = pair.noise(feeds)
        tell("result", 2, 3)
        try:
            actual = pair.candidate(feeds)
        except SessionError as error:
            verdict = Verdict("different", f"the candidate cannot be run: {error.cause}")
        else:
            if actual.runtime != ran:
                ran = f"{ran} against {actual.runtime}"

            def judged(
                outputs: Sequence[Sequence[Array]],
                names: Sequence[str] = expected.names,
                reference_outputs: Sequence[Sequence[Array]] = expected.outputs,
                moved: Sequence[Moved] = (),
            ) -> Verdict:
                return judge(
                    names,
                    reference_outputs,
                    outputs,
                    computed_in=(_coarsest(reference), expected.computed_in, actual.computed_in),
                    inputs_differ=inputs_differ(feeds),
                    tolerance=tolerance,
                    moved=moved,
                )

            verdict = judged(actual.outputs, moved=moved)
            if verdict.status == "different" and verdict.outputs and (more := pair.more_noise(feeds)):
                moved += more
                verdict = judged(actual.outputs, moved=moved)
            judging = partial(judged, moved=moved)
            verdict, proof = pair.proven(verdict, feeds, judging)
            if proof is None and plan is not None and plan.folds:
                number = plural(len(feeds), "input")
                proof = unseen(plan, f"outputs compared end to end on {number}; no fold was judged by itself")
    return Equality(
        verdict.status,
        verdict.reason,
        verdict.outputs,
        len(feeds),
        seed if inputs is None else None,
        scale,
        ran,
        library_versions(),
        tolerance,
        proof,
    )


def _coarsest(model: Model) -> str | None:
    """The coarsest float type of a model; an engine tells of its session alone."""
    return None if isinstance(model, _PREPARED) else coarsest_float(model)
