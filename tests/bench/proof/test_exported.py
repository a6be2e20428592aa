"""A module that becomes a folded ONNX graph: every fold by itself, and the export by its outputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx import ModelProto, numpy_helper
from torch import nn

import convbn
from convbn.bench.equivalence.compare import Equality, compare
from convbn.cli import main
from convbn.errors import CheckFailedError
from convbn.export.torch.save import export_onnx
from convbn.fuse.algebra.affine import Affine
from convbn.fuse.fold import fold
from convbn.fuse.plan import maps
from convbn.proof import plan_of

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
HOW = "2 of 2 folds shown on the exported original's own values in float64; outputs compared end to end on 2 inputs"


class Masked(nn.Module):
    """Two branches, of which the outputs show one."""

    def __init__(self, mask: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.seen = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
        self.hidden = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
        for norm in (self.seen[1], self.hidden[1]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
        self.mask = mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # A mask that depends on x, or it would go into the weights.
        return self.seen(x) + (self.mask + torch.relu(-x.abs().mean())) * self.hidden(x)


def off(model: ModelProto, number: int) -> ModelProto:
    """The weight of one convolution 1 % off."""
    wrong = ModelProto()
    wrong.CopyFrom(model)
    convolutions = [node for node in wrong.graph.node if node.op_type == "Conv"]
    for tensor in wrong.graph.initializer:
        if tensor.name == convolutions[number].input[1]:
            tensor.CopyFrom(numpy_helper.from_array(1.01 * numpy_helper.to_array(tensor), tensor.name))
    return wrong


def judged(module: nn.Module, change: Callable[[ModelProto], ModelProto] = lambda model: model) -> Equality:
    exported = export_onnx(Masked().eval(), (IMAGE,))
    folding = fold(exported)
    return compare(
        module, change(folding.model), example_inputs=(IMAGE,), plan=plan_of(folding.report, exported)
    )


def test_every_fold_is_judged_by_itself_and_the_export_by_its_outputs() -> None:
    answer = judged(Masked().eval())
    assert answer.equal
    assert answer.proof is not None
    assert answer.proof.sentence == HOW
    assert answer.proof.regions == 2
    assert answer.runtime == "torch-cpu against onnxruntime-cpu@off"


@pytest.mark.parametrize("number", [0, 1])
def test_a_fold_that_the_outputs_do_not_show_is_found(number: int) -> None:
    answer = judged(Masked().eval(), lambda model: off(model, number))
    assert answer.status == "different"
    assert answer.proof is not None
    assert len(answer.proof.wrong) == 1


def test_the_graph_of_another_module_is_found_though_its_folds_are_right() -> None:
    answer = judged(Masked(seed=5).eval())
    assert answer.status == "different"
    assert answer.proof is not None
    assert answer.proof.wrong == ()
    assert answer.proof.not_shown == ()


def test_where_the_outputs_prove_nothing_nothing_else_tells_of_the_export() -> None:
    class Dead(Masked):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(super().forward(x) - 1e3)

    with pytest.raises(CheckFailedError, match="equality was not shown"):
        convbn.export_onnx(Dead().eval(), IMAGE)


WRONG: dict[str, Callable[..., tuple[Any, Any]]] = {
    "sign of the mean": lambda g, b, m, v, s, t: (s, b + m * s),
    "scale 1 % off": lambda g, b, m, v, s, t: (s * 1.01, t),
    "shift lost": lambda g, b, m, v, s, t: (s, t * 0),
}


@pytest.mark.parametrize("name", WRONG)
def test_no_wrong_algebra_is_exported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the branch that counts for nothing alone, so that no output tells."""
    right, calls = maps.from_batchnorm, []
    hidden = Masked().hidden[1]

    def from_batchnorm(gamma: Any, beta: Any, mean: Any, variance: Any, epsilon: float) -> Any:
        made = right(gamma, beta, mean, variance, epsilon)
        if not isinstance(made, Affine) or not (mean == hidden.running_mean.numpy()).all():
            return made
        calls.append(name)
        return Affine(*WRONG[name](gamma, beta, mean, variance, made.scale.copy(), made.shift.copy()))

    monkeypatch.setattr(maps, "from_batchnorm", from_batchnorm)
    with pytest.raises(
        CheckFailedError, match=r"the folded model is not equal: value '.*' is computed otherwise"
    ):
        convbn.export_onnx(Masked().eval(), IMAGE)
    assert calls


def test_an_export_tells_how_far_its_proof_is() -> None:
    told: list[str] = []
    module = Masked(mask=1.0).eval()
    folded = convbn.export_onnx(module, IMAGE, progress=lambda phase, done, steps: told.append(phase))
    assert [node.op_type for node in folded.graph.node].count("BatchNormalization") == 0
    assert told[:3] == ["original", "noise of the original", "result"]
    assert {"regions", "regions in float64"} <= set(told)
    # What is not verified is not run, and the module is what it was.
    convbn.export_onnx(module, IMAGE, options=convbn.FuseOptions(verify=False), progress=lambda *_: 1 / 0)
    assert not module.training


def test_commands_judge_every_fold_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "masked.py").write_text(
        "import torch\n"
        "class Masked(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.seen = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6))\n"
        "        self.hidden = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6))\n"
        "    def forward(self, x):\n"
        "        return self.seen(x) + torch.relu(-x.abs().mean()) * self.hidden(x)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(Masked().state_dict(), tmp_path / "m.pth")
    given = [str(tmp_path / "m.pth"), "--arch", "masked:Masked", "--input-shape", "x:1x3x8x8"]
    for verb in ("fuse", "export"):
        report = tmp_path / f"{verb}.json"
        assert (
            main([verb, *given, "-o", str(tmp_path / f"{verb}.onnx"), "--json", str(report), "--strict"]) == 0
        )
        assert json.loads(report.read_text())["verify"]["proof"]["sentence"] == HOW
