"""``convbn run``: a plan, its steps, and what is done of them when something changes."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support.plans import PLAN, run, save_network, statuses, whole, write_plan

from convbn.common.schema import problem
from convbn.pipeline.planning.plan import SCHEMA
from convbn.pipeline.planning.template import TEMPLATE


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a plan was run: its first run delivered everything."""
    folder = tmp_path_factory.mktemp("run")
    write_plan(folder, "a", "sub/b")
    run(
        folder,
        "run",
        "plan.toml",
        "--junit",
        "run.xml",
        "--markdown",
        "run.md",
        "--step-summary",
        "summary.md",
    )
    return folder


def test_everything_is_delivered_and_mirrors_the_models(done: Path) -> None:
    assert set(whole(done / "out")) == {"a.onnx", "a.half.onnx", "sub/b.onnx", "sub/b.half.onnx"}


def test_reports(done: Path) -> None:
    result = json.loads((done / "run.json").read_text())
    assert result["counts"]["failed"] == 0
    assert {step["kind"] for step in result["steps"]} == {"fold", "prove", "convert"}
    folded = next(step for step in result["steps"] if step["name"] == "a/fold")
    assert folded["report"]["batchnorm"] == {"before": 1, "after": 0}
    suite = ElementTree.parse(done / "run.xml").getroot()[0]  # noqa: S314  # our own
    assert len(suite) == len(result["steps"])
    for name in ("run.md", "summary.md"):
        assert "sub/b" in (done / name).read_text()


def test_a_second_run_does_nothing(done: Path) -> None:
    before = whole(done / "out")
    run(done, "run", "plan.toml")
    assert set(statuses(done).values()) == {"cached"}
    assert whole(done / "out") == before
    _, said, _ = run(done, "run", "plan.toml", "--list")
    assert "0 of 6 steps would run, 6 are cached" in said


def test_the_list_is_as_wide_as_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "one-of-a-long-name" * 3
    write_plan(tmp_path, "a", name)
    monkeypatch.setenv("COLUMNS", "60")
    _, said, _ = run(tmp_path, "run", "plan.toml", "--list")
    lines = said.splitlines()
    assert max(map(len, lines)) <= 60
    assert lines.count("a/fold".ljust(30) + "  new: the last run had no") == 1
    assert f"{name}/fold" in "".join(lines)


def test_a_changed_model_redoes_only_its_own(tmp_path: Path) -> None:
    write_plan(tmp_path, "a", "b")
    run(tmp_path, "run", "plan.toml")
    before = whole(tmp_path / "out")
    save_network(tmp_path / "models" / "a.onnx", seed=9)
    _, said, _ = run(tmp_path, "run", "plan.toml", "--list")
    assert "a/fold          changed: the model, or how it is read" in said
    run(tmp_path, "run", "plan.toml")
    assert {name for name, status in statuses(tmp_path).items() if status == "done"} == {
        "a/fold",
        "a/prove",
        "a/half/convert",
    }
    after = whole(tmp_path / "out")
    assert {name for name in after if after[name] != before[name]} == {"a.onnx", "a.half.onnx"}


def test_a_plan_that_was_edited_redoes_only_what_it_changes(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, "a", "b")
    run(tmp_path, "run", "plan.toml")
    plan.write_text(PLAN.replace('precision = "fp16"', 'precision = "bf16"'))
    _, said, _ = run(tmp_path, "run", "plan.toml", "--list")
    assert "a/half/convert  changed: what the plan says of half" in said
    run(tmp_path, "run", "plan.toml")
    redone = {name for name, status in statuses(tmp_path).items() if status == "done"}
    assert redone == {"a/half/convert", "b/half/convert"}
    plan.write_text(PLAN + "[fold]\nskip = ['conv']\n")
    _, said, _ = run(tmp_path, "run", "plan.toml", "--list")
    assert said.count("changed: what the plan says of fold") == 6


def test_external_data_is_part_of_a_model(tmp_path: Path) -> None:
    import onnx

    write_plan(tmp_path, "a")
    path = tmp_path / "models" / "a.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="a.bin", size_threshold=0)
    run(tmp_path, "run", "plan.toml")
    data = bytearray((tmp_path / "models" / "a.bin").read_bytes())
    data[4] ^= 1
    (tmp_path / "models" / "a.bin").write_bytes(data)
    _, said, _ = run(tmp_path, "run", "plan.toml", "--list")
    assert "a/fold          changed: the model" in said


def test_a_bad_file_costs_only_its_own(tmp_path: Path) -> None:
    write_plan(tmp_path, "a")
    (tmp_path / "models" / "bad.onnx").write_bytes(b"no model")
    _, said, _ = run(tmp_path, "run", "plan.toml", code=3)
    assert "bad/fold:" in said
    found = statuses(tmp_path)
    assert found["bad/fold"] == "failed"
    assert found["bad/prove"] == "cancelled"
    assert found["a/half/convert"] == "done"
    assert set(whole(tmp_path / "out")) == {"a.onnx", "a.half.onnx"}


def test_ctrl_c_before_there_is_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """While models are looked for and hashed: one line, and nothing is there that was not before."""
    from convbn.cli import main
    from convbn.pipeline.planning.hashes import Hashes

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    plan = write_plan(tmp_path, "a")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(Hashes, "prepare", interrupted)
    assert main(["run", str(plan)]) == 130
    assert capsys.readouterr().err == "convbn: interrupted\n"
    assert sorted(tmp_path.rglob("*")) == before


def test_no_file_of_somebody_else_is_replaced(tmp_path: Path) -> None:
    write_plan(tmp_path, "a")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.onnx").write_bytes(b"mine")
    run(tmp_path, "run", "plan.toml", code=5)
    assert (tmp_path / "out" / "a.onnx").read_bytes() == b"mine"
    run(tmp_path, "run", "plan.toml", "--force")
    (tmp_path / "out" / "a.onnx").write_bytes(b"edited since")
    run(tmp_path, "run", "plan.toml", code=5)
    assert (tmp_path / "out" / "a.onnx").read_bytes() == b"edited since"


def test_what_was_delivered_and_is_gone_is_brought_again(done: Path) -> None:
    (done / "out" / "a.onnx").unlink()
    run(done, "run", "plan.toml")
    assert (done / "out" / "a.onnx").exists()
    assert set(statuses(done).values()) == {"cached"}


def test_init_writes_a_plan_by_the_schema(tmp_path: Path) -> None:
    run(tmp_path, "run", "--init")
    text = (tmp_path / "convbn.toml").read_text()
    assert text == TEMPLATE
    assert problem(tomllib.loads(text), SCHEMA) is None
    run(tmp_path, "run", "--init", code=5)


def test_every_key_of_the_schema_stands_in_the_template() -> None:
    """Commented or not; and what is commented is right as well."""
    given = tomllib.loads("\n".join(map(_uncommented, TEMPLATE.splitlines())))
    assert problem(given, SCHEMA) is None
    schema = json.loads(SCHEMA.read_text())
    assert set(given) == set(schema["properties"])
    for key, part in schema["properties"].items():
        part = part.get("items", part)
        if "properties" in part:
            tables = given[key] if isinstance(given[key], list) else [given[key]]
            missing = set(part["properties"]) - {name for table in tables for name in table}
            assert missing <= {"only", "skip", "models", "gpus", "accelerator", "resources"}, (key, missing)


def _uncommented(line: str) -> str:
    try:
        tomllib.loads(line[2:])
    except tomllib.TOMLDecodeError:
        return line
    return line[2:] if line.startswith("# ") else line


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("output = 'out'\n", "models is missing"),
        ("output = 'out'\n[[model]]\npath = 'x'\n", "line 2: model is not known; did you mean models?"),
        (PLAN + "[runs]\nworkers = 2\n", "line 13: runs is not known; did you mean run?"),
        (PLAN + "[run]\nworkers = 0\n", "line 14: run.workers: 0 is less than the minimum of 1"),
        (
            PLAN.replace('kind = "onnx"\nname', 'knd = "onnx"\nname'),
            "line 8: targets[1].knd is not known; did you mean kind?",
        ),
        (
            PLAN.replace("precision", "precison"),
            "line 10: targets[1].precison is not known; did you mean precision?",
        ),
        (
            PLAN.replace('"fp16"', '[\n  "fp16",\n  16]'),
            "line 10: targets[1].precision[1]: 16 is not of type",
        ),
        (PLAN.replace("models/**", "nothing/**"), "no file is nothing/**/*.onnx"),
        (PLAN.replace("fp16", "fp17"), "half: argument --precision: invalid choice"),
        (PLAN.replace('"half"', '"onnx"'), "two parts are called onnx"),
        (PLAN + "[[targets]]\nkind = 'pt2'\n", "which cannot become a PyTorch program"),
        (PLAN + "[[targets]]\nkind = 'engine'\nprecision = 'int8'\n", "a has no calibration data"),
        (PLAN + "[[targets]]\nkind = 'onnx'\nname = 'x'\nbackend = 'auto'\n", "are for engines"),
        (PLAN + "[[benches]]\noptions = ['--nothing']\n", "bench: unrecognized arguments: --nothing"),
        ("[[", "it is not TOML"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_anything_starts(
    tmp_path: Path, text: str, cause: str
) -> None:
    write_plan(tmp_path, "a", text=text)
    _, _, said = run(tmp_path, "run", "plan.toml", code=3)
    assert cause in said
    assert said.startswith("convbn: ")
    assert not (tmp_path / "out").exists()


def test_names_with_spaces_and_letters_links_and_results_among_the_models(tmp_path: Path) -> None:
    """A second run does not take the first one's results for models; a link is a model of its own name."""
    save_network(tmp_path / "models" / "größe 1" / "ネット [v2].onnx")
    (tmp_path / "models" / "link.onnx").symlink_to(Path("größe 1") / "ネット [v2].onnx")
    (tmp_path / "models" / "again").symlink_to(tmp_path / "models")
    text = 'output = "models/out"\n[[models]]\npath = "models"\n[[targets]]\nkind = "onnx"\n'
    (tmp_path / "plan.toml").write_text(text + '[reports]\njson = "run.json"\n')
    for status in ("done", "cached"):
        run(tmp_path, "run", "plan.toml")
        found = statuses(tmp_path)
        assert {name.rpartition("/")[0] for name in found} == {"größe 1/ネット [v2]", "link"}
        assert set(found.values()) == {status}
    assert set(whole(tmp_path / "models" / "out")) == {"größe 1/ネット [v2].onnx", "link.onnx"}


@pytest.mark.parametrize(
    ("models", "cause"),
    [
        (["a.onnx", "./a.onnx"], "two models are called a: "),
        (["one/a.onnx", "two/a.onnx"], "two models are called a: "),
    ],
)
def test_models_of_one_name_are_refused(tmp_path: Path, models: list[str], cause: str) -> None:
    for name in models:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_network(tmp_path / name)
    listed = ", ".join(f'"{name}"' for name in models)
    (tmp_path / "plan.toml").write_text(f'output = "out"\n[[models]]\npath = [{listed}]\n')
    _, _, said = run(tmp_path, "run", "plan.toml", code=3)
    assert cause in said
    assert "give one of them a name" in said
