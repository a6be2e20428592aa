"""Planning for 10,000 models and 12 targets, a dry run: seconds and memory from the plan to every step's key and state.

The models are small files of unlike content, which the system still has in its cache, and no step
is in the store. `python tools/performance/fleet_plan.py [MODELS]`
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

from convbn.pipeline.perform import known
from convbn.pipeline.planning.expand import expand
from convbn.pipeline.planning.hashes import Hashes
from convbn.pipeline.planning.models import models_of
from convbn.pipeline.planning.plan import read_plan
from convbn.pipeline.store import Store

_PLAN = """
output = "out"
[[models]]
path = "models"
[[targets]]
kind = "onnx"
[[targets]]
kind = "onnx"
name = "half"
precision = "fp16"
[[targets]]
kind = "engine"
precision = ["as-is", "fp16"]
compute_capability = ["7.5", "8.0", "8.6", "8.9", "9.0"]
"""


def main(count: int) -> int:
    """Plan, and print what it took."""
    with tempfile.TemporaryDirectory(prefix="convbn-plan-") as name:
        folder = Path(name)
        (folder / "models").mkdir()
        for number in range(count):
            (folder / "models" / f"net{number:05}.onnx").write_bytes(
                b"\x08\x0a" + number.to_bytes(4, "big") * 2000
            )
        (folder / "plan.toml").write_text(_PLAN)
        before = _peak()
        start = time.process_time()
        hashes = Hashes(folder / "hashes.json")
        plan = read_plan(str(folder / "plan.toml"))
        models = models_of(plan, hashes)
        hashed = time.process_time()
        expansion = expand(plan, models)
        expanded = time.process_time()
        store = Store(plan.store, hashes)
        done = sum(known(step, store, hashes) is not None for step in expansion.steps)
        looked = time.process_time()
        print(f"{count:,} models × 12 targets: {len(expansion.steps):,} steps, {done} of them done")
        spans = {"hashing": hashed - start, "steps and keys": expanded - hashed, "store": looked - expanded}
        print(", ".join(f"{name} {seconds:.1f} s" for name, seconds in spans.items()), "of CPU")
        print(f"in all {looked - start:.1f} s, {_peak():.0f} MB at the peak ({before:.0f} MB before)")
    return 0


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
