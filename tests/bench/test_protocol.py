from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import jsonschema
import numpy as np
import onnx
import pytest

from convbn.bench.cases.case import Case
from convbn.bench.measure import protocol
from convbn.bench.measure.blocks import interleave
from convbn.bench.measure.options import Instruments, ProtocolOptions
from convbn.bench.measure.protocol import measure
from convbn.bench.models.inputs import Array, Feeds
from convbn.bench.results.result import BenchResult
from convbn.bench.runtimes.base import Device, Prepared, SessionOptions, Variant
from convbn.errors import FileAccessError, UsageError

ConvModel = Callable[..., onnx.ModelProto]
SCHEMA = json.loads((Path(str(protocol.__file__)).parents[1] / "bench-result.schema.json").read_text())
FEEDS = [{"x": np.random.default_rng(i).standard_normal((1, 4)).astype(np.float32)} for i in range(2)]
QUICK = ProtocolOptions(budget_seconds=0.5, warmup_seconds=0.1, block_seconds=0.005, threads=1, memory=False)

ROUNDS: Any = {
    "options": ProtocolOptions(block_seconds=0.05, min_blocks=3),
    "budget_seconds": 0.5,
    "progress": lambda left: None,
}


def measured(
    variants: Sequence[Variant],
    runtimes: Sequence[str],
    options: ProtocolOptions | None = None,
    feeds: Sequence[Feeds] | None = None,
    **instruments: Any,
) -> BenchResult:
    """One case."""
    case = Case(
        variants[0].name if variants else "", tuple(variants), tuple(runtimes), threads=1, feeds=feeds
    )
    return measure([case], options, instruments=Instruments(**instruments))


class Machine:
    """A clock that only inferences move, on a machine as noisy as a shared one.

    Every inference takes its model's time × a slow drift that hits all models (autocorrelated, and 10 % over the
    run) × 2 % of its own noise; one in two hundred is three times as long, and now and then a neighbour
    makes some tens of milliseconds 15 % slower, whoever runs then.
    """

    def __init__(self, seed: int, times: dict[str, float]) -> None:
        self.now = 0.0
        self.times = times
        self.rng = np.random.default_rng(seed)
        self.drift = 0.0
        self.neighbour_until = 0.0

    def clock(self) -> float:
        return float(self.now)

    def open(self, runtime: str, side: Variant, options: SessionOptions) -> SimulatedSession:
        # Where the weights came to lie in memory: a fixed factor of each session, up to 0.3 %.
        seconds = self.times[side.name] * self.rng.normal(1, 0.001)
        return SimulatedSession(self, seconds, gain=3.0 if side.name == "wrong" else 2.0)

    def factor(self) -> float:
        self.drift = 0.99 * self.drift + self.rng.normal(0, 0.005)
        factor = np.exp(self.drift + self.rng.normal(0, 0.02)) * (1 + 0.05 * self.now)
        if self.rng.random() < 0.005:
            factor *= 3
        if self.rng.random() < 0.001:
            self.neighbour_until = self.now + self.rng.uniform(0.01, 0.06)
        return float(factor * (1.15 if self.now < self.neighbour_until else 1.0))


class SimulatedSession:
    output_names = ("y",)
    compute_dtype = None

    def __init__(self, machine: Machine, seconds: float, gain: float) -> None:
        self.machine, self.seconds, self.gain, self.cold = machine, seconds, gain, 5

    def run(self, feeds: Feeds) -> list[Array]:
        return [feeds["x"] * self.gain]

    def prepare(self, feeds: Feeds) -> Prepared:
        def call() -> None:
            machine = self.machine
            factor = machine.factor()
            self.cold = max(0, self.cold - 1)
            machine.now += self.seconds * factor * (1 + self.cold)

        return Prepared(call)

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None: ...


def simulate(seed: int, slowdown: float) -> BenchResult:
    machine = Machine(seed, {"a": 1e-3, "b": 1e-3 * slowdown})
    options = ProtocolOptions(seed=seed, block_seconds=0.01, budget_seconds=1.5, warmup_seconds=0.2)
    return measured(
        (Variant("a"), Variant("b")),
        ("sim",),
        options=options,
        feeds=FEEDS,
        clock=machine.clock,
        opener=machine.open,
    )


def test_the_same_model_twice_shows_no_difference() -> None:
    verdicts = [simulate(seed, 1.0).cases[0].rows[1].verdict for seed in range(20)]
    assert verdicts.count("no difference detected") >= 19


@pytest.mark.parametrize(("slowdown", "verdict"), [(1.05, "slower"), (0.95, "faster")])
def test_five_percent_are_caught(slowdown: float, verdict: str) -> None:
    results = [simulate(seed, slowdown) for seed in range(20)]
    assert [result.cases[0].rows[1].verdict for result in results].count(verdict) >= 19  # type: ignore[arg-type]
    ratios = [result.cases[0].rows[1].ratio.median for result in results if result.cases[0].rows[1].ratio]
    assert np.median(ratios) == pytest.approx(slowdown, abs=0.01)


def test_samples_are_kept_and_nothing_is_clipped() -> None:
    result = simulate(0, 1.0)
    base, other = result.cases[0].rows
    assert len(base.block_seconds) == len(other.block_seconds) >= 20
    assert base.latency is not None
    assert base.calls_per_block is not None
    assert base.latency.n == len(base.block_seconds) * base.calls_per_block
    assert base.latency.max > 2 * base.latency.median  # nothing is clipped
    assert base.calls_per_block * base.latency.mean >= 0.009
    assert base.throughput == pytest.approx(1 / base.latency.mean)  # of a batch of 1
    assert base.load_seconds is not None
    assert (base.gpu, base.peak_memory) == (None, None)


def test_a_side_left_out_does_not_lend_its_times_to_the_next() -> None:
    machine = Machine(0, {"a": 1e-3, "wrong": 5e-3, "b": 0.5e-3})
    result = measured(
        (Variant("a"), Variant("wrong"), Variant("b")),
        ("sim",),
        options=ProtocolOptions(block_seconds=0.01, budget_seconds=1.5, warmup_seconds=0.2),
        feeds=FEEDS,
        clock=machine.clock,
        opener=machine.open,
    )
    _, wrong, last = result.cases[0].rows
    assert (wrong.status, wrong.block_seconds) == ("not measured", ())
    assert last.ratio is not None
    assert last.ratio.median == pytest.approx(0.5, abs=0.02)


def test_min_blocks_go_before_the_budget() -> None:
    machine = Machine(0, {"a": 2.0})
    options = ProtocolOptions(budget_seconds=0.1, warmup_seconds=0.1, min_blocks=7)
    result = measured(
        (Variant("a"),), ("sim",), options=options, feeds=FEEDS, clock=machine.clock, opener=machine.open
    )
    assert len(result.cases[0].rows[0].block_seconds) == 7
    assert result.cases[0].rows[0].calls_per_block == 1
    assert result.cases[0].rows[0].verdict == "baseline"


def test_a_real_measurement_fits_the_schema(conv_model: ConvModel, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(conv_model(), path)
    told: list[tuple[str, int, int]] = []
    result = measured(
        (
            Variant("original", onnx=path),
            Variant("again", onnx=conv_model()),
            Variant("wrong", onnx=conv_model(bias=1.0)),
        ),
        ("onnxruntime-cpu@off", "onnxruntime-cuda", "torch-cpu"),
        options=QUICK,
        tell=lambda *step: told.append(step),
    )
    result = replace(result, title="t", extra=[{"label": "Top-1", "value": "71.2 %"}])
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads(json.dumps(result.to_dict(), allow_nan=False)), SCHEMA)
    rows = {(row.runtime, row.side): row for row in result.cases[0].rows}
    assert rows["onnxruntime-cpu@off", "again"].status == "measured"
    assert rows["onnxruntime-cpu@off", "again"].ratio is not None
    wrong = rows["onnxruntime-cpu@off", "wrong"]
    assert (wrong.status, wrong.ratio, wrong.latency) == ("not measured", None, None)
    assert "outputs are not shown to equal" in (wrong.reason or "")
    assert "CUDAExecutionProvider" in (rows["onnxruntime-cuda", "original"].reason or "")
    assert "--arch" in (rows["torch-cpu", "again"].reason or "")
    assert result.cases[0].sides[0].sha256 is not None
    assert result.cases[0].sides[1].sha256 is None
    assert any("comparing" in phase for phase, _, _ in told), told


def test_a_row_without_a_measurement_may_not_carry_a_ratio() -> None:
    data = simulate(0, 1.0).to_dict()
    jsonschema.validate(data, SCHEMA)
    data["cases"][0]["rows"][1]["status"] = "not measured"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, SCHEMA)


@pytest.mark.parametrize(
    "change",
    [
        {"min_blocks": 0},
        {"budget_seconds": -1.0},
        {"threads": 0},
        {"samples": 0},
        {"block_seconds": float("nan")},
        {"total_seconds": 0.0},
        {"max_blocks": 5},
    ],
)
def test_senseless_options_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(change))):
        ProtocolOptions(**change)  # type: ignore[arg-type]  # wrong values on purpose


def test_unknown_runtimes_and_repeated_names_are_refused_before_anything_runs(conv_model: ConvModel) -> None:
    side = Variant("a", onnx=conv_model())
    with pytest.raises(UsageError, match="no runtime 'tpu'"):
        measured((side,), ("tpu",))
    with pytest.raises(UsageError, match="two models are called 'a'"):
        measured((side, side), ("onnxruntime-cpu",))
    with pytest.raises(UsageError, match="no model"):
        measured((), ("onnxruntime-cpu",))
    with pytest.raises(FileAccessError, match="gone"):
        measured((Variant("a", onnx="gone.onnx"),), ("onnxruntime-cpu",))


def two(machine: Machine, **options: object) -> BenchResult:
    return measured(
        (Variant("a"), Variant("b")),
        ("sim",),
        options=ProtocolOptions(**options),  # type: ignore[arg-type]  # whatever the test varies
        feeds=FEEDS,
        clock=machine.clock,
        opener=machine.open,
    )


def test_enough_blocks_end_the_timing_before_the_budget_does() -> None:
    result = two(Machine(0, {"a": 1e-3, "b": 1e-3}), budget_seconds=500.0, min_blocks=5, max_blocks=23)
    assert {len(row.block_seconds) for row in result.cases[0].rows} == {23}


def test_the_budget_is_kept_to_the_round() -> None:
    machine = Machine(0, {"a": 5e-3, "b": 5e-3})
    result = two(machine, budget_seconds=8.0, block_seconds=0.05)
    assert 6.5 < result.seconds < 8.3
    assert len(result.cases[0].rows[0].block_seconds) > 30


def case(name: str, machine: Machine, *runtimes: str) -> Case:
    machine.times.update({"a": 1e-3, "b": 1e-3})
    return Case(name, (Variant("a"), Variant("b")), runtimes or ("sim",), feeds=FEEDS)


def test_the_total_budget_is_shared_out_among_what_is_left() -> None:
    machine = Machine(0, {})
    options = ProtocolOptions(budget_seconds=100.0, total_seconds=18.0, block_seconds=0.01)
    result = measure(
        [case(f"m{i}", machine, "one", "two") for i in range(3)],
        options,
        instruments=Instruments(machine.clock, machine.open),
    )
    assert result.seconds == pytest.approx(18.0, rel=0.05)
    counts = [len(row.block_seconds) for case in result.cases for row in case.rows]
    assert max(counts) < 1.5 * min(counts)
    with pytest.raises(ValueError, match="number of cases"):
        measure(iter([]), options)


def test_cases_of_one_name_have_ids_of_their_own_and_a_failure_is_only_a_row() -> None:
    machine = Machine(0, {})
    broken = replace(case("Net <x>", machine), precision="fp16", failure=UsageError("no fp16", hint="none"))
    result = measure(
        [case("Net <x>", machine), case("net x", machine), broken],
        ProtocolOptions(budget_seconds=0.5, warmup_seconds=0.1, block_seconds=0.005),
        instruments=Instruments(machine.clock, machine.open),
    )
    assert [case.id for case in result.cases] == ["net-x-as-is-b1", "net-x-as-is-b1-2", "net-x-fp16"]
    assert {row.status for row in result.cases[2].rows} == {"not measured"}
    assert "no fp16" in (result.cases[2].rows[1].reason or "")
    assert result.cases[2].rows[0].gpu is None
    jsonschema.validate(json.loads(json.dumps(result.to_dict(), allow_nan=False)), SCHEMA)


def test_times_of_a_device_go_before_those_of_the_host() -> None:
    class Gpu(SimulatedSession):
        def prepare(self, feeds: Feeds) -> Prepared:
            call = super().prepare(feeds).call

            def times(n: int) -> list[float]:
                for _ in range(n):
                    call()
                return [1e-6 * (i % 2 + 1) for i in range(n)]

            return Prepared(call, times, Device("GPU", "0000:00:00.0", "graph", "flushed"))

    machine = Machine(0, {"a": 1e-3, "b": 1e-3})
    result = measured(
        (Variant("a"), Variant("b")),
        ("sim",),
        options=ProtocolOptions(budget_seconds=0.5, warmup_seconds=0.1, block_seconds=0.005, l2="flushed"),
        feeds=FEEDS,
        clock=machine.clock,
        opener=lambda runtime, side, options: Gpu(machine, 1e-3, gain=2.0),
    )
    row = result.cases[0].rows[0]
    assert row.latency is not None
    assert row.latency.max == 2e-6
    assert row.gpu is not None
    assert (row.gpu.mode, row.gpu.l2) == ("graph", "flushed")
    jsonschema.validate(json.loads(json.dumps(result.to_dict(), allow_nan=False)), SCHEMA)


@pytest.mark.parametrize("seconds", [2e-5, 1e-3, 4e-3, 0.3])
def test_the_protocol_costs_under_three_percent_of_the_measured_time(seconds: float) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 1e-7  # what reading the real one takes
        return now[0]

    def call() -> None:
        now[0] += seconds

    start = now[0]
    timings = interleave([Prepared(call)] * 3, [seconds] * 3, clock=clock, **ROUNDS)
    measured = sum(sum(timing.inferences) for timing in timings)
    assert measured > 0.97 * (now[0] - start)


def test_the_real_protocol_costs_under_three_percent_too() -> None:
    # The thread's CPU time, here and below, does not run while others have the processor.
    clock = time.thread_time

    def call() -> None:
        until = clock() + 5e-4
        while clock() < until:
            pass

    shares = []
    for _ in range(3):
        start = clock()
        timings = interleave([Prepared(call)] * 2, [5e-4] * 2, clock=clock, **ROUNDS)
        wall = clock() - start
        shares.append(sum(sum(timing.inferences) for timing in timings) / wall)
    assert max(shares) > 0.97


class Busy:
    """Real work on a real clock: small products of matrices, as many as are asked for."""

    output_names = ("y",)
    compute_dtype = None

    def __init__(self, products: int) -> None:
        self.products = products
        self.matrix = np.random.default_rng(0).standard_normal((24, 24))

    def run(self, feeds: Feeds) -> list[Array]:
        return [feeds["x"] * 2.0]

    def prepare(self, feeds: Feeds) -> Prepared:
        def call() -> None:
            for _ in range(self.products):
                self.matrix @ self.matrix

        return Prepared(call)

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None: ...


@pytest.mark.parametrize(("products", "verdict", "ratio"), [(20, "faster", 0.1), (2000, "slower", 10)])
def test_real_work_on_the_clock_of_its_own_thread(products: int, verdict: str, ratio: float) -> None:
    # Ten times the work: a busy machine moves each side by some per cent. What small differences need is
    # simulated above, with noise that is the same every time.
    work = {"a": 200, "b": products}
    row = (
        measured(
            (Variant("a"), Variant("b")),
            ("real",),
            options=ProtocolOptions(budget_seconds=0.5, block_seconds=0.005, warmup_seconds=0.05),
            feeds=FEEDS,
            clock=time.thread_time,
            opener=lambda runtime, side, options: Busy(work[side.name]),  # type: ignore[arg-type]  # a Session
        )
        .cases[0]
        .rows[1]
    )
    assert row.verdict == verdict
    assert row.ratio is not None
    assert ratio / 2 < row.ratio.median < ratio * 2


def test_every_round_runs_each_side_once_in_an_order_that_changes_with_the_seed() -> None:
    def orders(seed: int) -> list[list[int]]:
        now, ran = [0.0], list[int]()

        def session(index: int) -> Prepared:
            def call() -> None:
                now[0] += 0.05
                ran.append(index)

            return Prepared(call)

        options = ProtocolOptions(block_seconds=0.05, min_blocks=3, seed=seed)
        rounds = ROUNDS | {"options": options, "budget_seconds": 6.0}
        interleave([session(i) for i in range(3)], [0.05] * 3, clock=lambda: now[0], **rounds)
        return [ran[i : i + 3] for i in range(0, len(ran), 3)]

    first = orders(1)
    assert all(sorted(order) == [0, 1, 2] for order in first)
    assert len({tuple(order) for order in first}) == 6
    assert orders(1) == first != orders(2)
