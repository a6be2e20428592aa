from __future__ import annotations

import json
import subprocess
import sys

import pytest

from convbn.bench.results.environment import describe_environment


def test_the_environment_is_named_and_json() -> None:
    found = describe_environment()
    assert found["libraries"]["numpy"]
    assert found["cores"] >= 1
    assert found["python"].startswith(f"{sys.version_info.major}.")
    json.dumps(found, allow_nan=False)


def test_no_framework_is_imported_to_find_out() -> None:
    code = (
        "import sys; from convbn.bench.results.environment import describe_environment; describe_environment();"
        "sys.exit(any(m in sys.modules for m in ('torch', 'onnx', 'onnxruntime', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_machine_without_nvidia_smi_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert describe_environment()["gpus"] == []
