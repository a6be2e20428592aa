"""Tensors of a ModelProto, read when their numbers are asked for, and those that edits put in their place.

Weights may lie in files: then they are read one at a time, and folded ones are computed when they are written, so that
a model is folded without ever holding its weights. What stands in the ModelProto for a weight that is still to be
computed is a reference to a location that is no path, by which whoever writes the model finds the computation.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convbn.errors import BadInputError
from convbn.fuse.view.dataflow import Constant

if TYPE_CHECKING:
    import onnx

__all__ = ["Compute", "Deferred", "Read", "Stored", "dtype_of"]

Array = NDArray[Any]
Compute = Callable[[], Array]
Read = Callable[["onnx.TensorProto"], bytes]

_EXTERNAL = 1  # TensorProto.DataLocation.EXTERNAL, which is looked up slowly in a message

_MIN_BYTES = 1 << 16
"""A computed weight of fewer bytes is put into the model at once."""


@cache
def dtype_of(element: int) -> np.dtype[Any] | None:
    """NumPy's type for one of ONNX's element types; None where that is left open.

    Raises:
        BadInputError: there is no such type.
    """
    import onnx

    if element == onnx.TensorProto.UNDEFINED:
        return None
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element))
    except KeyError as error:
        cause = f"the ONNX graph cannot be read: it names an element type {element}, which is none"
        raise BadInputError(cause) from error


class Stored:
    """A tensor of the model as it came.

    Args:
        proto: may be overwritten; :meth:`set_aside` first, where its numbers are still to be read.
        read: gives the raw bytes of an external tensor; None where none can be read.
        main: whether it is an initializer of the main graph.

    Attributes:
        sparse: whether it is given by its elements that are not 0.
    """

    __slots__ = ("_read", "main", "proto", "sparse")

    def __init__(
        self,
        proto: onnx.TensorProto | onnx.SparseTensorProto,
        read: Read | None = None,
        *,
        main: bool = False,
    ) -> None:
        self.proto: Any = proto
        self._read = read
        self.main = main
        self.sparse = not hasattr(proto, "data_type")

    def constant(self) -> Constant:
        """The constant that it is, whatever becomes of the model."""
        values = self.proto.values if self.sparse else self.proto
        return Constant(tuple(self.proto.dims), self._load, dtype=dtype_of(values.data_type))

    def set_aside(self) -> None:
        """Keep the numbers where they are not overwritten."""
        kept = type(self.proto)()
        kept.CopyFrom(self.proto)
        self.proto = kept

    def _load(self) -> Array:
        name = self.proto.values.name if self.sparse else self.proto.name
        try:
            return _dense(self.proto) if self.sparse else self._array(self.proto)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise BadInputError(f"initializer '{name}' cannot be read: {error}") from error

    def _array(self, proto: onnx.TensorProto) -> Array:
        if proto.data_location == _EXTERNAL:
            if self._read is None:
                cause = f"initializer '{proto.name}' lies in another file"
                raise BadInputError(cause, hint="give the model's path, or load it with its external data")
            data = self._read(proto)
        elif proto.HasField("raw_data"):
            data = proto.raw_data
        else:
            return _whole(proto)
        dtype, shape = dtype_of(proto.data_type), tuple(proto.dims)
        if dtype is None:
            raise ValueError("it has no element type")
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data):  # several elements a byte
            return _whole(type(proto)(data_type=proto.data_type, dims=shape, raw_data=data))
        values = np.frombuffer(data, dtype if sys.byteorder == "little" else dtype.newbyteorder("<"))
        return values.astype(dtype, copy=False).reshape(shape)


def _whole(proto: onnx.TensorProto) -> Array:
    import onnx

    return np.asarray(onnx.numpy_helper.to_array(proto))


def _dense(proto: onnx.SparseTensorProto) -> Array:
    import onnx

    values, indices = map(onnx.numpy_helper.to_array, (proto.values, proto.indices))
    shape = tuple(proto.dims)
    dense = np.zeros(math.prod(shape), values.dtype)
    dense[indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)] = values
    return dense.reshape(shape)


class Deferred:
    """The tensors that edits make.

    Args:
        wanted: whether large ones of the main graph are computed only when they are written.

    Attributes:
        computed: what gives a tensor's values, by the location that stands for them.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self.computed: dict[str, Compute] = {}

    def tensor(self, name: str, constant: Constant, *, main: bool) -> onnx.TensorProto:
        """A tensor that holds a constant, or that stands for it until it is written."""
        import onnx

        dtype = constant.dtype
        if not (self._wanted and main and math.prod(constant.shape) * dtype.itemsize >= _MIN_BYTES):
            return onnx.numpy_helper.from_array(constant.array(), name)
        location = f"\0{len(self.computed)}"
        self.computed[location] = constant.array
        tensor = onnx.TensorProto(name=name, dims=constant.shape)
        tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(dtype)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        return tensor

    def overwrite(self, stored: Stored, constant: Constant) -> None:
        """Put a constant into a tensor of the model, whose other fields stay as they are."""
        target = stored.proto
        if self._wanted:
            stored.set_aside()
        made = self.tensor(target.name, constant, main=stored.main)
        for field in ("float_data", "int32_data", "double_data", "int64_data", "uint64_data", "raw_data"):
            target.ClearField(field)
        for field in ("external_data", "data_location", "dims", "data_type"):
            target.ClearField(field)
        target.MergeFrom(made)
