"""The program for a GPU, rehearsed on the CPU: stages, what is on disk when, what it needs, and the page from it."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import measure, page, result_folder
from gpu.networks import NETWORKS, TINY, Residual
from gpu.plan import TRIALS, trials
from gpu.result_folder import ResultFolder
from gpu.variants import cudnn_epilogues
from support.networks import randomised

from convbn.bench.results.read import read_result
from convbn.errors import UsageError

ROOT = Path(__file__).parents[2]
FAST = "facts,proof,kernels,eager,graphs,onnxruntime,engines"


def rehearse(out: Path, *further: str) -> int:
    return measure.main([str(out), "--rehearse", "--most", "1", *further])


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu")
    assert rehearse(out, "--stages", FAST, "--seconds", "300") == 0
    return out


def test_the_networks_are_in_order_of_worth() -> None:
    assert list(NETWORKS) == [
        *("resnet50", "mobilenet_v2", "vgg16_bn", "repvgg_a0", "efficientnet_b0", "decoder", "resnet18"),
        *("densenet121", "regnet_y_400mf", "mobileone_s0", "resnetv2_50", "hrnet_w18_small", "lraspp"),
        *("shufflenet_v2", "inception_next_atto"),
    ]


def test_the_plan_holds_every_condition_and_its_best_first() -> None:
    planned = [trial for stage in TRIALS for trial in trials(stage, list(NETWORKS))]
    assert len({trial.key for trial in planned}) == len(planned)
    graphs = [trial for trial in planned if trial.stage == "graphs"]
    conditions = {(trial.batch, trial.precision, trial.runtime.partition("@")[2]) for trial in graphs}
    layouts = {("fp16", ""), ("bf16", ""), ("fp32", ""), ("fp32", "tf32"), ("fp32", "channels_last+tf32")}
    assert {(batch, *one) for batch in (1, 32, 64, 256) for one in layouts} <= conditions
    assert all(trial.peers for trial in graphs[:8])  # none of them is replaced by its plainer twin
    assert {trial.network for trial in graphs[:8]} == {"resnet50", "mobilenet_v2", "vgg16_bn", "repvgg_a0"}
    levels = {part for trial in planned for part in trial.runtime.partition("@")[2].split("+")}
    assert {"reduce-overhead", "max-autotune", "freezing", "nhwc", "cuda-graph", "cudnn-benchmark"} <= levels


def test_a_rehearsal_goes_through_every_stage(rehearsed: Path) -> None:
    facts = json.loads((rehearsed / "facts.json").read_text())
    assert 0 < facts["identity_us"] < 1000
    assert set(facts["proof"]) == set(TINY)
    variants = facts["proof"]["tiny_residual"]
    assert {row["status"] for row in variants.values()} == {"equal"}
    assert {"folded", "folded, no Identity", "folded program", "torch.fx fuse"} < set(variants)
    assert "folded program + cuDNN epilogues" in variants
    assert facts["notes"]["tiny_residual"]["cuDNN epilogues"] == 3
    kernels = facts["kernels"]["tiny_residual b1 fp32"]
    assert kernels["folded"]["kernels"] < kernels["original"]["kernels"]
    assert "failed" not in facts
    value = read_result(rehearsed / "gpu.json")
    rows = {
        (case["name"], row["runtime"], row["side"]): row for case in value["cases"] for row in case["rows"]
    }
    for runtime in ("torch-cpu", "torch-cpu@channels_last", "onnxruntime-cpu@off"):
        row = rows["tiny_residual", runtime, "folded"]
        assert row["status"] == "measured", row["reason"]
        assert row["equality"]["status"] == "equal"
        assert row["peak_memory_bytes"] is None  # a process for each row is only started when asked for
    engine = rows["tiny_residual", "tensorrt-rtx", "folded"]
    assert engine["status"] == "not measured"
    assert engine["reason"]
    assert all(one["noise_floor"] is not None for case in value["cases"][:2] for one in case["runtimes"])
    assert len({case["id"] for case in value["cases"]}) == len(value["cases"])
    assert (rehearsed / "gpu.md").stat().st_size > 0
    assert (rehearsed / "gpu.html").stat().st_size > 0


def test_what_was_measured_is_on_disk_before_the_next_trial_and_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, runs = measure.measure, []

    def cut_off(cases: Any, *arguments: Any) -> Any:
        runs.append(cases[0].name)
        if len(runs) == 2:
            assert len(list((tmp_path / "trials").glob("*.json"))) == 1
            raise KeyboardInterrupt  # as the limit of a lent machine
        return real(cases, *arguments)

    monkeypatch.setattr(measure, "measure", cut_off)
    with pytest.raises(KeyboardInterrupt):
        measure.main([str(tmp_path), "--rehearse", "--stages", "eager", "--most", "2"])
    (first,) = (tmp_path / "trials").glob("*.json")
    assert read_result(first)["cases"][0]["rows"][1]["status"] == "measured"
    stamp = first.stat().st_mtime_ns
    measure.main([str(tmp_path), "--rehearse", "--stages", "eager", "--most", "2"])
    assert runs == ["tiny_residual", "tiny_decoder", "tiny_decoder"]
    assert first.stat().st_mtime_ns == stamp
    assert len(read_result(tmp_path / "gpu.json")["cases"]) == 2


def test_nothing_is_exported_for_a_runtime_that_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(measure, "onnx_variants", lambda *_: made.append("onnx"))
    monkeypatch.setattr(measure, "torch_variants", lambda *_, **__: made.append("torch"))
    monkeypatch.setattr(measure, "_on_the_cpu", lambda runtime: runtime)  # as on a machine with a GPU
    if torch.cuda.is_available():
        pytest.skip("shows what happens without a GPU")
    rehearse(tmp_path, "--stages", "eager,onnxruntime,engines")
    rows = [row for case in read_result(tmp_path / "gpu.json")["cases"] for row in case["rows"]]
    assert made == []
    assert {(row["side"], row["status"]) for row in rows} == {
        ("original", "not measured"),
        ("folded", "not measured"),
    }
    assert all("no CUDA GPU" in row["reason"] for row in rows if row["runtime"] == "torch-cuda")
    assert all("onnxruntime-gpu" in row["reason"] for row in rows if row["runtime"].startswith("onnxruntime"))


def test_no_trial_starts_when_the_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(result_folder.time, "monotonic", lambda: now[0])
    ran: list[str] = []

    def trial(kept: ResultFolder, one: result_folder.Trial, options: object) -> None:
        ran.append(one.key)
        kept.put(one.key, {"created": "", "cases": [], "seconds": 0.0, "extra": []})
        now[0] += 10.0

    monkeypatch.setattr(measure, "_trial", trial)
    monkeypatch.setattr(ResultFolder, "reports", lambda self: None)
    measure.main([str(tmp_path), "--rehearse", "--seconds", "25", "--stages", "eager", "--most", "9"])
    assert len(ran) == 3  # at 0, 10 and 20 seconds
    measure.main([str(tmp_path / "b"), "--rehearse", "--seconds", "0", "--stages", "eager"])
    assert len(ran) == 3


def test_memory_is_measured_only_when_asked_for() -> None:
    parser = measure._parser()
    assert not measure._protocol(parser.parse_args(["out"])).memory
    assert measure._protocol(parser.parse_args(["out", "--memory"])).memory


def test_a_device_that_breaks_ends_the_process_and_the_trial_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = measure.measure

    def broken(cases: Any, *arguments: Any) -> Any:
        if cases[0].failure is None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return real(cases, *arguments)

    monkeypatch.setattr(measure, "measure", broken)
    with pytest.raises(SystemExit) as caught:
        rehearse(tmp_path, "--stages", "eager")
    assert caught.value.code == 3
    monkeypatch.undo()
    assert rehearse(tmp_path, "--stages", "eager") == 0
    (case,) = read_result(tmp_path / "gpu.json")["cases"]
    assert all("CUDA error" in row["reason"] for row in case["rows"])


def test_results_of_two_machines_are_not_mixed(tmp_path: Path) -> None:
    ResultFolder(tmp_path, 1, {"device": "A"})
    ResultFolder(tmp_path, 1, {"device": "A"})
    with pytest.raises(UsageError, match="another machine"):
        ResultFolder(tmp_path, 1, {"device": "B"})


@pytest.mark.parametrize("arguments", [["--stages", "egaer"], ["--only", "resnet5"], []])
def test_what_there_is_not_is_said_at_once(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        measure.main([str(tmp_path / "out"), *arguments])
    assert ("choose of" if arguments else "--rehearse runs all of it") in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_torch_alone_is_enough_and_rows_of_onnx_say_what_they_lack(tmp_path: Path) -> None:
    """As a source tree, with what a machine without a network lacks kept from being imported."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "for name in ('onnx_graphsurgeon', 'onnxscript', 'pytest', 'openvino'):\n"
        "    sys.modules[name] = None\n"
    )
    out = tmp_path / "out"
    command = [
        sys.executable,
        str(ROOT / "tools" / "gpu" / "measure.py"),
        str(out),
        "--rehearse",
        "--most",
        "1",
    ]
    done = subprocess.run(
        [*command, "--stages", "proof,eager,onnxruntime", "--seconds", "300"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT / 'src'}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = read_result(out / "gpu.json")["cases"]
    assert {row["status"] for row in first["rows"]} == {"measured"}
    assert {row["status"] for row in second["rows"]} == {"not measured"}
    assert all("pip install onnx" in row["reason"] for row in second["rows"])  # onnxscript, onnx_graphsurgeon


@pytest.mark.slow
def test_the_whole_rehearsal(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "tools" / "gpu" / "measure.py"),
        str(tmp_path),
        "--rehearse",
        "--most",
        "1",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [*command, "--seconds", "500"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    value = read_result(tmp_path / "gpu.json")
    (compiled,) = [case for case in value["cases"] if "compile" in case["rows"][0]["runtime"]]
    assert {row["status"] for row in compiled["rows"]} == {"measured"}
    assert "failed" not in json.loads((tmp_path / "facts.json").read_text())


class Shared(Residual):
    """The second convolution is read twice, and the shortcut is what is overwritten."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.conv1(x)
        z = torch.relu(y) + y
        return torch.relu(z.add_(self.conv2(x)))


def test_an_epilogue_is_only_where_nobody_else_reads_or_is_overwritten() -> None:
    x = torch.randn(2, 3, 16, 16)
    for kind, sites in ((Residual, 3), (Shared, 1)):
        module = randomised(kind())
        from convbn.fuse.fold import fold

        folded: Any = fold(torch.export.export(module, (x,))).model.module(check_guards=False)
        found, count = cudnn_epilogues(copy.deepcopy(folded))
        assert count == sites
        assert torch.allclose(found(x), module(x), atol=1e-5)


def test_the_documents_say_what_the_committed_results_do() -> None:
    results = page.found(ROOT / "docs" / "bench")
    assert page.page(results) == (ROOT / "docs" / "gpu.md").read_text()
    readme = (ROOT / "README.md").read_text()
    assert page.START in readme
    assert page.with_claim(readme, results) == readme
    drawn, place = page.picture(results), ROOT / "docs" / "img" / "gpu.svg"
    assert place.read_text() == drawn if drawn else not place.exists()


def test_a_result_becomes_table_picture_and_sentence(rehearsed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    # The rehearsal's numbers under the names that they would have on a GPU.
    (out / "gpu.json").write_text((rehearsed / "gpu.json").read_text().replace('"torch-cpu"', '"torch-cuda"'))
    (out / "facts.json").write_text((rehearsed / "facts.json").read_text())
    for name in ("docs/bench", "docs/img"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "README.md").write_text(f"before\n{page.START}\nold\n{page.END}\nafter\n")
    page.main(["--root", str(tmp_path), "--take", str(out), "tiny"])
    (row,) = [
        row
        for case in read_result(tmp_path / "docs" / "bench" / "gpu-tiny.json")["cases"]
        for row in case["rows"]
        if (row["runtime"], row["side"]) == ("torch-cuda", "folded")
    ]
    ratio = row["ratio"]
    told = f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
    text = (tmp_path / "docs" / "gpu.md").read_text()
    assert told in text
    assert "A call of `nn.Identity`" in text
    assert "img/gpu.svg" in text
    assert "tensorrt-rtx" in text.partition("Slower, failed or not measured")[2]
    assert f">{ratio['median']:.3f}</text>" in (tmp_path / "docs" / "img" / "gpu.svg").read_text()
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("before\n")
    assert readme.endswith("after\n")
    assert "old" not in readme.replace("folded", "")
    assert "`torch-cuda`, fp32, batch 1" in readme or page.NOT_MEASURED in readme
