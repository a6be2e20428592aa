"""What ``convbn bench`` measures, as a user asks for it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest

ROOT = Path(__file__).parents[2]
QUICK = ("--budget", "0.2", "--blocks", "5", "--no-memory")


@pytest.mark.slow
def test_each_model_at_each_condition_is_a_case(convbn: Any, small: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    again = shutil.copy(small, tmp_path / "other" / small.name)
    result = convbn(
        *("bench", "--each", small, again, "--runtime", "onnxruntime-cpu", "--json", "-", *QUICK),
        *("--batch", "2,3", "--precision", "fp32,fp16", "--threads", "1", "--allow-not-measured"),
    )
    assert result.returncode == 0, result.stderr
    value = json.loads(result.stdout)
    schema = json.loads((ROOT / "bench" / "bench-result.schema.json").read_text())
    jsonschema.validate(value, schema)
    assert [(c["name"], c["batch"], c["precision"], c["threads"]) for c in value["cases"]] == [
        (name, batch, precision, 1)
        for name in (str(small), str(again))  # one file name twice: told apart by their paths
        for batch in (2, 3)
        for precision in ("fp32", "fp16")
    ]
    states = {(c["batch"], row["status"]) for c in value["cases"] for row in c["rows"]}
    assert states == {(2, "measured"), (3, "not measured")}
    assert "fixed to 2" in value["cases"][2]["rows"][0]["reason"]
    assert len(value["cases"][0]["rows"][0]["block_seconds"]) == 5


def test_the_file_is_hashed_and_its_memory_measured(convbn: Any, small: Path, tmp_path: Path) -> None:
    result = convbn(
        *(
            "bench",
            small,
            "--runtime",
            "onnxruntime-cpu",
            "--threads",
            "1",
            "--budget",
            "0.2",
            "--json",
            "r.json",
        )
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # no progress where nobody watches
    case = json.loads((tmp_path / "r.json").read_text())["cases"][0]
    assert case["name"] == "small"
    assert case["sides"][0]["sha256"] == hashlib.sha256(small.read_bytes()).hexdigest()
    assert case["sides"][0]["bytes"] == small.stat().st_size
    assert case["fold"]["input"]["sha256"] == case["sides"][0]["sha256"]
    assert all(row["peak_memory_bytes"] > 0 and row["load_seconds"] > 0 for row in case["rows"])


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("--batch", "one"), 2, "--batch"),
        (("--batch", "0"), 2, "batch"),
        (("--threads", "1,x"), 2, "--threads"),
        (("--precision", "fp12"), 2, "fp12"),
        (("--runtime", "onnxruntime-cpu@half"), 2, "levels"),
        (("--blocks", "0"), 2, "blocks"),
        (("--total-budget", "-1"), 2, "total"),
        (("--batch", "7"), 4, "fixed to 2"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    convbn: Any, small: Path, arguments: tuple[str, ...], code: int, word: str
) -> None:
    result = convbn("bench", small, *arguments)
    assert result.returncode == code, result.stderr
    assert word in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
