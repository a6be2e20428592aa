"""Inputs as a caller of the Python API gives them: a file, one sample, or a list of samples."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from convbn.bench.models.arguments import Arguments, array_of, positional
from convbn.bench.models.inputs import Feeds, input_specs
from convbn.errors import UsageError
from convbn.export.loading.inputs import with_inputs

if TYPE_CHECKING:
    from convbn.export.loading.source_model import SourceModel

__all__ = ["given_inputs"]


def given_inputs(source: SourceModel, inputs: Any | None) -> SourceModel:
    """A model with the inputs that it is to be run on.

    Args:
        source: the model.
        inputs: a list of samples, or one. A sample of an ONNX model is a mapping by input name, or a tuple in their
            order; one of a module is a tuple of its positional arguments, any nest of tensors and what is none, or
            a mapping by their names, or NumPy arrays under any names in their order. A path is read as ``--inputs``
            reads it; with None nothing changes.

    Raises:
        UsageError: there is no sample, or a name is missing in one.
        BadInputError: the files do not fit the model.
        FileAccessError: they cannot be read.
    """
    if inputs is None:
        return source
    if isinstance(inputs, str | os.PathLike):
        return with_inputs(source, os.fspath(inputs))
    several = isinstance(inputs, tuple) and inputs and all(isinstance(one, Mapping) for one in inputs)
    listed = list(inputs) if several or isinstance(inputs, list) else [inputs]
    if not listed:
        raise UsageError("inputs holds no sample", hint="give one, or leave it out")
    if source.onnx is not None:
        return replace(source, inputs=[_by_name(source.onnx, one) for one in listed])
    samples, examples = zip(*(_as_arguments(source.model, one) for one in listed), strict=True)
    return replace(source, inputs=list(samples), example_inputs=examples[0] or source.example_inputs)


def _as_arguments(model: Any, sample: Any) -> tuple[Feeds, tuple[Any, ...] | None]:
    """A module's sample as arrays, and as positional arguments where it is not arrays already."""
    if isinstance(sample, Arguments):
        return sample, None
    given = positional(model, sample) or ()
    plain = isinstance(sample, Mapping) and all(isinstance(value, np.ndarray) for value in sample.values())
    if plain and len(given) == 1 and isinstance(given[0], Mapping):
        # Under names that are no parameters: what a file holds, in its order.
        import torch

        return sample, tuple(torch.from_numpy(array) for array in sample.values())
    return Arguments.of(given), given


def _by_name(model: Any, sample: Any) -> Feeds:
    names = [spec.name for spec in input_specs(model)]
    if isinstance(sample, Arguments) or not isinstance(sample, Mapping):
        given = sample if isinstance(sample, Arguments) else _nest(sample)
        if len(given) != len(names):
            raise UsageError(
                f"a sample has {len(given)} values, and the model has {len(names)} inputs",
                hint=f"the inputs are {', '.join(names)}",
            )
        return given.named(names)
    missing = [name for name in names if name not in sample]
    if missing:
        raise UsageError(f"inputs gives no {missing[0]!r}", hint=f"the inputs are {', '.join(names)}")
    return {name: array_of(value) for name, value in sample.items()}


def _nest(sample: Any) -> Arguments:
    return Arguments.of(sample if isinstance(sample, tuple) else (sample,))
