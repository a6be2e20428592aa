"""Classic TensorRT, 10.16 to 11: times its kernels on the GPU it builds for, so it needs one."""

from __future__ import annotations

from convbn.export.engines.backend import Backend
from convbn.export.engines.gpus import Gpu

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
)
