"""Weights that lie outside of a ModelProto: read one at a time, and folded ones computed when they are written.

So a model is folded without ever holding its weights. What stands in the ModelProto for a weight that is still to
be computed is a reference to a location that is no path, by which whoever writes the model finds the computation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convbn.errors import BadInputError
from convbn.fuse.view.dataflow import Constant

if TYPE_CHECKING:
    import onnx

__all__ = ["Compute", "Outside", "Read", "dtype_of"]

Array = NDArray[Any]
Compute = Callable[[], Array]
Read = Callable[["onnx.TensorProto"], bytes]

_MIN_BYTES = 1024
"""A computed weight of fewer bytes is put into the model at once."""


def dtype_of(tensor: onnx.TensorProto) -> np.dtype[Any] | None:
    """What ``load`` of a tensor's constant gives; None for a type that is unknown here."""
    import onnx

    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except KeyError:
        return None


class Outside:
    """Reads the weights of one model and remembers how to compute those that replace them.

    Args:
        read: gives the raw bytes of an external tensor.

    Attributes:
        computed: what gives a tensor's values, by the location that stands for them.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self.computed: dict[str, Compute] = {}

    def constant(self, tensor: onnx.TensorProto) -> Constant:
        """The constant that a tensor is now, whatever becomes of the tensor."""
        import onnx

        # Another weight may be computed from it after it was overwritten.
        kept = onnx.TensorProto()
        kept.CopyFrom(tensor)
        read = self._read

        def load() -> Array:
            try:
                if kept.data_location != kept.EXTERNAL:
                    return np.asarray(onnx.numpy_helper.to_array(kept))
                data = read(kept)
                dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kept.data_type))
                if math.prod(kept.dims) * dtype.itemsize != len(data):  # several elements a byte
                    whole = onnx.TensorProto(data_type=kept.data_type, dims=kept.dims, raw_data=data)
                    return np.asarray(onnx.numpy_helper.to_array(whole))
                values = np.frombuffer(data, dtype.newbyteorder("<"))
                return values.astype(dtype, copy=False).reshape(tuple(kept.dims))
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                raise BadInputError(f"initializer '{kept.name}' cannot be read: {error}") from error

        return Constant(tuple(kept.dims), load, dtype=dtype_of(kept))

    def defer(self, name: str, constant: Constant) -> onnx.TensorProto | None:
        """A tensor that stands for a constant until it is written; None for one too small to be worth it."""
        import onnx

        if math.prod(constant.shape) * constant.dtype.itemsize < _MIN_BYTES:
            return None
        location = f"\0{len(self.computed)}"
        self.computed[location] = constant.array
        tensor = onnx.TensorProto(
            name=name, dims=constant.shape, data_type=onnx.helper.np_dtype_to_tensor_dtype(constant.dtype)
        )
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        return tensor
