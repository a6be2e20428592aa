"""Inputs for whatever kind of models are compared: examples, or random ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from convbn.bench.equivalence.tolerance import coarsest_float
from convbn.bench.models.arguments import Arguments, alike
from convbn.bench.models.inputs import (
    Array,
    Feeds,
    InputSpec,
    input_specs,
    is_onnx,
    load_graph,
    make_inputs,
)
from convbn.bench.models.tables import index_limits
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
    vary: bool = False,
) -> list[Feeds]:
    """Inputs that all of the models take: example values first, then random ones.

    Args:
        models: the first ONNX graph among them names the inputs; without one ``example_inputs``, the
            example of an exported program, or ``shapes`` (in the type of the weights) say what they are.
        shapes: full shapes by input name.
        seed: sample i has ``seed + i``.
        samples: how many.
        example_inputs: positional inputs, tensors in any nest of lists, tuples and dicts among them. The first sample
            is they themselves, except for floats that are all one number and so give a shape alone. In the others
            floats are drawn, and integers and booleans are the example's own in another order.
        vary: from the second sample on, give open axes of an ONNX graph another size, or integers and booleans of
            examples another order.

    Returns:
        Arrays by name, one mapping a sample.

    Raises:
        UsageError: there is nothing to make inputs from, or shapes are missing or do not fit.
    """
    onnx_form = next((model for model in models if is_onnx(model)), None)
    examples = example_inputs
    if examples is None and onnx_form is None:
        examples = _own_examples(models)
    if examples is not None and not shapes:
        given = Arguments.of(examples)
        names = list(given)
        if onnx_form is not None:
            names = [spec.name for spec in input_specs(onnx_form)]
        if len(names) == len(given):
            given = Arguments.of(examples, names)
            return [_from_example(given, i, seed + i, vary=vary) for i in range(samples)]
    specs = _specs(models, shapes or {})
    limits = {} if onnx_form is None else index_limits(load_graph(onnx_form))
    return [
        make_inputs(specs, shapes=shapes, seed=seed + i, limits=limits, vary=vary and i > 0)
        for i in range(samples)
    ]


def _from_example(given: Arguments, sample: int, seed: int, *, vary: bool) -> Feeds:
    rng = np.random.default_rng(seed)
    return given.like({name: _like(array, sample, rng, vary=vary) for name, array in given.items()})


def _like(array: Array, sample: int, rng: np.random.Generator, *, vary: bool) -> Array:
    continuous = array.dtype.kind == "c" or is_float(array.dtype)
    if not continuous:
        return array if sample == 0 or not vary else rng.permutation(array.reshape(-1)).reshape(array.shape)
    wide = array if array.dtype.kind == "c" else array.astype(np.float64)
    placeholder = array.size > 0 and bool((wide == wide.flat[0]).all())
    if sample == 0 and not placeholder:
        return array
    drawn = rng.standard_normal(array.shape)
    if array.dtype.kind == "c":
        drawn = drawn + 1j * rng.standard_normal(array.shape)
    if array.size and not placeholder and np.isfinite(wide).all():  # as far from 0 and as wide as the example
        drawn = wide.mean() + wide.std() * drawn
    return np.asarray(drawn).astype(array.dtype)


def _own_examples(models: Sequence[Model]) -> Sequence[Any] | None:
    """The inputs that an exported program keeps; keywords come last."""
    for model in models:
        examples = getattr(model, "example_inputs", None)
        if isinstance(examples, tuple) and len(examples) == 2 and any(examples):
            return (*examples[0], *examples[1].values())
    return None


def inputs_differ(feeds: Sequence[Feeds]) -> bool:
    """Whether any input has different values in two of the samples."""
    return any(
        name not in other or not np.array_equal(array, other[name])
        for other in feeds[1:]
        for name, array in feeds[0].items()
    )


def _specs(models: Sequence[Model], shapes: Mapping[str, tuple[int, ...]]) -> tuple[InputSpec, ...]:
    for model in models:
        if is_onnx(model):
            return input_specs(model)
    if shapes:
        dtype = coarsest_float(models[0]) or "float32"
        return tuple(InputSpec(name, dtype, tuple(shape)) for name, shape in shapes.items())
    raise UsageError(
        "a PyTorch module does not say what it takes",
        hint="give example_inputs, or --input-shape on the command line",
    )


def scaled(feeds: Feeds, factor: float) -> Feeds:
    """The feeds with every float input multiplied by a factor."""
    return alike(
        feeds,
        {
            name: (array * array.dtype.type(factor)) if is_float(array.dtype) else array
            for name, array in feeds.items()
        },
    )
