"""The way of a model through the functions of convbn is measured as docs/architecture.md says."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import onnx
import pytest
from structure.data_path import ROOT, Walk, measured, page, returns


@pytest.mark.parametrize(
    ("steps", "count"),
    [([], 0), (["a", "a", "b"], 0), (["a", "b", "a"], 1), (["a", "b", "b", "a", "c", "a", "b"], 3)],
)
def test_returns(steps: list[str], count: int) -> None:
    assert returns(steps) == count


def test_what_gets_the_model_is_seen(tmp_path: Path) -> None:
    """Of a product of two modules: what is given the model, however it is wrapped, and nothing else."""
    (tmp_path / "fuse").mkdir()
    texts = {
        "first": "def begin(model, other):\n    other.reads([model])\n    other.counts(3)\n    return ends(path='m')\n"
        "def ends(*, path):\n    return [no for no in (1, 2)]\n",
        "second": "def reads(models):\n    for model in models:\n        walks(model)\n        walks(model)\n"
        "def walks(model): pass\ndef counts(number): pass\n",
    }
    loaded = {}
    for name, text in texts.items():
        path = tmp_path / "fuse" / f"{name}.py"
        path.write_text(text)
        spec = spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        loaded[name] = module_from_spec(spec)
        spec.loader.exec_module(loaded[name])
    walk = Walk(tmp_path.resolve(), "m")
    sys.setprofile(walk.profile)
    try:
        loaded["first"].begin(onnx.ModelProto(), loaded["second"])
    finally:
        sys.setprofile(None)
    assert {file: list(names) for file, names in walk.functions.items()} == {
        "fuse/first.py": ["begin", "ends"],
        "fuse/second.py": ["reads", "walks"],
    }
    assert walk.steps == ["fuse/first.py", "fuse/second.py", "fuse/second.py", "fuse/first.py"]


def test_a_file_goes_through_all_rooms() -> None:
    found = measured("onnx", ROOT)
    files = list(found["functions"])
    assert files[0] == "src/convbn/api.py"
    assert {"fuse/plan/planner.py", "bench/equivalence/compare.py"} <= set(files)
    assert "make_plan" in found["functions"]["fuse/plan/planner.py"]
    assert (
        f"in {len(files)} files and returns to a file that it had left {returns(found['steps'])} times"
        in page({"onnx": found})
    )
