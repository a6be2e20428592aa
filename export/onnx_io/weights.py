"""The bytes of tensors that a model only refers to: in a file, or still to be computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convbn.export.onnx_io.encoding import Buffer, Weight
from convbn.export.onnx_io.external_data import DataFiles, location_of

if TYPE_CHECKING:
    import onnx

__all__ = ["StoredWeights"]


class StoredWeights:
    """Finds the bytes of external tensors, one tensor at a time.

    Args:
        files: of the model that came in.
        computed: what computes a tensor's values, by the location that stands for them.
    """

    def __init__(
        self, files: DataFiles, computed: Mapping[str, Callable[[], NDArray[Any]]] | None = None
    ) -> None:
        self._files = files
        self._computed = computed or {}

    def of(self, tensor: onnx.TensorProto) -> Weight:
        """The raw bytes of an external tensor, little-endian.

        Raises:
            BadInputError: they do not lie where the tensor says, now or when they are read.
        """
        compute = self._computed.get(location_of(tensor))
        if compute is None:
            return Weight(self._files.range_of(tensor).length, lambda: self._files.pieces(tensor))
        import onnx

        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        return Weight(math.prod(tensor.dims) * dtype.itemsize, lambda: _bytes_of(compute()))

    def key(self, tensor: onnx.TensorProto) -> object:
        """What is equal for two tensors that share all of their bytes."""
        location = location_of(tensor)
        return location if location in self._computed else self._files.range_of(tensor)


def _bytes_of(values: NDArray[Any]) -> Iterator[Buffer]:
    little = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"), copy=False))
    # bfloat16 is no type that a memoryview knows; its bytes are.
    yield little.reshape(-1).view(np.uint8).data
