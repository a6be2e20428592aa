"""Nothing heavy is imported before it is needed, and the public names are these."""

from __future__ import annotations

import json
import resource
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
    "EngineRunner",
    "FileAccessError",
    "FuseOptions",
    "FuseResult",
    "NotSupportedError",
    "Report",
    "UsageError",
    "bench",
    "build_engine",
    "export_onnx",
    "fuse",
    "fuse_file",
    "inspect",
    "inspect_engine",
    "load_fused",
    "register_batchnorm",
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
        "import convbn.fuse.rules.registry as registry\n"
        "from convbn.bench.results import statistics\n"
        "assert callable(convbn.fuse) and callable(convbn.bench)\n"
        "try: convbn.fuse(3)\n"
        "except convbn.UsageError: pass"
    )
    assert loaded_after(code) is not None


def test_help_costs_little_cpu() -> None:
    """The promise is 0.15 s; the best of five runs, so that a busy machine does not break it."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "convbn", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.15
