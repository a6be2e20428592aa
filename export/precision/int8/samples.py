"""Samples for the inputs of a model: what fits, and how arrays become batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from convbn.common.text import shape_text
from convbn.errors import UsageError
from convbn.export.precision.errors import CalibrationError

if TYPE_CHECKING:
    import onnx

__all__ = ["OPEN_BATCH", "Array", "Calibration", "Feeds", "InputSpec", "cut", "inputs_of", "only_input"]

Array: TypeAlias = npt.NDArray[Any]
Feeds: TypeAlias = Mapping[str, Array]

#: An open batch is filled with this many samples at most.
OPEN_BATCH = 8


@dataclass(frozen=True)
class InputSpec:
    """An input of a model; None is an open dimension, and a shape of None an unknown rank."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        return f"{self.name} ({self.dtype.name} {shape_text(self.shape)})"


@dataclass(frozen=True)
class Calibration:
    """Samples by input name, each made when its turn comes, so that a large set never lies in memory.

    Attributes:
        origin: where they come from, for messages and records.
        makers: one function a sample.
    """

    origin: str
    makers: Sequence[Callable[[], Feeds]]

    def __len__(self) -> int:
        return len(self.makers)

    def samples(self) -> Iterator[Feeds]:
        """The samples, from the first one on."""
        return (maker() for maker in self.makers)

    def limited(self, count: int | None) -> Calibration:
        """At most ``count`` samples, spread evenly over all of them."""
        if count is None or count >= len(self.makers):
            return self
        if count < 1:
            raise UsageError(f"{count} samples calibrate nothing")
        picked = np.linspace(0, len(self.makers) - 1, count).round().astype(int)
        return Calibration(self.origin, [self.makers[index] for index in picked])

    def summary(self) -> dict[str, object]:
        """JSON-ready."""
        return {"origin": self.origin, "samples": len(self.makers)}


def inputs_of(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """The inputs that a model must be given; those that are also initializers have a value."""
    from onnx import helper

    stored = {tensor.name for tensor in model.graph.initializer}
    specs = []
    for value in model.graph.input:
        if value.name in stored:
            continue
        tensor = value.type.tensor_type
        shape = None
        if tensor.HasField("shape"):
            # Some exporters write −1, or 0, for an open axis.
            shape = tuple(int(d.dim_value) if d.dim_value > 0 else None for d in tensor.shape.dim)
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        specs.append(InputSpec(value.name, dtype, shape))
    return tuple(specs)


def only_input(specs: tuple[InputSpec, ...], array: Array, source: str) -> dict[str, Array]:
    """The array under the name of the only input.

    Raises:
        CalibrationError: there are several.
    """
    if len(specs) != 1:
        hint = f"give .npz files, or mappings in Python, with an array for each input: {', '.join(map(str, specs))}"
        raise CalibrationError(
            f"is one array, but the model has {len(specs)} inputs", source=source, hint=hint
        )
    return {specs[0].name: array}


def cut(arrays: Mapping[str, Array], specs: tuple[InputSpec, ...], source: str) -> list[Callable[[], Feeds]]:
    """Cut arrays along their first axis into a model's batches; the last one is filled up from the start.

    Args:
        arrays: by input name.
        specs: the inputs.
        source: for messages.

    Returns:
        A maker of each batch.

    Raises:
        CalibrationError: names, types, shapes or numbers of samples do not fit, or a value is not finite.
    """
    known = {spec.name for spec in specs}
    shown = f"its inputs are {', '.join(map(str, specs))}"
    for name in sorted(arrays.keys() - known):
        raise CalibrationError(f"the model has no input {name!r}", source=source, hint=shown)
    for name in sorted(known - arrays.keys()):
        raise CalibrationError(f"has no array for input {name!r}", source=source, hint=shown)
    whole = {spec.name: _batched(spec, arrays[spec.name], source) for spec in specs}
    # What has no axis is the same for every batch.
    single = {spec.name for spec in specs if spec.shape == () or not whole[spec.name].ndim}
    counts = {len(array) for name, array in whole.items() if name not in single} or {1}
    if 0 in counts:
        raise CalibrationError("holds an empty array", source=source)
    # Without a batch axis in common there is nothing to cut along.
    if len(single) == len(specs) or any(spec.shape is None for spec in specs) or len(counts) > 1:
        if any(spec.shape and spec.shape[0] not in (None, len(whole[spec.name])) for spec in specs):
            raise CalibrationError("its arrays differ in their number of samples", source=source)
        return [lambda: whole]
    count = counts.pop()
    fixed = {spec.shape[0] for spec in specs if spec.shape and spec.shape[0] is not None}
    size = min(fixed) if fixed else min(OPEN_BATCH, count)
    if len(fixed) > 1 or size < 1:
        raise CalibrationError("the model's inputs have no batch size in common", source=source)

    def maker(start: int) -> Callable[[], Feeds]:
        rows = np.arange(start, start + size) % count
        return lambda: {
            name: array if name in single else np.ascontiguousarray(array[rows])
            for name, array in whole.items()
        }

    return [maker(start) for start in range(0, count, size)]


def _batched(spec: InputSpec, array: Array, source: str) -> Array:
    """The array with a batch axis, if it fits the input in everything else."""
    if array.dtype != spec.dtype:
        hint = f"the model takes {spec}"
        raise CalibrationError(
            f"the array for {spec.name!r} is {array.dtype.name}, not {spec.dtype.name}",
            source=source,
            hint=hint,
        )
    if spec.shape is not None:
        if spec.shape and array.ndim == len(spec.shape) - 1 and _fits(array.shape, spec.shape[1:]):
            array = array[None]
        if not _fits(array.shape, (None, *spec.shape[1:]) if spec.shape else ()):
            cause = f"an array of shape {shape_text(array.shape)} does not fit input {spec}"
            note = None if spec.shape else "an input without axes takes one value for a whole file"
            raise CalibrationError(cause, source=source, hint=note)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise CalibrationError(f"the array for {spec.name!r} holds NaN or infinity", source=source)
    return array


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(w in (None, s) for w, s in zip(wanted, shape, strict=True))
