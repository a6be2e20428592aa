"""What a model adds to the memory of a fresh process: the peak while it is loaded and run once.

A process that has loaded other models cannot say what one of them takes: freed memory is not given back, and
libraries grow caches. So each variant is loaded in a process of its own, which first imports the runtime and
holds the inputs; what its peak exceeds that by belongs to the model.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbn.bench.models.inputs import Feeds
from convbn.bench.runtimes.base import Form, SessionOptions, Variant
from convbn.bench.runtimes.registry import device_of, form_of, load_library, open_session, self_fused_name
from convbn.errors import ConvBNError
from convbn.export.engines.run.load import EngineFile

if TYPE_CHECKING:
    import torch

__all__ = ["peak_memory"]

_TIMEOUT_SECONDS = 180.0
_JOB, _MODULE, _MODEL = "job.pickle", "module.pt", "model.onnx"


@dataclass(frozen=True)
class _Job:
    runtime: str
    variant: Variant
    feeds: Feeds
    threads: int | None


def peak_memory(runtime: str, variant: Variant, feeds: Feeds, *, threads: int | None) -> int | None:
    """Bytes that loading a model and one inference add to a fresh process, at their peak.

    Args:
        runtime: its name. On a CPU resident memory counts, on a GPU device memory that is still held after
            the inference.
        variant: the model.
        feeds: an array by input name.
        threads: inside one operator; each has buffers of its own.

    Returns:
        The bytes; None where they cannot be measured: no ``/proc``, a module that cannot be pickled.
    """
    name = self_fused_name(runtime) if variant.self_fused else runtime
    with tempfile.TemporaryDirectory(prefix="convbn-memory-") as folder:
        try:
            stored = _stored(variant, Path(folder), form_of(runtime))
            job = _Job(name or runtime, stored, dict(feeds), threads)
            Path(folder, _JOB).write_bytes(pickle.dumps(job))
        except Exception:  # pickling runs the code of a user's classes, which may raise anything
            return None
        return _child(folder)


def _child(folder: str) -> int | None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    command = [sys.executable, "-m", "convbn.bench.measure.memory", folder]
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_SECONDS,
            check=True,
        )
        return int(done.stdout.split()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _stored(variant: Variant, folder: Path, form: Form) -> Variant:
    """The variant with the form that the runtime takes in a file, and no other form."""
    if form == "engine":
        engines = {
            name: replace(file, path=file.path.absolute())
            for name, file in variant.engines.items()
            if isinstance(file, EngineFile)
        }
        return Variant(variant.name, engines=engines)
    if form == "onnx":
        if variant.onnx is None or isinstance(variant.onnx, str | Path):
            return Variant(variant.name, onnx=None if variant.onnx is None else Path(variant.onnx).absolute())
        (folder / _MODEL).write_bytes(variant.onnx.SerializeToString())
        return Variant(variant.name, onnx=folder / _MODEL)
    import torch

    if isinstance(variant.module, torch.export.ExportedProgram):
        torch.export.save(variant.module, folder / _MODULE)
    elif variant.module is not None:
        torch.save(variant.module, folder / _MODULE)
    return Variant(variant.name)


def _main(folder: Path) -> int:
    # Both files were written by the process that started this one, into a folder of its own.
    job: _Job = pickle.loads((folder / _JOB).read_bytes())  # noqa: S301
    try:
        load_library(job.runtime)
        meter = _resident() if device_of(job.runtime) == "cpu" else _device()
        variant = job.variant
        if (folder / _MODULE).exists():
            variant = replace(variant, module=_module(folder / _MODULE))
        with open_session(job.runtime, variant, SessionOptions(threads=job.threads)) as session:
            session.run(job.feeds)
            sys.stdout.write(f"\n{meter()}\n")
    except ConvBNError:
        return 1
    return 0


def _module(path: Path) -> torch.nn.Module | torch.export.ExportedProgram:
    import torch

    try:
        module: torch.nn.Module = torch.load(path, weights_only=False)
    except Exception:  # torch.load has no one error for a file that torch.export.save wrote
        return torch.export.load(path)
    return module


def _resident() -> Callable[[], int]:
    """A meter of the growth of the highest resident memory from now on (Linux)."""
    start = _status("VmRSS")
    # 5 sets the high-water mark back to what is resident now: proc(5).
    Path("/proc/self/clear_refs").write_text("5")
    return lambda: max(0, _status("VmHWM") - start)


def _device() -> Callable[[], int]:
    from convbn.export.engines.run.cuda import CudaDevice

    gpu = CudaDevice()
    start = gpu.free_memory()
    return lambda: max(0, start - gpu.free_memory())


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


if __name__ == "__main__":
    # Run as a script this module is called __main__, and the pickled job names convbn.bench.measure.memory.
    from convbn.bench.measure import memory as _memory

    _run: Any = vars(_memory)["_main"]
    sys.exit(_run(Path(sys.argv[1])))
