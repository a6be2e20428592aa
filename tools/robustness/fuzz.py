"""Three longer searches for a fault: ``make fuzz`` runs each for some minutes.

Broken models by seed; random graphs and modules folded and judged as in the tests, with other seeds; and
coverage-guided bytes.

python tools/robustness/fuzz.py seeds --start 100000 --minutes 5
python tools/robustness/fuzz.py graphs --start 100000 --minutes 5
python tools/robustness/fuzz.py bytes --minutes 5          (needs atheris)
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.extend(str(Path(__file__).resolve().parents[2] / folder) for folder in ("tools", "tests"))

BATCH = 200
"""Seeds between two looks at the clock."""

LONGEST = 1 << 16
"""Bytes: a model of the grammar has a few thousand."""


def main() -> int:
    """Run what was asked for; 1 if something was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("search", choices=("seeds", "graphs", "bytes"))
    parser.add_argument("--start", type=int, default=int(time.time()), help="first seed (default: the clock)")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--corpus", type=Path, help="folder that keeps inputs which reach new code")
    parser.add_argument("--crashes", type=Path, default=Path("build/fuzz"), help="folder for what was found")
    options = parser.parse_args()
    if options.search == "seeds":
        return seeds(options.start, options.minutes)
    if options.search == "graphs":
        from robustness.graph_search import search

        return search(options.start, options.minutes, options.crashes)
    return coverage_guided(options.start, options.minutes, options.corpus, options.crashes)


def seeds(start: int, minutes: float) -> int:
    """Mutants of one seed after the other, until the time is over."""
    from robustness.parallel import run_all

    end, first, verdicts, found = time.monotonic() + minutes * 60, start, Counter[str](), 0
    while time.monotonic() < end:
        for outcome in run_all(range(first, first + BATCH)):
            verdicts[outcome.verdict] += 1
            if not outcome.survived:
                found += 1
                print(outcome, flush=True)
        first += BATCH
        print(f"seeds {start} to {first - 1}: {dict(sorted(verdicts.items()))}", flush=True)
    return 1 if found else 0


def coverage_guided(seed: int, minutes: float, corpus: Path | None, crashes: Path) -> int:
    """Bytes that lead into code not seen yet: read, folded and written in this process.

    libFuzzer ends the process at the first exception that is no :class:`~convbn.errors.ConvBNError`, at ten
    seconds for one input and at 2 GiB; the input then lies in ``crashes``.
    """
    import atheris

    with atheris.instrument_imports(include=["convbn"]):
        import convbn.export.onnx_io.read
        import convbn.fuse.fold
        import convbn.fuse.frontends.onnx.capture
        import convbn.onnx_pass
    from convbn.errors import ConvBNError
    from robustness.mutations import mutant

    crashes.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="fuzz-"))
    kept = corpus or place / "corpus"
    kept.mkdir(parents=True, exist_ok=True)
    for number in range(300):
        grown = mutant(number)
        if not grown.links:
            (kept / f"seed-{number}").write_bytes(grown.files["model.onnx"])
    folder = place / "models"
    folder.mkdir()
    path, out = folder / "model.onnx", folder / "out.onnx"

    def one_input(data: bytes) -> None:
        path.write_bytes(data)
        out.unlink(missing_ok=True)
        try:
            convbn.export.onnx_io.read.load_model(path)
            convbn.onnx_pass.fuse_file(path, out, options=_unverified())
        except ConvBNError:
            if out.exists():
                raise RuntimeError("a file was written although the fold was refused") from None
            return
        convbn.export.onnx_io.read.load_model(out)

    arguments = [
        f"-max_total_time={int(minutes * 60)}",
        f"-max_len={LONGEST}",
        f"-seed={seed % (1 << 31)}",
        "-timeout=10",
        "-rss_limit_mb=2048",
        f"-artifact_prefix={crashes}{os.sep}",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *arguments, str(kept)], one_input, custom_mutator=_mutated)
    atheris.Fuzz()
    return 0


def _unverified() -> object:
    from convbn.fuse.options import FuseOptions

    return FuseOptions(verify=False)


def _mutated(data: bytes, max_size: int, seed: int) -> bytes:
    """Every other time a change that knows what a model is, where the bytes still are one."""
    import atheris
    import onnx

    from robustness.mutations import EDITS

    rng = np.random.default_rng(seed)
    if rng.random() < 0.5:
        try:
            model = onnx.ModelProto.FromString(data)
            EDITS[int(rng.integers(len(EDITS)))](rng, model)
            changed = model.SerializeToString(deterministic=True)
        except Exception:  # bytes that are no model, or one without the part that this edit changes
            changed = b""
        if 0 < len(changed) <= max_size:
            return changed
    mutated: bytes = atheris.Mutate(data, max_size)
    return mutated


if __name__ == "__main__":
    sys.exit(main())
