"""A pass for onnx-ir, so that the optimizers built on it, onnxscript's for one, can chain the fold with theirs.

>>> passes = onnx_ir.passes.Sequential(FoldBatchNorm(), common_passes.RemoveUnusedNodesPass())
>>> model = passes(onnx_ir.load("model.onnx")).model
"""

from __future__ import annotations

import onnx_ir

import convbn

__all__ = ["FoldBatchNorm"]


class FoldBatchNorm(onnx_ir.passes.FunctionalPass):
    """Folds every BatchNorm that can be folded exactly, and proves that the outputs did not change.

    The model is handed over as a ModelProto and comes back as a new ``onnx_ir.Model``; the one given stays as it was.

    Args:
        options: rules to use, and whether to verify.

    Attributes:
        report: what the last call did, or None before the first.
    """

    def __init__(self, options: convbn.FuseOptions | None = None) -> None:
        super().__init__()
        self._options = options
        self.report: convbn.Report | None = None

    def call(self, model: onnx_ir.Model) -> onnx_ir.passes.PassResult:
        """Fold.

        Raises:
            PassError: by the pass manager; its cause is convbn's error, such as outputs that are not equal.
        """
        folded, self.report = convbn.fuse(onnx_ir.to_proto(model), options=self._options)
        before, after = self.report.batchnorm.before, self.report.batchnorm.after
        changed = before != after or bool(self.report.merged)
        return onnx_ir.passes.PassResult(onnx_ir.from_proto(folded), modified=changed)
