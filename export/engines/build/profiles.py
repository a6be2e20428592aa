"""Shapes for the inputs of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convbn.common.text import shape_text
from convbn.errors import NotSupportedError
from convbn.export.engines.errors import ShapeProfileError
from convbn.export.shapes import Profile, ShapeRange

__all__ = ["network_inputs", "network_outputs", "settle_profiles"]


def network_inputs(definition: Any) -> list[Any]:
    """The input tensors of a TensorRT network."""
    return [definition.get_input(index) for index in range(definition.num_inputs)]


def network_outputs(definition: Any) -> list[Any]:
    """The output tensors of a TensorRT network."""
    return [definition.get_output(index) for index in range(definition.num_outputs)]


def settle_profiles(definition: Any, profiles: Sequence[Profile]) -> tuple[dict[str, ShapeRange], ...]:
    """Hold the given profiles against the network's inputs.

    Args:
        definition: the network.
        profiles: as the user gave them; a None in one names the only input.

    Returns:
        In each profile a range for every input whose shape is dynamic; no profile for a static network.
        Nothing is guessed.

    Raises:
        ShapeProfileError: a dynamic input has no shape, a name is unknown, or a shape contradicts
            the model.
        NotSupportedError: an input's values decide shapes.
    """
    inputs = {tensor.name: tensor for tensor in network_inputs(definition)}
    # Without any profile, what lacks a shape is still to be listed.
    settled = [_settle(inputs, profile) for profile in profiles or ({},)]
    return tuple(profile for profile in settled if profile)


def _settle(inputs: Mapping[str, Any], profile: Profile) -> dict[str, ShapeRange]:
    given = dict(profile)
    listing = ", ".join(f"{name} ({shape_text(tensor.shape)})" for name, tensor in inputs.items())
    if None in given:
        if len(inputs) != 1 or len(given) != 1:
            raise ShapeProfileError(f"a shape without a name needs a model with one input, not {listing}")
        given = {next(iter(inputs)): given[None]}
    for name in given:
        if name not in inputs:
            raise ShapeProfileError(f"the model has no input {name!r}", hint=f"its inputs are {listing}")
    by_value = [name for name, tensor in inputs.items() if tensor.is_shape_tensor]
    if by_value:
        cause = f"the values of input {by_value[0]!r} decide shapes, which is not built yet"
        raise NotSupportedError(cause, hint="make it a constant of the model")
    dynamic = {name: tensor for name, tensor in inputs.items() if -1 in tuple(tensor.shape)}
    lacking = [
        f"{name} ({shape_text(tensor.shape)})" for name, tensor in dynamic.items() if name not in given
    ]
    if lacking:
        example = f"give each a shape like {next(iter(dynamic))}=MIN:OPT:MAX"
        raise ShapeProfileError(
            f"the model has dynamic inputs without shapes: {', '.join(lacking)}", hint=example
        )
    for name, wanted in given.items():
        shape = tuple(inputs[str(name)].shape)
        for dims in (wanted.min, wanted.opt, wanted.max):
            fits = len(dims) == len(shape) and all(
                own in (-1, dim) for own, dim in zip(shape, dims, strict=True)
            )
            if not fits:
                raise ShapeProfileError(
                    f"shape {shape_text(dims)} does not fit input {name!r}, which is {shape_text(shape)}"
                )
    return {str(name): given[name] for name in dynamic}
