"""Nothing heavy is imported before it is needed, and the public names are these."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("numpy", "torch", "onnx", "onnxruntime", "onnx_graphsurgeon", "tensorrt_rtx")

PUBLIC = {
    "BadInputError",
    "BenchGrid",
    "BenchOptions",
    "CheckFailedError",
    "ConvBNError",
    "EngineOptions",
    "EngineFile",
    "EngineRunner",
    "FileAccessError",
    "FuseOptions",
    "FuseResult",
    "NotSupportedError",
    "Report",
    "UsageError",
    "bench",
    "build_engine",
    "compare_layers",
    "export_onnx",
    "fuse",
    "fuse_file",
    "gates",
    "inspect",
    "inspect_engine",
    "is_folded",
    "load_fused",
    "register_batchnorm",
    "register_conv",
    "save_fused",
    "verify",
}


def loaded_after(code: str) -> list[str]:
    """The heavy packages that a fresh interpreter holds after running ``code``."""
    probe = f"{code}\nimport json, sys\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    output = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    return list(json.loads(output.splitlines()[-1]))


def test_public_names_are_frozen() -> None:
    import convbn

    assert set(convbn.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(convbn, name) is not None
    assert set(dir(convbn)) == PUBLIC


def test_unknown_name() -> None:
    import convbn

    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = convbn.nonsense  # type: ignore[attr-defined]  # that is the point


@pytest.mark.parametrize(
    "code",
    [
        "import convbn",
        "import convbn, convbn.cli\ntry: convbn.cli.main(['--help'])\nexcept SystemExit: pass",
        "import convbn.cli\ntry: convbn.cli.main(['fuse'])\nexcept SystemExit: pass",
        "import convbn.cli\nassert convbn.cli.main('export a -o b.engine --calibration c'.split()) == 2",
    ],
)
def test_nothing_heavy(code: str) -> None:
    assert loaded_after(code) == []


def test_fuse_is_a_package_and_a_function() -> None:
    code = (
        "import convbn\n"
        "import convbn.fuse.operators.registry as registry\n"
        "from convbn.bench.results import statistics\n"
        "assert callable(convbn.fuse) and callable(convbn.bench)\n"
        "try: convbn.fuse(3)\n"
        "except convbn.UsageError: pass"
    )
    assert loaded_after(code) is not None


COUNTED = """
import sys
counts = {"call": 0, "c_call": 0}
def count(frame, event, argument):
    if event in counts:
        counts[event] += 1
before = set(sys.modules)
sys.setprofile(count)
import convbn.cli
try:
    convbn.cli.main(["--help"])
except SystemExit:
    sys.setprofile(None)
print(len(set(sys.modules) - before), sum(counts.values()))
"""


def test_help_costs_little() -> None:
    """The promise is 0.15 s of CPU. What is counted here is the same on every machine and takes 0.03 s."""
    output = subprocess.run(
        [sys.executable, "-c", COUNTED], capture_output=True, text=True, check=True
    ).stdout
    loaded, calls = map(int, output.splitlines()[-1].split())
    assert 0 < loaded < 60
    assert 0 < calls < 60_000
