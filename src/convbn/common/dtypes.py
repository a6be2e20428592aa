"""Number types by name, those that NumPy knows and those of ml_dtypes (bfloat16, the 8-bit floats)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["dtype_name", "dtype_of", "is_float"]


def dtype_name(array: Any) -> str:
    """The NumPy name of the type of an array's or a torch tensor's elements."""
    return str(array.dtype).removeprefix("torch.")


def dtype_of(name: str) -> np.dtype[Any]:
    """The numpy dtype of that name, those of ml_dtypes included."""
    import ml_dtypes
    import numpy as np

    extended = getattr(ml_dtypes, name, None)
    return np.dtype(name if extended is None else extended)


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether the type is a real floating-point type, those of ml_dtypes included."""
    import ml_dtypes

    if dtype.kind == "f":
        return True
    try:
        ml_dtypes.finfo(dtype)
    except ValueError:
        return False
    return dtype.kind not in "c"
