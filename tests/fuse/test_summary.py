"""What the report of a fold says in words: the answer, what went where, what stays and why, how it was proven."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper
from support.graphs import batchnorm, batchnorm_parameters, model, random

import convbn
from convbn.common.document.model import Banner, Items, Picture, Section, Table, Text, plain
from convbn.fuse.fold import fold
from convbn.fuse.summary import (
    equality_marks,
    fates,
    fold_banner,
    fold_blocks,
    folded_mark,
    folds_listed,
    normalisations_sentence,
    worst_error,
    worst_output,
)


def report_of(*, kept: bool = False, merged: bool = False, norms: int = 1) -> dict[str, Any]:
    """The real report of a small network; a Tanh in front of its last BatchNorm keeps that."""
    nodes, last = [], "x"
    stored: dict[str, np.ndarray] = {"w": random(4, 4, 1, 1)}
    for index in range(norms):
        prefix = f"bn{index}"
        nodes += [
            helper.make_node("Conv", [last, "w"], [f"c{index}"], name=f"conv{index}"),
            batchnorm(f"c{index}", f"n{index}", prefix=prefix),
            helper.make_node("Tanh", [f"n{index}"], [f"t{index}"], name=f"tanh{index}"),
        ]
        stored |= batchnorm_parameters(4, prefix=prefix)
        last = f"t{index}"
    if merged:
        nodes.append(helper.make_node("Conv", [last, "w"], ["d"], name="side"))
        nodes.append(helper.make_node("Conv", [last, "w"], ["e"], name="other"))
        nodes.append(helper.make_node("Add", ["d", "e"], ["a"], name="sum"))
        last = "a"
    if kept:
        nodes += [helper.make_node("Tanh", [last], ["h"], name="bent"), batchnorm("h", "y", prefix="stays")]
        stored |= batchnorm_parameters(4, prefix="stays")
    else:
        nodes.append(helper.make_node("Identity", [last], ["y"], name="end"))
    return fold(model(nodes, {"x": [2, 4, 5, 5]}, ["y"], stored)).report.to_dict()


def entry(
    status: str = "equal", errors: tuple[float | None, ...] = (2e-7, 5e-8), **more: Any
) -> dict[str, Any]:
    return {
        "status": status,
        "reason": "too far apart",
        "outputs": [{"name": f"y{i}", "rel_error": error} for i, error in enumerate(errors)],
        "samples": 3,
        "runtime": "onnxruntime",
        **more,
    }


def proof(*how: str | None) -> dict[str, Any]:
    folds = [{"name": f"bn{i}", "how": one} for i, one in enumerate(how)]
    return {"proof": {"folds": folds, "sentence": "each fold was looked at"}}


def words(blocks: list[Any]) -> list[str]:
    """Every sentence, lists and headings among them."""
    found: list[str] = []
    for block in blocks:
        if isinstance(block, Section):
            found += [block.title, *words(list(block.blocks))]
        elif isinstance(block, Items):
            found += [plain(item) for item in block.items]
        elif isinstance(block, Text):
            found.append(plain(block.content))
        elif isinstance(block, Banner):
            found += [plain(part) for part in block.parts]
    return found


def test_the_worst_of_all_outputs() -> None:
    assert worst_output([]) is None
    assert worst_error() is None
    assert worst_error(entry(errors=(None,))) == 0.0
    one, other = entry(errors=(1e-7, None)), entry(errors=(3e-6,))
    assert worst_error(one, other) == 3e-6
    found = worst_output([*one["outputs"], *other["outputs"]])
    assert found is other["outputs"][0]


@pytest.mark.parametrize(
    ("entries", "said", "kind"),
    [
        ([entry(), entry("different")], "✗ 1 of 2 comparisons different", "bad"),
        ([entry("inconclusive")], "✗ 1 of 1 comparison inconclusive", "bad"),
        ([entry(errors=())], "Equal ✓ (all outputs, relative error at most 0)", "good"),
        (
            [entry(**proof("float64", None))],
            "Equal ✓ (1 of 2 folds and all outputs, relative error at most 2e-07)",
            "good",
        ),
        (
            [entry(), entry(errors=(1e-3,))],
            "Equal ✓ (all outputs in 2 comparisons, relative error at most 0.001)",
            "good",
        ),
    ],
)
def test_whether_outputs_are_equal_in_a_word(entries: list[Any], said: str, kind: str) -> None:
    (mark,) = equality_marks(entries)
    assert (plain(mark), mark.kind) == (said, kind)


def test_nothing_compared_says_nothing() -> None:
    assert list(equality_marks([])) == []


@pytest.mark.parametrize(
    ("counts", "would", "said", "kind"),
    [
        ((0, 0), False, "no BatchNorm to fold", "soft"),
        ((3, 0), False, "3 of 3 folded", "strong"),
        ((3, 2), True, "1 of 3 would be folded", "soft"),
    ],
)
def test_how_many_went(counts: tuple[int, int], would: bool, said: str, kind: str) -> None:
    mark = folded_mark({"batchnorm": dict(zip(("before", "after"), counts, strict=True))}, would=would)
    assert (mark.text, mark.kind) == (said, kind)


def test_the_banner_of_what_was_not_compared() -> None:
    report = report_of()
    assert [plain(part) for part in fold_banner(report).parts] == ["not verified", "1 of 1 folded"]
    assert [plain(part) for part in fold_banner(report, would=True).parts] == ["1 of 1 would be folded"]
    different = fold_banner(report | {"verify": entry("different")})
    assert (different.kind, plain(different.parts[0])) == ("failed", "✗ 1 of 1 comparison different")


def test_what_stays_and_why_stands_under_its_reason() -> None:
    report = report_of(kept=True)
    (kept,) = report["kept"]
    told = words(fold_blocks(report))
    place = told.index(f"1 stays: {kept['reason']}")
    assert told[place + 1].endswith("neither take a scale and a shift nor pass them on:")
    assert told[place + 2] == f"stays: {kept['detail']}"
    assert "bent" in kept["detail"]
    assert f"1 would stay: {kept['reason']}" in words(fold_blocks(report, would=True))
    twice = report | {"kept": [kept, kept | {"name": "other"}]}
    assert f"2 stay: {kept['reason']}" in words(fold_blocks(twice))


def test_counts_notes_merges_and_other_normalisations() -> None:
    report = report_of(merged=True)
    assert len(report["merged"]) == 1
    report["input"]["notes"].append("a note")
    report["normalisations"] = {"LayerNorm": 1}
    blocks = fold_blocks(report)
    (table,) = [block for block in blocks if isinstance(block, Table)]
    rows = [row.cells for row in table.rows]
    assert rows[:2] == [("BatchNorm", "1", "0"), ("nodes", "7", "4")]
    assert ("  Conv", "3", "2") in rows
    told = words(blocks)
    assert "1 further maps and branches merged" in told
    assert "1 further maps and branches would be merged" in words(fold_blocks(report, would=True))
    assert "note: a note" in told
    assert normalisations_sentence({"LayerNorm": 1}) in told
    assert normalisations_sentence({"LayerNorm": 1}).startswith("1 normalisation is no BatchNorm and stays:")
    assert sum(isinstance(block, Picture) for block in blocks) == 1


@pytest.mark.parametrize(
    ("verify", "said"),
    [
        (entry(), ["outputs equal: relative error at most 2.0e-07 over 3 seeded inputs (onnxruntime)"]),
        (entry(errors=(None,)), ["outputs equal: identical over 3 seeded inputs (onnxruntime)"]),
        (entry("not run"), ["not verified: too far apart"]),
        (entry("different"), ["different: too far apart"]),
        (
            entry(**proof("float64", None)),
            [
                "outputs equal: relative error at most 2.0e-07 over 3 seeded inputs (onnxruntime)",
                "proof: each fold was looked at",
                "not shown by any comparison: bn1",
            ],
        ),
        (
            entry(**proof("float64")),
            [
                "outputs equal: relative error at most 2.0e-07 over 3 seeded inputs (onnxruntime)",
                "proof: each fold was looked at",
            ],
        ),
    ],
)
def test_how_it_was_proven(verify: dict[str, Any], said: list[str]) -> None:
    told = words(fold_blocks(report_of() | {"verify": verify}))
    assert told[-len(said) :] == said


def test_the_list_of_folds_is_shortened_unless_all_is_wanted() -> None:
    report = report_of(norms=22)
    short, full = (words([folds_listed(report, everything=all_)]) for all_ in (False, True))
    assert short[0] == full[0] == "folds:"
    assert short[1] == "bn0 -> conv0 (batchnorm-into-conv)"
    assert short[21:] == ["and 2 more; --all lists them"]
    assert len(full) == 23
    assert full[-1].startswith("bn21 -> conv21")


def test_a_fold_into_nothing_names_no_layer() -> None:
    report = report_of()
    report["folded"] = [report["folded"][0] | {"into": []}]
    assert words([folds_listed(report, everything=False)])[1:] == ["bn0 (batchnorm-into-conv)"]


def test_the_fate_of_each() -> None:
    report = report_of(kept=True, merged=True)
    assert {name: fate for name, (fate, _) in fates(report).items()} == {"bn0": "into", "stays": "kept"}
    far = report | {"folded": [report["folded"][0] | {"into": "bent"}]}
    assert fates(far)["bn0"] == ("through", "folded into bent (batchnorm-into-conv)")
    among = report | {"merged": [{"names": ["side"], "into": "conv0", "rule": "merge-parallel-convs"}]}
    assert fates(among)["bn0"][0] == "merged"
    assert fates(report | {"graph": None})["bn0"][0] == "through"


def test_the_blocks_of_a_proven_fold() -> None:
    """As the public door gives it, proof and all."""
    built = model(
        [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y")],
        {"x": [2, 4, 5, 5]},
        ["y"],
        {"w": random(4, 4, 1, 1), **batchnorm_parameters(4)},
    )
    _, report = convbn.fuse(built)
    told = words(fold_blocks(report.to_dict()))
    assert told[0].startswith("Equal ✓ (1 of 1 fold and all outputs, relative error at most ")
    assert any(line.startswith("outputs equal: ") for line in told)
    assert any(line.startswith("proof: ") for line in told)
