"""``make contract``: bindings of several TensorRT versions from the package registry, each held against convbn.

The wheels are a megabyte each and hold no TensorRT. They and what is unpacked stay in the given folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

VERSIONS = (
    "tensorrt_cu12_bindings==10.12.0.36",
    "tensorrt_cu12_bindings==10.13.3.9",
    "tensorrt_cu12_bindings==10.16.1.11",
    "tensorrt_cu13_bindings==11.0.0.114",
    "tensorrt_cu13_bindings==11.4.0.106",
)
# Holds the definition of Triton's config.pbtxt.
TRITON = "tritonclient==2.73.0"


def fetched(requirement: str, cache: Path) -> Path:
    """The unpacked wheel, downloaded only once."""
    folder = cache / requirement.replace("==", "-")
    if not folder.is_dir():
        wheels = cache / "wheels" / folder.name
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "--dest", str(wheels), requirement], check=True)
        (wheel,) = wheels.glob("*.whl")
        temporary = folder.with_suffix(".part")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(temporary)
        temporary.rename(folder)
    return folder


def main() -> int:
    """Run the contract tests once for each version; 1 if one of them fails."""
    cache = Path(sys.argv[1]).resolve()
    tests = Path(__file__).parents[1] / "tests" / "contract"
    triton = fetched(TRITON, cache)
    failed = []
    for requirement in VERSIONS:
        environment = {
            **os.environ,
            "CONVBN_BINDINGS": str(fetched(requirement, cache)),
            "CONVBN_TRITONCLIENT": str(triton),
        }
        print(f"== {requirement}", flush=True)
        if subprocess.run([sys.executable, "-m", "pytest", str(tests)], env=environment).returncode:
            failed.append(requirement)
    print(f"failed: {', '.join(failed)}" if failed else "the contract holds for all of them")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
