"""The inputs of a model: what it takes, and seeded random values to feed it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt

from convbn.common.dtypes import dtype_of, is_float
from convbn.common.text import shape_text
from convbn.errors import NotSupportedError, UsageError

if TYPE_CHECKING:
    import onnx

__all__ = [
    "Array",
    "Feeds",
    "InputSpec",
    "input_specs",
    "is_onnx",
    "load_graph",
    "make_inputs",
    "shape_example",
]

Array: TypeAlias = npt.NDArray[Any]
Feeds: TypeAlias = Mapping[str, Array]

#: Size given to an open batch axis (axis 0): the smallest that shows a mix-up between samples.
OPEN_BATCH = 2
#: Integers stay below it where nothing says what they index.
_INTEGERS = 10


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: its name in the graph.
        dtype: numpy name of the element type (``bfloat16`` and the 8-bit floats are those of ml_dtypes).
        shape: one size an axis, None where the axis is open; None as a whole if even the rank is unknown.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None


def is_onnx(model: object) -> TypeGuard[onnx.ModelProto | str | Path]:
    """Whether it is an ONNX model or a path; told by its fields, so that torch users need no onnx."""
    return isinstance(model, str | Path) or hasattr(model, "opset_import")


def load_graph(model: onnx.ModelProto | str | Path) -> onnx.ModelProto:
    """The graph of an ONNX model; large weights are not read, and those in other files are not looked at.

    Args:
        model: a model, which is handed back as it is, or the path of an ONNX file.

    Returns:
        The model; what was not read are references that lead nowhere.

    Raises:
        FileAccessError: the file cannot be read.
        BadInputError: the file is not an ONNX model.
    """
    if not isinstance(model, str | Path):
        return model
    from convbn.export.onnx_io.read import open_model

    opened = open_model(model, external_data=False, hashed=False)
    opened.files.close()
    return opened.model


def input_specs(model: onnx.ModelProto | str | Path) -> tuple[InputSpec, ...]:
    """What an ONNX model has to be fed, in graph order; inputs that are also initializers have a value.

    Args:
        model: a model or the path of an ONNX file.

    Returns:
        One spec an input.

    Raises:
        FileAccessError: the file cannot be read.
        BadInputError: the file is not an ONNX model.
        NotSupportedError: an input is not a tensor of numbers (a sequence, a map, strings).
    """
    graph = load_graph(model).graph
    valued = {tensor.name for tensor in graph.initializer}
    valued |= {tensor.values.name for tensor in graph.sparse_initializer}
    return tuple(_spec(value) for value in graph.input if value.name not in valued)


def _spec(value: onnx.ValueInfoProto) -> InputSpec:
    from onnx import TensorProto, helper

    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or tensor.elem_type in {
        TensorProto.UNDEFINED,
        TensorProto.STRING,
    }:
        raise NotSupportedError(
            "is not a tensor of numbers, so no random values can be made for it",
            source=f"input {value.name!r}",
            hint="give the inputs yourself (inputs=...)",
        )
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    if not tensor.HasField("shape"):
        return InputSpec(value.name, dtype, None)
    # Some exporters write −1 for an open axis.
    shape = tuple(
        int(d.dim_value) if d.HasField("dim_value") and d.dim_value >= 0 else None for d in tensor.shape.dim
    )
    return InputSpec(value.name, dtype, shape)


_MOST_ELEMENTS = 1 << 29
"""Of one input; drawn in float64 that is 4 GiB."""


def make_inputs(
    specs: Sequence[InputSpec],
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    seed: int,
    limits: Mapping[str, int] | None = None,
    vary: bool = False,
) -> dict[str, Array]:
    """Random values: floats standard normal, integers uniform in [0, 10), booleans fair coins.

    Args:
        specs: the inputs.
        shapes: full shapes by input name, for axes that are open; an open axis 0 is 2 without.
        seed: of the generator; the same seed, specs and shapes give the same values.
        limits: what integers stay below, by input name.
        vary: give every open axis another size than it would have.

    Returns:
        An array by name, in the order of the specs.

    Raises:
        UsageError: a shape is missing, contradicts the model, or names an input that is not there.
        NotSupportedError: an input has an element type that has no random values here.
    """
    shapes = shapes or {}
    unknown = sorted(set(shapes) - {spec.name for spec in specs})
    if unknown:
        known = ", ".join(spec.name for spec in specs) or "none"
        raise UsageError(f"the model has no input {unknown[0]!r}", hint=f"its inputs are: {known}")
    rng = np.random.default_rng(seed)
    made = {}
    for spec in specs:
        shape = _closed(spec, shapes.get(spec.name))
        if vary and spec.shape is not None:
            shape = tuple(
                _another(size) if open_size is None else size
                for size, open_size in zip(shape, spec.shape, strict=True)
            )
        made[spec.name] = _values(spec, shape, rng, (limits or {}).get(spec.name, _INTEGERS))
    return made


def _another(size: int) -> int:
    """Another size for an axis: near, and of the same steps where it looks like the side of an image."""
    if size < 16:
        return size + 1
    if size % 32 == 0:
        return size - 32 if size > 32 else 64
    return size - 1


def _closed(spec: InputSpec, given: tuple[int, ...] | None) -> tuple[int, ...]:
    if given is not None:
        fits = spec.shape is None or (
            len(given) == len(spec.shape)
            and all(want in (None, size) for want, size in zip(spec.shape, given, strict=True))
        )
        if not fits or any(size < 0 for size in given):
            raise UsageError(
                f"shape {shape_text(given)} does not fit {shape_text(spec.shape)}",
                source=f"input {spec.name!r}",
            )
        return tuple(given)
    if spec.shape is None or any(size is None for size in spec.shape[1:]):
        raise UsageError(
            f"has open axes besides the batch ({shape_text(spec.shape)})",
            source=f"input {spec.name!r}",
            hint=f"give its shape, like --input-shape {shape_example(spec)}",
        )
    return tuple(OPEN_BATCH if size is None else size for size in spec.shape)


def shape_example(spec: InputSpec) -> str:
    """What ``--input-shape`` may say of an input: its fixed sizes, and likely ones for the rest."""
    if spec.shape is None:
        return f"{spec.name}:1x3x224x224"
    open_size = 224 if len(spec.shape) == 4 else 16
    sizes = [
        size if size is not None else 1 if axis == 0 else open_size for axis, size in enumerate(spec.shape)
    ]
    return f"{spec.name}:{'x'.join(map(str, sizes))}"


def _values(spec: InputSpec, shape: tuple[int, ...], rng: np.random.Generator, limit: int) -> Array:
    dtype = dtype_of(spec.dtype)
    if math.prod(shape) > _MOST_ELEMENTS:
        raise NotSupportedError(
            f"{shape_text(shape)} is more than random values are made for",
            source=f"input {spec.name!r}",
            hint="--no-verify skips the comparison",
        )
    if is_float(dtype):
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind in "iu":
        return rng.integers(0, max(limit, 1), shape).astype(dtype)
    if dtype.kind == "c":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    if dtype.kind == "b":
        return np.asarray(rng.integers(0, 2, shape), dtype=bool)
    raise NotSupportedError(
        f"has element type {spec.dtype}, which has no random values here",
        source=f"input {spec.name!r}",
        hint="give the inputs yourself (inputs=...)",
    )
