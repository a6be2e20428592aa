"""The way of a model through the functions of convbn is measured as docs/architecture.md says."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import onnx
import pytest
from structure.data_path import ROOT, Walk, measured, page, parts, returns


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
    assert walk.steps == [
        ("fuse/first.py", "begin"),
        ("fuse/second.py", "reads"),
        ("fuse/second.py", "walks"),
        ("fuse/first.py", "ends"),
    ]


def test_a_file_goes_through_all_rooms() -> None:
    steps = measured("onnx", ROOT)
    assert steps[0] == ("src/convbn/api.py", "fuse")
    assert ("fuse/plan/planner.py", "make_plan") in parts(steps)["The fold"]
    assert ("bench/equivalence/compare.py", "compare") in parts(steps)["The proof"]
    files = [file for file, _ in parts(steps)["The fold"]]
    assert f"in {len(set(files))} files, {returns(files)} returns." in page({"onnx": steps})
