"""What every test needs of the process it runs in."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest


def pytest_configure() -> None:
    # A shell that starts the tests in the background has SIGINT ignored, and every program that a test
    # starts would inherit that: those that are interrupted on purpose would run on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # What measures waits for whoever else works on the machine, by locks among the temporary files: tests that run
    # beside each other would all wait for each other.
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None:
        folder = Path(tempfile.gettempdir(), f"convbn-{worker}")
        folder.mkdir(exist_ok=True)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


@pytest.fixture(scope="session")
def cuda_library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """A CUDA driver on the host's memory, compiled from ``support/libcuda_stub.c``."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    path = tmp_path_factory.mktemp("cuda") / "libcuda_stub.so"
    source = Path(__file__).parent / "support" / "libcuda_stub.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(path), str(source)], check=True)
    library = ctypes.CDLL(str(path))
    library.stub_work.argtypes = [ctypes.c_double]
    library.stub_flushed.restype = ctypes.c_size_t
    return library


@pytest.fixture
def cuda_stub(cuda_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """The same in place of the driver of this machine."""
    from convbn.export.engines.run import cuda

    monkeypatch.setattr(cuda, "_LIBRARY", cuda_library._name)
    return cuda_library
