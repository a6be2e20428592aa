"""TensorRT-RTX: builds without a GPU; its engines run on RTX GPUs and are finished there by a JIT."""

from __future__ import annotations

from convbn.export.engines.backends.backend import Backend
from convbn.export.engines.backends.gpus import Gpu

__all__ = ["BACKEND"]


def _serves(gpu: Gpu) -> bool:
    # A default engine is for 8.0, 8.6, 8.9 and 12.0 on; Hopper and data-centre Blackwell (9 to 11) are
    # classic TensorRT's, and Turing (7.5) is not part of the default.
    return gpu.compute_capability[0] == 8 or gpu.compute_capability[0] >= 12


BACKEND = Backend(
    name="tensorrt-rtx",
    # The second is what the first imports; where only binary wheels are allowed it comes alone.
    modules=("tensorrt_rtx", "tensorrt_rtx_bindings"),
    pip="pip install 'convbn[rtx]'",
    needs_gpu=False,
    serves=_serves,
    cli="tensorrt_rtx",
    unhonoured={
        "optimization_level": "every level gives the same engine",
        "hardware_compatibility": "name the GPUs with compute-capability",
        "version_compatible": "it comes without the lean runtime that such an engine carries",
        "timing_cache": "it times no kernels while it builds; the runtime cache is its counterpart",
    },
    # Without a driver the builder fails on them in its compiler.
    gpu_only=frozenset({"refit", "strip_weights"}),
)
