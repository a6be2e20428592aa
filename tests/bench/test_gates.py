"""Gates: the little language, what is judged, and that a failure needs a second run."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from support import bench_results

from convbn.bench.gates.conditions import parse
from convbn.bench.gates.fields import FIELDS, Judged
from convbn.bench.gates.judge import GateOutcome, confirmed, gates_from, judge, unconfirmed
from convbn.bench.results.comparisons import comparisons
from convbn.errors import UsageError


def subject(result: dict[str, Any] | None = None, index: int = 0) -> Judged:
    return Judged(list(comparisons(result or bench_results.one()))[index])


def verdict(*texts: str, result: dict[str, Any] | None = None, **more: Any) -> tuple[GateOutcome, ...]:
    options = {"baseline": False, "allow_missing": False} | {
        key: more.pop(key) for key in ("allow_missing",) if key in more
    }
    options["baseline"] = more.get("baseline") is not None
    return judge(result or bench_results.one(), gates_from(texts, **options), **more)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("ratio > 1.02", False),
        ("ratio < 0.79", True),
        ("ratio<.79", True),
        ("ratio.low >= 7.81e-1", True),
        ("ratio.high == 0.793", True),
        ("ratio.high != 0.793", False),
        ("latency.median > 1 ms", True),
        ("latency.median > 1600us", False),
        ("latency.p99 > 2 ms and ratio > 1", False),
        ("latency.p99 > 2 ms or ratio > 1", True),
        ("ratio < 1 or ratio > 1 and ratio > 2", True),  # `and` binds closer
        ("(ratio > 1 or ratio < 1) and ratio > 2", False),
        ("(ratio > 1 or ratio < 1) and ratio < 2", True),
        ("verdict == faster", True),
        ("verdict != slower", True),
        ("size > 46.69 MB", True),
        ("size > 46 MiB", False),
        ("size.ratio < 1", True),
        ("memory >= 123 MB", True),
        ("memory.ratio == 1", True),
        ("error > 1e-6", False),
        ("load > 200 ms", True),
        ("throughput < 100", False),
        ("batchnorm.left > 0", True),
        ("batchnorm.folded == 19", True),
        ("nodes > 49", True),
    ],
)
def test_conditions(text: str, holds: bool) -> None:
    assert parse(text).judge(subject()) is holds


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "expected a field at the end"),
        ("ratio", "expected an operator"),
        ("ratio >", "expected a number"),
        ("ratio > 1.02 and", "expected a field"),
        ("ratio > 1.02 1.03", "did not expect '1.03'"),
        ("ratio = 1", "cannot read '= 1'"),
        ("ratio > 2 %", "cannot read '%'"),
        ("ratio > 1 ms", "is not a unit"),
        ("latency.p99 > 12", "has no unit"),
        ("latency.p99 > 12 MB", "is not a unit"),
        ("speed > 1", "there is no field 'speed'"),
        ("__import__('os').system('true') > 1", "cannot read"),
        ("__import__ > 1", "there is no field"),
        ("ratio > nan", "expected a number"),
        ("verdict > faster", "compared by == or !="),
        ("verdict == fast", "compared by == or !="),
        ("(ratio > 1", "is not closed"),
        ("ratio > 1)", "did not expect ')'"),
        ("(" * 500 + "ratio > 1" + ")" * 500, "longer than"),
        ("(" * 100 + "ratio > 1" + ")" * 100, "too many parentheses"),
    ],
)
def test_what_cannot_be_read_says_where(text: str, cause: str) -> None:
    with pytest.raises(UsageError, match="--fail-if") as found:
        parse(text)
    assert cause in found.value.cause
    assert found.value.hint


def test_no_difference_counts_as_a_ratio_of_one() -> None:
    same = subject(index=1)  # measured 0.990 [0.970, 1.010]
    assert parse("ratio == 1").judge(same)
    assert parse("ratio > 0.995").judge(same)
    assert parse("ratio.median < 0.995").judge(same)
    assert parse("verdict == same").judge(same)


def test_what_was_not_measured_does_not_pass() -> None:
    outcomes = verdict("ratio > 1.02")
    assert [outcome.status for outcome in outcomes] == ["passed", "passed", "not judged"]
    assert outcomes[2].fails
    assert "buy one" in outcomes[2].sentence
    assert [o.status for o in verdict("ratio > 1.02", allow_missing=True)] == ["passed", "passed", "skipped"]


def test_what_is_not_known_decides_only_where_it_matters() -> None:
    result = bench_results.one()
    for row in result["cases"][0]["rows"]:
        row["peak_memory_bytes"] = None
    known = subject(result)
    assert parse("memory > 1 GB").judge(known) is None
    assert parse("memory > 1 GB or ratio < 1").judge(known) is True
    assert parse("memory > 1 GB and ratio > 1").judge(known) is False
    assert parse("memory > 1 GB and ratio < 1").judge(known) is None


def test_what_speaks_of_the_whole_case_is_judged_once_even_where_nothing_was_measured() -> None:
    outcomes = verdict("batchnorm.left > 0 or nodes > 1000")
    assert [(o.case, o.runtime, o.side, o.status) for o in outcomes] == [("resnet18", "", "", "failed")]
    assert not outcomes[0].timed


def test_a_gate_without_anything_to_judge_does_not_pass() -> None:
    result = bench_results.one()
    result["cases"][0]["rows"] = []
    outcome = verdict("ratio > 1.02", result=result)[0]
    assert outcome.status == "not judged"
    result["cases"][0]["fold"] = None
    assert verdict("batchnorm.left > 0")[0].status == "failed"


def test_sides_that_are_only_there_to_compare_with_are_left_out() -> None:
    result = bench_results.one()
    extra = bench_results.row("torch-cpu", "fused by runtime", "slower", (1.1, 1.2, 1.3))
    result["cases"][0]["rows"].insert(4, extra)
    assert any(outcome.fails for outcome in verdict("ratio > 1.02", result=result, allow_missing=True))
    outcomes = verdict("ratio > 1.02", result=result, allow_missing=True, references=("fused by runtime",))
    assert not any(outcome.fails for outcome in outcomes)


def slow() -> dict[str, Any]:
    result = bench_results.one()
    case = result["cases"][0]
    case["rows"] = [
        bench_results.row("torch-cpu", "original", "baseline"),
        bench_results.row("torch-cpu", "folded", "slower", (1.04, 1.05, 1.06)),
    ]
    case["runtimes"] = [bench_results.control("torch-cpu")]
    return result


def test_a_failure_counts_only_if_a_second_run_repeats_it() -> None:
    first = verdict("ratio > 1.02", result=slow())
    assert [outcome.status for outcome in unconfirmed(first)] == ["failed"]
    again = slow()
    again["cases"][0]["rows"][1] = bench_results.row("torch-cpu", "folded", "slower", (1.05, 1.06, 1.07))
    twice = confirmed(first, verdict("ratio > 1.02", result=again))[0]
    assert twice.fails
    assert "1.05; a second run confirms it (ratio is 1.06)" in twice.sentence
    again["cases"][0]["rows"][1] = bench_results.row(
        "torch-cpu", "folded", "no difference detected", (0.98, 1, 1.02)
    )
    once = confirmed(first, verdict("ratio > 1.02", result=again))[0]
    assert not once.fails
    assert "1.05; a second run did not confirm it (ratio is 1)" in once.sentence
    again["cases"][0]["rows"][1] = bench_results.row("torch-cpu", "folded", None)
    assert confirmed(first, verdict("ratio > 1.02", result=again))[0].status == "not judged"
    assert confirmed(first, ())[0].status == "not judged"


def test_what_a_second_run_cannot_change_is_not_measured_again() -> None:
    first = verdict("batchnorm.left > 0", "ratio > 1.02", result=bench_results.one())
    assert unconfirmed(first) == ()
    assert confirmed(first, ()) == first


def test_a_baseline_alone_fails_what_got_slower() -> None:
    old, new = slow(), slow()
    assert [o.status for o in verdict(result=new, baseline=old)] == ["passed"]
    row = new["cases"][0]["rows"][1]
    row["block_seconds"] = [value * 1.05 for value in row["block_seconds"]]
    outcome = verdict(result=new, baseline=old)[0]
    assert outcome.status == "failed"
    assert outcome.timed
    assert "change is 1.05" in outcome.sentence
    assert [o.status for o in verdict("change > 1.10", result=new, baseline=old)] == ["passed"]


def test_a_change_needs_something_to_compare_with() -> None:
    with pytest.raises(UsageError, match="--baseline"):
        verdict("change > 1.02")


def test_what_is_new_is_skipped_and_what_is_gone_does_not_pass() -> None:
    old, new = slow(), slow()
    more = copy.deepcopy(new["cases"][0]) | {"id": "other", "name": "other"}
    new["cases"].append(more)
    assert [o.status for o in verdict(result=new, baseline=old)] == ["passed", "skipped"]
    assert [o.status for o in verdict(result=old, baseline=new)] == ["passed", "not judged", "not judged"]
    new["cases"][0]["rows"][1] = bench_results.row("torch-cpu", "folded", None)
    assert verdict(result=new, baseline=old)[0].status == "not judged"


def test_every_field_can_be_read_on_everything_or_is_not_known() -> None:
    for result in (bench_results.one(), bench_results.many()):
        for one in comparisons(result):
            for name, field in FIELDS.items():
                value = field.read(Judged(one))
                assert value is None or isinstance(value, float | str), name


@pytest.mark.parametrize(
    ("text", "opposite"),
    [
        ("ratio > 1.02", "ratio ≤ 1.02"),
        ("latency.p99 >= 12 ms", "latency.p99 < 12 ms"),
        ("verdict == slower", "verdict ≠ slower"),
        ("ratio > 1 and (error > 0.1 or nodes != 3)", "ratio ≤ 1 or (error ≤ 0.1 and nodes = 3)"),
    ],
)
def test_a_gate_says_what_must_hold(text: str, opposite: str) -> None:
    assert parse(text).opposite == opposite
