"""One broken input, one process: what convbn made of it, under limits of time and memory.

A server that has everything imported forks a child a mutant, so that hundreds are run in a minute and none can
harm the next.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustness.mutations import Mutant

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LIMIT_BYTES", "LIMIT_S", "Outcome", "agree", "run_mutant", "warm"]

LIMIT_S = 10
"""Seconds of CPU for each command; a benchmark, which spends them on purpose, gets more."""

BENCH_LIMIT_S = 60

LIMIT_BYTES = 1 << 30
"""Address space that a command may take beyond what the imported libraries map."""

BOUND = {"float32": 2e-4, "float16": 4e-2, "float64": 1e-6}

NEARLY = 2.0**-10
"""Of the largest number: sums of products that are larger may overflow."""

TYPED = range(1, 6)
"""Exit codes of errors that convbn answers for."""


@dataclass(frozen=True)
class Outcome:
    """What happened.

    Attributes:
        seed, mutation: of the mutant.
        verdict: ``equal``, ``refused``, or a fault: ``wrong``, ``crashed``, ``hung``, ``half-written``, ``silent``.
        detail: the error's line, or what was wrong.
        seconds: wall time.
    """

    seed: int
    mutation: str
    verdict: str
    detail: str
    seconds: float

    @property
    def survived(self) -> bool:
        """Whether this is an answer that a user may get."""
        return self.verdict in ("equal", "refused")


def warm() -> None:
    """Import everything that the children need, so that each starts with it."""
    import onnx_graphsurgeon  # noqa: F401  # imported for the children
    import onnxruntime

    from convbn.cli import main

    with tempfile.TemporaryDirectory() as folder, _silenced(Path(folder) / "said"):
        main(["fuse", str(Path(folder) / "absent.onnx"), "-o", str(Path(folder) / "out.onnx")])
    onnxruntime.set_default_logger_severity(4)


def run_mutant(mutant: Mutant, commands: tuple[str, ...] = ("inspect", "fuse")) -> Outcome:
    """Give a mutant to convbn; the first fault ends it."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutant-") as place:
        folder = Path(place) / "models"
        folder.mkdir()
        model = mutant.lay(folder)
        before = _listing(folder)
        verdict, detail = "refused", ""
        for command in commands:
            out = folder / "out.onnx"
            verdict, detail = _command(command, model, out, Path(place) / "said")
            if verdict == "equal" and command in ("fuse", "export"):
                verdict, detail = _equal(model, out)
                for path in (out, *folder.glob("*.data")):
                    path.unlink(missing_ok=True)
            left = [name for name in _listing(folder) if name not in before]
            if left or [name for name in before if name not in _listing(folder)]:
                verdict, detail = "half-written", f"{command} left {left}"
            if verdict not in ("equal", "refused"):
                break
    return Outcome(mutant.seed, mutant.mutation, verdict, detail, time.perf_counter() - start)


def _listing(folder: Path) -> list[str]:
    return sorted(f"{p.name} {p.lstat().st_size}" for p in folder.rglob("*"))


def _command(command: str, model: Path, out: Path, said: Path) -> tuple[str, str]:
    """Run a command in a child; whether it succeeded, refused in one typed line, or neither."""
    arguments = [command, str(model)]
    if command in ("fuse", "export"):
        arguments += ["-o", str(out)]
    if command == "verify":
        arguments.append(str(model))
    if command == "bench":
        arguments += ["--budget", "0.1", "--runtime", "onnxruntime-cpu@off"]

    def work() -> int:
        from convbn.cli import main

        with _silenced(said):
            return main(arguments)

    status = _in_child(work, BENCH_LIMIT_S if command == "bench" else LIMIT_S)
    text = said.read_text(errors="replace") if said.exists() else ""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number in (signal.SIGXCPU, signal.SIGALRM, signal.SIGKILL):
            return "hung", f"{command} ran longer than {LIMIT_S} s"
        return "crashed", f"{command} died of {signal.Signals(number).name}: {_last(text)}"
    code = os.WEXITSTATUS(status)
    if "Traceback" in text or code not in (0, *TYPED):
        return "crashed", f"{command} exited with {code}: {_last(text)}"
    if code == 0:
        return "equal", ""
    line = _last(text)
    if command == "verify" and code == 1:
        return "refused", line  # that is its answer, and it stands on stdout
    if not line.startswith("convbn: ") or not any(name in text for name in ("model.onnx", "input '")):
        return "silent", f"{command} exited with {code} and said {line!r}"
    return "refused", line


def agree(expected: NDArray[Any], given: NDArray[Any]) -> bool:
    """Whether an output is the original's, but for rounding.

    A little below the largest number, the order of a sum decides what becomes Inf, and NaN behind it: where only one is
    finite, it has to be near there.
    """
    import numpy as np

    if expected.shape != given.shape or expected.dtype != given.dtype:
        return False
    if expected.dtype.kind != "f":
        return True
    a, b = expected.astype("f8"), given.astype("f8")
    finite = np.isfinite(a) & np.isfinite(b)
    smaller = np.fmin(np.abs(a), np.abs(b))[~finite]
    if (smaller <= NEARLY * float(np.finfo(expected.dtype).max)).any():
        return False
    scale = np.abs(a[finite]).max(initial=0.0) or 1.0
    return bool(
        np.abs(a[finite] - b[finite]).max(initial=0.0) <= scale * BOUND.get(expected.dtype.name, 2e-4)
    )


def _equal(model: Path, out: Path) -> tuple[str, str]:
    """Compare what was written with the input, by onnxruntime as it is and not by convbn's own proof."""
    import numpy as np

    def work() -> int:
        import onnx
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            first = ort.InferenceSession(str(model), options)
        except (
            Exception
        ):  # onnxruntime's own, of many classes; what it does not take must not have been folded
            before, after = (list(onnx.load(p, load_external_data=False).graph.node) for p in (model, out))
            return 0 if before == after else 8
        sessions = [first, ort.InferenceSession(str(out), options)]
        rng = np.random.default_rng(11)
        feeds = {}
        for value in sessions[0].get_inputs():
            shape = [d if isinstance(d, int) else 2 for d in value.shape]
            kind = {"tensor(float16)": "f2", "tensor(double)": "f8"}.get(value.type, "f4")
            feeds[value.name] = rng.standard_normal(shape).astype(kind)
        expected, given = ([np.asarray(o) for o in s.run(None, feeds)] for s in sessions)
        return 0 if all(agree(e, g) for e, g in zip(expected, given, strict=True)) else 8

    status = _in_child(work)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
        return "equal", ""
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 8:
        return "wrong", "the output differs from the input's"
    return "wrong", f"what was written cannot be compared (status {status})"


def _in_child(work: Callable[[], int], seconds: int = LIMIT_S) -> int:
    """Run in a fork under the limits; the wait status."""
    child = os.fork()
    if child == 0:
        code = 71
        try:
            resource.setrlimit(resource.RLIMIT_AS, (_mapped() + LIMIT_BYTES,) * 2)
            used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
            resource.setrlimit(resource.RLIMIT_CPU, (int(used) + seconds + 1, int(used) + seconds + 5))
            signal.alarm(8 * seconds)  # for one that waits instead of working
            code = work()
        except BaseException:  # a child must end here, whatever happened
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def _mapped() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


class _silenced:  # noqa: N801  # used as a statement
    """Sends both streams of the process to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._kept = [os.dup(1), os.dup(2)]
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(file, stream)
        os.close(file)

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, kept in zip((1, 2), self._kept, strict=True):
            os.dup2(kept, stream)
            os.close(kept)


def _last(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:300]
