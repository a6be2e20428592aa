"""``convbn fuse`` and ``inspect`` as a user runs them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jsonschema
import onnx
import pytest
from support.graphs import (
    batchnorm,
    batchnorm_parameters,
    model,
    operators,
    random,
    relative_error,
    run,
)


def test_fuse_writes_an_equal_model(convbn: Any, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    result = convbn("fuse", small, "-o", out)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    before, after = (f"{path.stat().st_size / 1000:.1f} kB" for path in (small, out))
    told = [line.split() for line in result.stdout.splitlines()]
    assert told[told.index(["before", "after"]) :][:7] == [
        ["before", "after"],
        ["BatchNorm", "2", "1"],
        ["nodes", "4", "3"],
        ["BatchNormalization", "2", "1"],
        ["Conv", "1", "1"],
        ["Relu", "1", "1"],
        ["file", *before.split(), *after.split()],
    ]
    assert "1 stays: producer-not-foldable" in result.stdout
    assert "outputs equal" in result.stdout
    assert "\x1b" not in result.stdout
    folded = onnx.load(out)
    assert operators(folded) == ["Conv", "Relu", "BatchNormalization"]
    feeds = {"x": random(2, 3, 8, 8, seed=7)}
    assert relative_error(run(onnx.load(small), feeds), run(folded, feeds)) < 1e-5


def test_json_on_stdout_is_all_there_is(convbn: Any, small: Path, fuse_schema: Any) -> None:
    result = convbn("fuse", small, "-o", "out.onnx", "--json", "-")
    report = json.loads(result.stdout)
    jsonschema.validate(report, fuse_schema)
    assert report["input"]["sha256"] == hashlib.sha256(small.read_bytes()).hexdigest()
    assert report["batchnorm"] == {"before": 2, "after": 1}
    names = [entry["name"] for entry in report["folded"] + report["kept"]]
    assert sorted(names) == ["first", "second"]
    assert report["verify"]["status"] == "equal"
    assert report["operators"]["BatchNormalization"] == {"before": 2, "after": 1}
    assert report["nodes"] == {"before": 4, "after": 3}
    sizes = [(small.parent / name).stat().st_size for name in ("small.onnx", "out.onnx")]
    assert list(report["size"].values()) == sizes


def test_the_size_is_that_of_the_file_before_and_with_its_weights(
    convbn: Any, small: Path, tmp_path: Path
) -> None:
    onnx.save(onnx.load(small), tmp_path / "apart.onnx", save_as_external_data=True, size_threshold=0)
    (data,) = (path for path in tmp_path.iterdir() if path.suffix not in (".onnx", ".json"))
    assert data.stat().st_size > 500
    before = sum(path.stat().st_size for path in (data, tmp_path / "apart.onnx"))
    result = convbn("fuse", "apart.onnx", "-o", "apart.onnx", "--force", "--json", "-")
    assert json.loads(result.stdout)["size"] == {
        "before": before,
        "after": (tmp_path / "apart.onnx").stat().st_size
        + sum(path.stat().st_size for path in tmp_path.glob("apart.*.data")),
    }


def test_a_file_is_parsed_once(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size and what lies beside it are known by then; to look again costs as much as the whole fold."""
    from convbn.cli import main
    from convbn.export.onnx_io import read

    parsed: list[object] = []
    parse = read._parsed
    monkeypatch.setattr(read, "_parsed", lambda *given: parsed.append(given) or parse(*given))
    assert main(["fuse", str(small), "-o", str(tmp_path / "out.onnx"), "--no-verify", "--quiet"]) == 0
    assert len(parsed) == 1


def test_inspect_says_the_same_and_writes_nothing(convbn: Any, small: Path, fuse_schema: Any) -> None:
    before = sorted(path.name for path in small.parent.iterdir())
    result = convbn("inspect", small, "--json", "-")
    assert result.returncode == 0
    assert sorted(path.name for path in small.parent.iterdir()) == before
    report = json.loads(result.stdout)
    jsonschema.validate(report, fuse_schema)
    fused = json.loads(convbn("fuse", small, "-o", "out.onnx", "--json", "-").stdout)
    for key in ("batchnorm", "nodes", "folded", "kept", "merged"):
        assert report[key] == fused[key]


def test_same_bytes_twice(convbn: Any, small: Path, tmp_path: Path) -> None:
    for seed, name in (("0", "a.onnx"), ("1", "b.onnx")):
        assert convbn("fuse", small, "-o", name, PYTHONHASHSEED=seed).returncode == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_existing_file_needs_force(convbn: Any, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_bytes(b"precious")
    result = convbn("fuse", small, "-o", out)
    assert result.returncode == 5
    assert out.read_bytes() == b"precious"
    assert "--force" in result.stderr
    assert convbn("fuse", small, "-o", out, "--force").returncode == 0
    assert out.read_bytes() != b"precious"


def test_proof_of_nothing_writes_nothing(convbn: Any, constant: Path, tmp_path: Path) -> None:
    result = convbn("fuse", constant, "-o", "out.onnx")
    assert result.returncode == 1
    assert "equality was not shown" in result.stderr
    assert not (tmp_path / "out.onnx").exists()
    assert convbn("fuse", constant, "-o", "out.onnx", "--no-verify").returncode == 0


def test_kind_is_told_by_content(convbn: Any, small: Path, tmp_path: Path) -> None:
    disguised = tmp_path / "model.pth"
    small.rename(disguised)
    assert convbn("inspect", disguised).returncode == 0


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", 3), (b"not a model at all", 3), (b"\x08\x07" + bytes(range(256)), 3), (None, 5)],
)
def test_bad_input_is_one_line(convbn: Any, tmp_path: Path, content: bytes | None, code: int) -> None:
    path = tmp_path / "bad.onnx"
    if content is not None:
        path.write_bytes(content)
    for verb in (("inspect", path), ("fuse", path, "-o", "out.onnx")):
        result = convbn(*verb)
        assert result.returncode == code
        assert len(result.stderr.splitlines()) == 1
        assert "bad.onnx" in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_cut_file(convbn: Any, small: Path, tmp_path: Path) -> None:
    data = small.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.99):
        (tmp_path / "cut.onnx").write_bytes(data[: int(len(data) * share)])
        result = convbn("fuse", "cut.onnx", "-o", "out.onnx")
        assert result.returncode in (1, 3), result.stdout
        assert len(result.stderr.splitlines()) == 1
        assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("fuse",),
        ("fuse", "small.onnx"),
        ("nonsense",),
        ("fuse", "small.onnx", "-o", "out.txt"),
        ("fuse", "small.onnx", "-o", "out.pt2"),
        ("fuse", "small.onnx", "-o", "out.onnx", "--skip", "nonsense"),
        ("fuse", "small.onnx", "-o", "out.onnx", "--arch", "timm:resnet18"),
        ("fuse", "small.onnx", "-o", "out.onnx", "--input-shape", "z:1x3x8x8"),
        ("fuse", "small.onnx", "-o", "out.onnx", "--input-shape", "x:1xthree"),
        ("inspect", "small.onnx", "--only", "nonsense"),
        ("bench", "small.onnx", "--runtime", "nonsense"),
        ("export", "small.onnx", "-o", "out.onnx", "--shapes", "x=1x3x8x8"),
        ("export", "small.onnx", "-o", "out.onnx", "--no-fuse", "--json", "report.json"),
    ],
)
def test_usage_errors(convbn: Any, small: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = convbn(*arguments)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.onnx"]


def test_debug_shows_where(convbn: Any) -> None:
    assert "Traceback" in convbn("inspect", "missing.onnx", "--debug").stderr


def test_quiet_says_nothing(convbn: Any, small: Path) -> None:
    result = convbn("fuse", small, "-o", "out.onnx", "--quiet")
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)


def test_hostile_names_stay_text(convbn: Any, small: Path) -> None:
    built = onnx.load(small)
    built.graph.node[3].name = "\x1b[31mred\u202e\n<script>"
    onnx.save(built, small)
    result = convbn("inspect", small)
    assert "\\u001b[31mred\\u202e\\u000a<script>" in result.stdout
    assert "\x1b" not in result.stdout


def test_version_and_help(convbn: Any) -> None:
    assert convbn("--version").stdout.startswith("convbn ")
    text = convbn("--help").stdout
    for verb in ("inspect", "fuse", "verify", "export", "bench", "doctor"):
        assert verb in text
        assert len(convbn(verb, "--help").stdout.splitlines()) < 80


@pytest.mark.parametrize("verb", ["inspect", "fuse"])
def test_the_shape_of_an_input_counts_for_what_folds(convbn: Any, tmp_path: Path, verb: str) -> None:
    """The model does not state the rank of its input; over rows the BatchNorm's axis is the product's."""
    path, out = tmp_path / "ranks.onnx", tmp_path / "out.onnx"
    nodes = [onnx.helper.make_node("MatMul", ["x", "m"], ["c"], name="m"), batchnorm("c", "y")]
    built = model(nodes, {"x": [5, 4]}, ["y"], {"m": random(4, 6), **batchnorm_parameters(6)})
    built.graph.input[0].type.tensor_type.ClearField("shape")
    built.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(built, path)
    typed = [] if verb == "inspect" else ["-o", out]
    told = convbn("inspect", path)
    assert "example inputs, --input-shape or stored shapes would settle it" in " ".join(told.stdout.split())
    result = convbn(verb, path, "--input-shape", "x:5x4", *typed)
    assert result.returncode == 0, result.stderr
    assert ("1 of 1 would be folded" if verb == "inspect" else "1 of 1 folded") in result.stdout
    assert verb == "inspect" or "BatchNormalization" not in operators(onnx.load(out))
