"""AOTInductor packages: a program compiled ahead of time into a library, which torch loads without tracing anything.

Of `torch._inductor.aoti_compile_and_package`. The library is machine code for the machine that made it: its sidecar
names the system and the instruction set, and torch refuses it where these are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbn.common.text import one_line
from convbn.errors import NotSupportedError
from convbn.export.packages.package import LoadedPackage, Package, Packed
from convbn.fuse.frontends.torch.modules.isolation import exclusive_capture

if TYPE_CHECKING:
    import torch

__all__ = ["PACKAGE"]


def require() -> None:
    """Find torch and a C++ compiler.

    Raises:
        NotSupportedError: one of them is missing.
    """
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler
    except ImportError as error:
        raise NotSupportedError("torch is not installed", hint="pip install 'convbn[torch]'") from error
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise NotSupportedError(
            "AOTInductor needs a C++ compiler, and there is none", hint="install g++, or name one in CXX"
        ) from error


def pack(program: Any, examples: Sequence[Any], path: Path) -> Packed:
    """Compile a program for the CPU that it lies on.

    Raises:
        NotSupportedError: it cannot be compiled.
    """
    import torch
    from torch._inductor import aoti_compile_and_package

    with exclusive_capture():
        try:
            aoti_compile_and_package(program, package_path=str(path))
        except Exception as error:  # of a compiler, and of whatever it calls
            cause = f"AOTInductor cannot compile the program ({one_line(error, 300)})"
            raise NotSupportedError(cause, hint="write a .pt2 or .onnx file instead") from error
        runs_on = torch._inductor.aoti_load_package(str(path)).get_metadata()

    def load() -> LoadedPackage:
        return LoadedPackage("AOTInductor", module=_calling(path))

    facts = {name.removeprefix("AOTI_").lower(): value for name, value in runs_on.items() if value}
    return Packed(path, load, {"runs_on": facts})


def _calling(path: Path) -> torch.nn.Module:
    import torch

    class Compiled(torch.nn.Module):
        """Calls the package. It holds no weight of its own, and is loaded where it is called."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return torch._inductor.aoti_load_package(str(path))(*args, **kwargs)

    return Compiled().eval()


PACKAGE = Package(("torch",), require, pack)
