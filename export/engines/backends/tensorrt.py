"""Classic TensorRT, 10.12 to 11: times its kernels on the GPU it builds for, so it needs one."""

from __future__ import annotations

from convbn.export.engines.backends.backend import Backend
from convbn.export.engines.backends.gpus import Gpu

__all__ = ["BACKEND"]


def _serves(gpu: Gpu) -> bool:
    return gpu.compute_capability >= (7, 5)


BACKEND = Backend(
    name="tensorrt",
    modules=("tensorrt",),
    pip="pip install 'convbn[tensorrt]'",
    needs_gpu=True,
    serves=_serves,
    cli="trtexec",
    # The cache's file is named after the GPU.
    gpu_only=frozenset({"timing_cache"}),
    unhonoured={"compute_capabilities": "it builds for the GPU that is here; see hardware-compatibility"},
)
