"""ExecuTorch programs: a program lowered to its edge operators, as much of it as fits to XNNPACK.

ExecuTorch's runtime loads the file on a phone or a microcontroller; here its Python binding loads it back. What is not
delegated to XNNPACK runs in ExecuTorch's portable kernels, and the sidecar counts both.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbn.common.exclusive import quiet
from convbn.common.text import one_line
from convbn.errors import NotSupportedError
from convbn.export.packages.package import LoadedPackage, Package, Packed
from convbn.fuse.frontends.torch.modules.isolation import exclusive_capture

if TYPE_CHECKING:
    import torch

__all__ = ["PACKAGE"]


def require() -> None:
    """Find ExecuTorch.

    Raises:
        NotSupportedError: it is missing, or does not import beside this torch.
    """
    hint = "pip install 'convbn[executorch]'"
    try:
        # It brings torchao, which speaks of kernels for other machines.
        with quiet():
            import_module("executorch.runtime")
    except ImportError as error:
        missing = (error.name or "").startswith(("executorch", "torch"))
        cause = (
            "executorch is not installed"
            if missing
            else f"executorch does not import: {one_line(error, 160)}"
        )
        raise NotSupportedError(cause, hint=hint) from error


def pack(program: Any, examples: Sequence[Any], path: Path) -> Packed:
    """Lower a program.

    Raises:
        NotSupportedError: ExecuTorch cannot take it.
    """
    with exclusive_capture():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        try:
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
        except Exception as error:  # of its passes, which raise what they like
            cause = f"ExecuTorch cannot lower the program ({one_line(error, 300)})"
            raise NotSupportedError(cause, hint="write a .pt2 or .onnx file instead") from error
    path.write_bytes(lowered.buffer)
    plan = lowered.executorch_program.execution_plan[0]
    called = [type(call.instr_args).__name__ for chain in plan.chains for call in chain.instructions]

    def load() -> LoadedPackage:
        return LoadedPackage("ExecuTorch", module=_calling(path))

    return Packed(
        path,
        load,
        {
            "delegates": sorted({delegate.id for delegate in plan.delegates}),
            "calls": {
                "delegate": called.count("DelegateCall"),
                "kernel": called.count("KernelCall"),
            },
        },
    )


def _calling(path: Path) -> torch.nn.Module:
    import torch
    from torch.utils import _pytree as pytree

    class Loaded(torch.nn.Module):
        """Calls the program's forward in ExecuTorch's runtime. It holds no weight of its own."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            from executorch.runtime import Runtime

            method = Runtime.get().load_program(str(path)).load_method("forward")
            flat, _ = pytree.tree_flatten((args, kwargs))
            return tuple(output.clone() for output in method.execute(flat))

    return Loaded().eval()


PACKAGE = Package(("executorch", "torch"), require, pack)
