from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Self

import jsonschema
import numpy as np
import onnx
import pytest

from convbn.bench import protocol
from convbn.bench.inputs import Array, Feeds
from convbn.bench.protocol import ProtocolOptions, measure
from convbn.bench.result import BenchResult
from convbn.bench.runtimes.base import SessionOptions, Side
from convbn.errors import FileAccessError, UsageError

ConvModel = Callable[..., onnx.ModelProto]
SCHEMA = json.loads((Path(str(protocol.__file__)).parent / "bench-result.schema.json").read_text())
FEEDS = [{"x": np.random.default_rng(i).standard_normal((1, 4)).astype(np.float32)} for i in range(2)]
QUICK = ProtocolOptions(budget_seconds=0.5, warmup_seconds=0.1, block_seconds=0.005, threads=1)


class Machine:
    """A clock that only inferences move, on a machine as noisy as a shared one.

    Every inference takes its model's time × a slow drift that hits all models × 2 % of its own noise,
    and one in two hundred is three times as long.
    """

    def __init__(self, seed: int, times: dict[str, float]) -> None:
        self.now = 0.0
        self.times = times
        self.rng = np.random.default_rng(seed)
        self.drift = 0.0

    def clock(self) -> float:
        return float(self.now)

    def open(self, runtime: str, side: Side, options: SessionOptions) -> SimulatedSession:
        # Where the weights came to lie in memory: a fixed factor of each session, up to 0.3 %.
        seconds = self.times[side.name] * self.rng.normal(1, 0.001)
        return SimulatedSession(self, seconds, gain=3.0 if side.name == "wrong" else 2.0)


class SimulatedSession:
    output_names = ("y",)
    compute_dtype = None

    def __init__(self, machine: Machine, seconds: float, gain: float) -> None:
        self.machine, self.seconds, self.gain, self.cold = machine, seconds, gain, 5

    def run(self, feeds: Feeds) -> list[Array]:
        return [feeds["x"] * self.gain]

    def prepare(self, feeds: Feeds) -> Callable[[], None]:
        def call() -> None:
            machine = self.machine
            machine.drift = 0.99 * machine.drift + machine.rng.normal(0, 0.005)
            factor = np.exp(machine.drift + machine.rng.normal(0, 0.02))
            if machine.rng.random() < 0.005:
                factor *= 3
            self.cold = max(0, self.cold - 1)
            machine.now += self.seconds * factor * (1 + self.cold)

        return call

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None: ...


def simulate(seed: int, slowdown: float) -> BenchResult:
    machine = Machine(seed, {"a": 1e-3, "b": 1e-3 * slowdown})
    options = ProtocolOptions(seed=seed, block_seconds=0.01, budget_seconds=1.5, warmup_seconds=0.2)
    return measure(
        (Side("a"), Side("b")),
        ("sim",),
        options=options,
        feeds=FEEDS,
        clock=machine.clock,
        opener=machine.open,
    )


def test_the_same_model_twice_shows_no_difference() -> None:
    verdicts = [simulate(seed, 1.0).rows[1].verdict for seed in range(20)]
    assert verdicts.count("no difference detected") >= 19


@pytest.mark.parametrize(("slowdown", "verdict"), [(1.05, "slower"), (0.95, "faster")])
def test_five_percent_are_caught(slowdown: float, verdict: str) -> None:
    results = [simulate(seed, slowdown) for seed in range(20)]
    assert [result.rows[1].verdict for result in results].count(verdict) >= 19  # type: ignore[arg-type]
    ratios = [result.rows[1].ratio.median for result in results if result.rows[1].ratio]
    assert np.median(ratios) == pytest.approx(slowdown, abs=0.01)


def test_samples_are_kept_and_the_budget_is() -> None:
    result = simulate(0, 1.0)
    base, other = result.rows
    assert len(base.block_seconds) == len(other.block_seconds) >= 20
    assert base.latency is not None
    assert base.calls_per_block is not None
    assert base.latency.n == len(base.block_seconds) * base.calls_per_block
    assert base.latency.max > 2 * base.latency.median  # nothing is clipped
    assert base.calls_per_block * base.latency.mean >= 0.009


def test_a_side_left_out_does_not_lend_its_times_to_the_next() -> None:
    machine = Machine(0, {"a": 1e-3, "wrong": 5e-3, "b": 0.5e-3})
    result = measure(
        (Side("a"), Side("wrong"), Side("b")),
        ("sim",),
        options=ProtocolOptions(block_seconds=0.01, budget_seconds=1.5, warmup_seconds=0.2),
        feeds=FEEDS,
        clock=machine.clock,
        opener=machine.open,
    )
    _, wrong, last = result.rows
    assert (wrong.status, wrong.block_seconds) == ("not measured", ())
    assert last.ratio is not None
    assert last.ratio.median == pytest.approx(0.5, abs=0.02)


def test_min_blocks_go_before_the_budget() -> None:
    machine = Machine(0, {"a": 2.0})
    options = ProtocolOptions(budget_seconds=0.1, warmup_seconds=0.1, min_blocks=7)
    result = measure(
        (Side("a"),), ("sim",), options=options, feeds=FEEDS, clock=machine.clock, opener=machine.open
    )
    assert len(result.rows[0].block_seconds) == 7
    assert result.rows[0].calls_per_block == 1
    assert result.rows[0].verdict == "baseline"


def test_a_real_measurement_fits_the_schema(conv_model: ConvModel, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(conv_model(), path)
    lines: list[str] = []
    result = measure(
        (
            Side("original", onnx=path),
            Side("again", onnx=conv_model()),
            Side("wrong", onnx=conv_model(bias=1.0)),
        ),
        ("onnxruntime-cpu@off", "onnxruntime-cuda", "torch-cpu"),
        options=QUICK,
        progress=lines.append,
        title="t",
        extra=[{"label": "Top-1", "value": "71.2 %"}],
    )
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads(json.dumps(result.to_dict(), allow_nan=False)), SCHEMA)
    rows = {(row.runtime, row.side): row for row in result.rows}
    assert rows["onnxruntime-cpu@off", "again"].status == "measured"
    assert rows["onnxruntime-cpu@off", "again"].ratio is not None
    wrong = rows["onnxruntime-cpu@off", "wrong"]
    assert (wrong.status, wrong.ratio, wrong.latency) == ("not measured", None, None)
    assert "outputs are not shown to equal" in (wrong.reason or "")
    assert "CUDAExecutionProvider" in (rows["onnxruntime-cuda", "original"].reason or "")
    assert "--arch" in (rows["torch-cpu", "again"].reason or "")
    assert result.models[0].sha256 is not None
    assert result.models[1].sha256 is None
    assert any("comparing" in line for line in lines)


def test_a_row_without_a_measurement_may_not_carry_a_ratio() -> None:
    data = simulate(0, 1.0).to_dict()
    jsonschema.validate(data, SCHEMA)
    data["rows"][1]["status"] = "not measured"
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
    ],
)
def test_senseless_options_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(change))):
        ProtocolOptions(**change)  # type: ignore[arg-type]  # wrong values on purpose


def test_unknown_runtimes_and_repeated_names_are_refused_before_anything_runs(conv_model: ConvModel) -> None:
    side = Side("a", onnx=conv_model())
    with pytest.raises(UsageError, match="no runtime 'tpu'"):
        measure((side,), ("tpu",))
    with pytest.raises(UsageError, match="two models are called 'a'"):
        measure((side, side), ("onnxruntime-cpu",))
    with pytest.raises(UsageError, match="no model"):
        measure((), ("onnxruntime-cpu",))
    with pytest.raises(FileAccessError, match="gone"):
        measure((Side("a", onnx="gone.onnx"),), ("onnxruntime-cpu",))
