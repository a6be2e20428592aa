"""A loader for Polygraphy: folds what another loader gives, before a network or an engine is made of it.

>>> load = FoldBatchNorm(OnnxFromPath("model.onnx"))
>>> build = EngineFromNetwork(NetworkFromOnnxBytes(BytesFromOnnx(load)))
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
from polygraphy import util
from polygraphy.backend.base import BaseLoader

import convbn

__all__ = ["FoldBatchNorm"]


class FoldBatchNorm(BaseLoader):  # type: ignore[misc]
    """Folds every BatchNorm that can be folded exactly, and proves that the outputs did not change.

    Args:
        model: an ``onnx.ModelProto`` or a loader that gives one; it is left as it was.
        options: rules to use, and whether to verify.
    """

    def __init__(
        self,
        model: onnx.ModelProto | Callable[[], onnx.ModelProto],
        options: convbn.FuseOptions | None = None,
    ) -> None:
        super().__init__()
        self._model, self._options = model, options

    def call_impl(self) -> onnx.ModelProto:
        """The folded model.

        Raises:
            CheckFailedError: the outputs are not equal.
        """
        given, _ = util.invoke_if_callable(self._model)
        folded: onnx.ModelProto = convbn.fuse(given, options=self._options).model
        return folded
