"""Element types under the names that NumPy, TensorRT and Triton give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convbn.common.dtypes import dtype_of
from convbn.errors import NotSupportedError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["host_type", "triton_of_onnx", "triton_of_tensorrt"]

#: TensorRT's ``DataType`` to NumPy's name; bfloat16 and float8 are those of ml_dtypes.
_TENSORRT: Mapping[str, str] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "FP8": "float8_e4m3fn",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
#: NumPy's name to Triton's, which knows no float8.
_TRITON: Mapping[str, str] = {
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bfloat16": "BF16",
    "bool": "BOOL",
    "object": "STRING",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def host_type(tensorrt: str) -> np.dtype[Any]:
    """NumPy's type for one of TensorRT's.

    Raises:
        NotSupportedError: NumPy has none, not even with ml_dtypes.
    """
    if tensorrt not in _TENSORRT:
        raise NotSupportedError(f"tensors of type {tensorrt} cannot be passed in or out")
    return dtype_of(_TENSORRT[tensorrt])


def triton_of_tensorrt(name: str) -> str | None:
    """Triton's name of one of TensorRT's types, without ``TYPE_``; None if it has none."""
    return _TRITON.get(_TENSORRT.get(name, ""))


def triton_of_onnx(code: int) -> str | None:
    """Triton's name of a ``TensorProto.DataType``; None if it has none."""
    from onnx import helper

    if code not in helper.get_all_tensor_dtypes():
        return None
    return _TRITON.get(helper.tensor_dtype_to_np_dtype(code).name)
