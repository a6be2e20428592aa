"""A word that is none is answered with the one that was likely meant; ``inspect`` lists what goes where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("fues", "small.onnx"), "fuse"),
        (("fuse", "small.onnx", "-o", "out.onnx", "--forse"), "--force"),
        (("fuse", "small.onnx", "-o", "out.onnx", "--external-data", "alway"), "always"),
        (("fuse", "small.onnx", "-o", "out.onnx", "--only", "batchnorm-into-cnov"), "batchnorm-into-conv"),
        (("bench", "small.onnx", "--runtime", "onnxrutime-cpu"), "onnxruntime-cpu"),
        (("inspect", "smal.onnx"), "small.onnx"),
        (("bench", "small.onnx", "--precision", "fp61"), "fp16"),
        (("bench", "small.onnx", "--fail-if", "ratoi > 1"), "ratio"),
        (("run", "plan.toml"), "onnx"),
    ],
)
def test_the_likely_word_is_named(convbn: Any, small: Path, arguments: tuple[str, ...], meant: str) -> None:
    plan = 'output = "out"\n[[models]]\npath = "small.onnx"\n[[targets]]\nkind = "onx"\n'
    small.with_name("plan.toml").write_text(plan)
    result = convbn(*arguments)
    assert result.returncode in (2, 3, 5)
    assert f"did you mean {meant}?" in result.stderr


def test_what_is_like_nothing_gets_the_whole_list(convbn: Any, small: Path) -> None:
    result = convbn("bench", small, "--runtime", "abacus")
    assert "did you mean" not in result.stderr
    assert "onnxruntime-cpu" in result.stderr


def test_inspect_lists_what_goes_into_what(convbn: Any, small: Path) -> None:
    said = convbn("inspect", small).stdout
    assert any("-> conv (batchnorm-into-conv)" in line for line in said.splitlines())
    assert "--all" not in said
