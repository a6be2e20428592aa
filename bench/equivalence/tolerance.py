"""How exact a model's outputs can be: the coarsest float type it computes in.

Rounding is relative to the coarsest type on the way, not to the type of the output: a graph with
float16 weights that casts its result to float32 still has float16's error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from convbn.bench.models.inputs import is_onnx, load_graph
from convbn.common.dtypes import dtype_name, dtype_of
from convbn.common.encoding import JsonReady
from convbn.errors import UsageError
from convbn.export.precision.precisions import PRECISIONS

if TYPE_CHECKING:
    import onnx
    import torch

__all__ = ["Tolerance", "bound_of", "coarsest_float", "tolerance_of"]

#: Types that models compute in, finest first. The 8-bit floats are left out: they only store weights.
_FINEST_FIRST = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Tolerance(JsonReady):
    """How far outputs of a lower precision may be from those of the original.

    Attributes:
        bound: a pure number.
        norm: of the error that it bounds: ``max`` for max |a − b| / max |a| and for the worst channel, ``rms``
            for ‖a − b‖ / ‖a‖ over all values.
        source: where it comes from, one sentence.
    """

    bound: float
    norm: Literal["max", "rms"]
    source: str

    @property
    def unit(self) -> float | None:
        """ε of the type that the candidate computes in; None where the bound does not come from one."""
        return None if self.norm == "rms" or self.source == "given" else self.bound**2


def tolerance_of(precision: str, bound: float | None = None) -> Tolerance:
    """The tolerance of a precision.

    Args:
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        bound: in place of the precision's own.

    Raises:
        UsageError: there is no such precision, or the bound is not a positive number.
    """
    row = PRECISIONS.get(precision)
    if row is None:
        known = ", ".join(PRECISIONS)
        raise UsageError(f"there is no tolerance for precision {precision!r}", hint=f"choose {known}")
    if row.bound is None:
        made = Tolerance(bound_of(row.dtype), "max", f"√ε of {row.dtype}")
    else:
        made = Tolerance(row.bound, "rms", row.bound_source)
    if bound is None:
        return made
    if not (math.isfinite(bound) and bound > 0):
        raise UsageError(f"a tolerance of {bound} bounds nothing", hint="give a positive number")
    return replace(made, bound=bound, source="given")


def bound_of(*dtypes: str | None) -> float:
    """The relative error up to which two results count as equal: √ε of the coarsest type.

    ε is the gap between 1 and the next number. Folding moves roundings about, each of them ε, and a
    deep network multiplies them by some tens to some hundreds; a wrong fold (a lost bias, a
    channel mixed up) shows in the first or second digit. √ε, half of the type's digits, lies between:
    1.5e-8 for float64, 3.45e-4 for float32, 3.1e-2 for float16, 8.8e-2 for bfloat16.

    Args:
        dtypes: names of float types; None is passed over.

    Returns:
        The bound, a pure number.
    """
    import ml_dtypes

    return math.sqrt(max(float(ml_dtypes.finfo(dtype_of(name)).eps) for name in dtypes if name is not None))


def coarsest_float(
    model: onnx.ModelProto | str | Path | torch.nn.Module | torch.export.ExportedProgram,
) -> str | None:
    """The coarsest float type among a model's weights, and among the types an ONNX graph casts to.

    Args:
        model: ONNX or PyTorch.

    Returns:
        Its numpy name, or None for a model without float weights.
    """
    found = set(_onnx_dtypes(load_graph(model)) if is_onnx(model) else _torch_dtypes(model))
    used = [name for name in _FINEST_FIRST if name in found]
    return used[-1] if used else None


def _torch_dtypes(model: Any) -> Iterator[str]:
    tensors: Iterable[Any] = model.state_dict.values() if isinstance(model.state_dict, dict) else ()
    if not isinstance(model.state_dict, dict):
        tensors = [*model.parameters(), *model.buffers()]
    for tensor in tensors:
        yield dtype_name(tensor)


def _onnx_dtypes(model: onnx.ModelProto) -> Iterator[str]:
    bodies: list[Any] = [model.graph, *model.functions]
    while bodies:
        body = bodies.pop()
        for tensor in getattr(body, "initializer", ()):
            yield from _name(tensor.data_type)
        for node in body.node:
            for attribute in node.attribute:
                bodies.extend(attribute.graphs)
                if attribute.HasField("g"):
                    bodies.append(attribute.g)
                # A Constant of one element is a scale or an epsilon, not a weight.
                if node.op_type == "Constant" and attribute.HasField("t") and len(attribute.t.dims) > 0:
                    yield from _name(attribute.t.data_type)
                if node.op_type == "Cast" and attribute.name == "to":
                    yield from _name(attribute.i)


def _name(elem_type: int) -> Iterator[str]:
    from onnx import TensorProto

    names: dict[int, str] = {
        TensorProto.DOUBLE: "float64",
        TensorProto.FLOAT: "float32",
        TensorProto.FLOAT16: "float16",
        TensorProto.BFLOAT16: "bfloat16",
    }
    if elem_type in names:
        yield names[elem_type]
