"""Random inputs for whatever kind of models are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from convbn.bench.equivalence.tolerance import coarsest_float
from convbn.bench.models.inputs import (
    Array,
    Feeds,
    InputSpec,
    input_specs,
    is_onnx,
    make_inputs,
    specs_of_tensors,
)
from convbn.common.dtypes import is_float
from convbn.errors import UsageError

if TYPE_CHECKING:
    import onnx
    import torch

    Model: TypeAlias = onnx.ModelProto | str | Path | torch.nn.Module | torch.export.ExportedProgram

__all__ = ["inputs_differ", "model_feeds", "scaled"]


def model_feeds(
    models: Sequence[Model],
    *,
    shapes: Mapping[str, tuple[int, ...]] | None,
    seed: int,
    samples: int,
    example_inputs: Sequence[Any] | None = None,
) -> list[dict[str, Array]]:
    """Random inputs that all of the models take.

    Args:
        models: the first ONNX graph among them names the inputs; without one ``example_inputs``, the
            example of an exported program, or ``shapes`` (in the type of the weights) say what they are.
        shapes: full shapes by input name.
        seed: sample i has ``seed + i``.
        samples: how many.
        example_inputs: positional inputs; they also close open axes of an ONNX graph.

    Returns:
        Arrays by name, one mapping a sample.

    Raises:
        UsageError: there is nothing to make inputs from, or shapes are missing or do not fit.
    """
    specs = _specs(models, example_inputs, shapes or {})
    closed = dict(shapes or {})
    if example_inputs is not None and len(example_inputs) == len(specs):
        for spec, example in zip(specs, example_inputs, strict=True):
            closed.setdefault(spec.name, tuple(int(size) for size in example.shape))
    return [make_inputs(specs, shapes=closed, seed=seed + i) for i in range(samples)]


def inputs_differ(feeds: Sequence[Feeds]) -> bool:
    """Whether any input has different values in two of the samples."""
    return any(
        name not in other or not np.array_equal(array, other[name])
        for other in feeds[1:]
        for name, array in feeds[0].items()
    )


def _specs(
    models: Sequence[Model], example_inputs: Sequence[Any] | None, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[InputSpec, ...]:
    for model in models:
        if is_onnx(model):
            return input_specs(model)
    if example_inputs is not None:
        return specs_of_tensors(example_inputs)
    for model in models:
        examples = getattr(model, "example_inputs", None)
        if isinstance(examples, tuple) and len(examples) == 2 and examples[0]:
            return specs_of_tensors(examples[0])
    if shapes:
        dtype = coarsest_float(models[0]) or "float32"
        return tuple(InputSpec(name, dtype, tuple(shape)) for name, shape in shapes.items())
    raise UsageError(
        "a PyTorch module does not say what it takes",
        hint="give example_inputs, or --input-shape on the command line",
    )


def scaled(feeds: Feeds, factor: float) -> dict[str, Array]:
    """The feeds with every float input multiplied by a factor."""
    return {
        name: (array * array.dtype.type(factor)) if is_float(array.dtype) else array
        for name, array in feeds.items()
    }
