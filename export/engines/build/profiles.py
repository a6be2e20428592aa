"""Shapes for the inputs of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convbn.common.text import shape_text
from convbn.errors import NotSupportedError
from convbn.export.engines.errors import ShapeProfileError
from convbn.export.precision.int8.samples import inputs_of
from convbn.export.shapes import Profile, ShapeRange

if TYPE_CHECKING:
    import onnx

__all__ = ["check_profiles", "contradicting_names", "network_inputs", "network_outputs", "settle_profiles"]


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
    tensors = network_inputs(definition)
    by_value = [tensor.name for tensor in tensors if tensor.is_shape_tensor]
    if by_value:
        cause = f"the values of input {by_value[0]!r} decide shapes, which is not built yet"
        raise NotSupportedError(cause, hint="make it a constant of the model")
    inputs = {tensor.name: tuple(tensor.shape) for tensor in tensors}
    # Without any profile, what lacks a shape is still to be listed.
    settled = [_settle(inputs, profile) for profile in profiles or ({},)]
    return tuple(profile for profile in settled if profile)


def check_profiles(model: onnx.ModelProto, profiles: Sequence[Profile]) -> None:
    """Hold the given profiles against the inputs of an ONNX model, before anything is done with it.

    Raises:
        ShapeProfileError: see :func:`settle_profiles`.
    """
    specs = inputs_of(model)
    if any(spec.shape is None for spec in specs):
        return
    inputs = {spec.name: tuple(-1 if size is None else size for size in spec.shape or ()) for spec in specs}
    for profile in profiles or ({},):
        _settle(inputs, profile)


def contradicting_names(model: onnx.ModelProto, profiles: Sequence[Profile]) -> set[str]:
    """Names of open dimensions that do not have one size in a profile; TensorRT takes equal names for equal sizes."""
    inputs = {spec.name for spec in inputs_of(model)}
    values = [value for value in model.graph.input if value.name in inputs]
    found: set[str] = set()
    for profile in profiles:
        sizes: dict[str, set[tuple[int, int, int]]] = {}
        for value in values:
            given = profile.get(value.name, profile.get(None))
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if dim.dim_param and given is not None:
                    size = given.min[axis], given.opt[axis], given.max[axis]
                    sizes.setdefault(dim.dim_param, set()).add(size)
        found |= {name for name, seen in sizes.items() if len(seen) > 1}
    return found


def _settle(inputs: Mapping[str, tuple[int, ...]], profile: Profile) -> dict[str, ShapeRange]:
    given = dict(profile)
    listing = ", ".join(f"{name} ({shape_text(shape)})" for name, shape in inputs.items())
    if None in given:
        if len(inputs) != 1 or len(given) != 1:
            raise ShapeProfileError(f"a shape without a name needs a model with one input, not {listing}")
        given = {next(iter(inputs)): given[None]}
    for name in given:
        if name not in inputs:
            raise ShapeProfileError(f"the model has no input {name!r}", hint=f"its inputs are {listing}")
    dynamic = {name: shape for name, shape in inputs.items() if -1 in shape}
    lacking = [f"{name} ({shape_text(shape)})" for name, shape in dynamic.items() if name not in given]
    if lacking:
        example = f"give each a range, like --shapes {next(iter(dynamic))}=MIN:OPT:MAX"
        raise ShapeProfileError(
            f"the model has dynamic inputs without shapes: {', '.join(lacking)}", hint=example
        )
    for name, wanted in given.items():
        shape = inputs[str(name)]
        for dims in (wanted.min, wanted.opt, wanted.max):
            fits = len(dims) == len(shape) and all(
                own in (-1, dim) for own, dim in zip(shape, dims, strict=True)
            )
            if not fits:
                raise ShapeProfileError(
                    f"shape {shape_text(dims)} does not fit input {name!r}, which is {shape_text(shape)}"
                )
    return {str(name): given[name] for name in dynamic}
