"""docs/architecture.md, "I want to add a runtime": onnx's reference evaluator, in one file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import onnx
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, random

from convbn.bench.models.errors import SessionError
from convbn.bench.models.inputs import Array, Feeds
from convbn.bench.runtimes import registry
from convbn.bench.runtimes.base import Levels, Prepared, Runtime, SessionOptions, Variant, onnx_source
from convbn.cli import main
from convbn.errors import UsageError


# [session]
# The runtime: a session, how to open one, and what reports say of it.
class ReferenceSession:
    """A model in onnx's own interpreter, which is written in NumPy and fuses nothing."""

    compute_dtype = None

    def __init__(self, evaluator: Any, name: str) -> None:
        self._evaluator = evaluator
        self._name = name
        self.output_names = tuple(evaluator.output_names)

    def run(self, feeds: Feeds) -> list[Array]:
        try:
            return list(self._evaluator.run(None, dict(feeds)))
        except Exception as error:
            raise SessionError(
                f"the reference evaluator cannot run it ({error})", source=self._name
            ) from error

    def prepare(self, feeds: Feeds) -> Prepared:
        self.run(feeds)
        return Prepared(lambda: self._evaluator.run(None, dict(feeds)))

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


# [/session]
def load() -> Any:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator


# [runtime]
def open_session(model: Variant, options: SessionOptions, levels: Levels) -> ReferenceSession:
    source = onnx_source(model, "The reference evaluator")
    return ReferenceSession(load()(source), model.name)


REFERENCE = Runtime(
    "onnx-reference",
    "cpu",
    "onnx",
    "the ONNX graph in onnx's reference evaluator",
    load=load,
    open=open_session,
    packages=("onnx",),
)


# [/runtime]
# The example ends here. What follows shows that it works.
@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    registry.register(REFERENCE)
    yield
    del registry.RUNTIMES["onnx-reference"]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y")]
    built = model(nodes, {"x": [1, 2, 6, 6]}, ["y"], {"w": random(3, 2, 3, 3), **batchnorm_parameters(3)})
    onnx.save(built, "model.onnx")
    return "model.onnx"


def test_it_is_measured_with_equality_and_an_a_a_control(path: str) -> None:
    measuring = ("--runtime", "onnx-reference", "--budget", "0.2", "--quiet", "--json", "result.json")
    assert main(["bench", path, *measuring]) == 0
    result = json.loads(Path("result.json").read_text())
    (case,) = result["cases"]
    original, folded = case["rows"]
    assert (original["side"], original["status"], original["verdict"]) == ("original", "measured", "baseline")
    assert (folded["side"], folded["equality"]["status"]) == ("folded", "equal")
    assert folded["ratio"]["median"] > 0
    (runtime,) = case["runtimes"]
    assert runtime["runtime"] == "onnx-reference"
    assert runtime["control"]["pairs"] > 0
    assert result["environment"]["libraries"]["onnx"] == onnx.__version__


def test_the_other_verbs_know_it(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", path, path, "--runtime", "onnx-reference"]) == 0
    assert main(["doctor"]) == 0
    assert "onnx-reference" in capsys.readouterr().out


def test_a_name_is_registered_once() -> None:
    with pytest.raises(UsageError, match="a runtime 'onnx-reference' already"):
        registry.register(REFERENCE)
