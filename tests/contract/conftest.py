"""The bindings of one TensorRT version, imported without TensorRT.

They need nine C functions of libnvinfer and its companions. Here these come from empty libraries, compiled into
a temporary folder for this run and kept nowhere: enough to import the module and to read what it offers.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = os.environ.get("CONVBN_BINDINGS")


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The bindings in the folder that `make contract` names."""
    if FOLDER is None:
        pytest.skip("make contract downloads the bindings and runs this")
    library = Path(FOLDER) / "tensorrt_bindings" / "tensorrt.so"
    tools = [tool for tool in ("gcc", "nm", "readelf") if shutil.which(tool) is None]
    if tools:
        pytest.skip(f"{tools[0]} is needed to import the bindings without TensorRT")
    folder = tmp_path_factory.mktemp("empty")
    undefined = _output("nm", "-D", "--undefined-only", library)
    names = re.findall(r" U (\w+)$", undefined, re.MULTILINE)
    lacking = [name for name in names if re.search(r"_INTERNAL$|PluginRegistry$|^initLib|^getNv", name)]
    for soname in re.findall(r"\[(libnv\w+\.so\.\d+)\]", _output("readelf", "-d", library)):
        functions = lacking if soname.startswith("libnvinfer.so") else []
        code = "".join(f"void *{name}(void) {{ return 0; }}\n" for name in functions)
        target = folder / soname
        subprocess.run(
            ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-x", "c", "-", "-o", str(target)],
            input=code.encode(),
            check=True,
        )
        ctypes.CDLL(str(target), mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, FOLDER)
    import tensorrt_bindings

    return tensorrt_bindings  # type: ignore[no-any-return]  # a package without annotations


def _output(*command: object) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout
