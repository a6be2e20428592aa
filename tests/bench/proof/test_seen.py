"""What counts as seen: in a body, behind a call of another name, in a layer that is called twice."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from support.graphs import batchnorm, batchnorm_parameters, model, random
from torch import nn

import convbn
from convbn.bench.equivalence.compare import compare
from convbn.bench.proof.graph.dataflow import Dataflow
from convbn.bench.proof.prove import FoldPlan, Shown
from convbn.errors import CheckFailedError


def node(op: str, *names: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, list(names[:-1]), [names[-1]], name=f"{op}.{names[-1]}", **attributes)


def hows(report: convbn.Report) -> dict[str, str | None]:
    return {fold["name"]: fold["how"] for fold in report.verify["proof"]["folds"]}


def chosen(*, taken: bool) -> onnx.ModelProto:
    """A BatchNorm in a branch, whose convolution has the weights of the other branch, and one in front of it."""
    value = helper.make_tensor_value_info
    then = [helper.make_node("Conv", ["r", "w"], ["c"], name="inner"), batchnorm("c", "t", prefix="branch")]
    other = [helper.make_node("Conv", ["r", "w"], ["e"], name="plain")]
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["d"], name="conv"),
        batchnorm("d", "n", prefix="front"),
        node("Relu", "n", "r"),
        node("ReduceMax", "r", "most", keepdims=0),
        node("Greater" if taken else "Less", "most", "k", "m"),
        helper.make_node(
            "If",
            ["m"],
            ["y"],
            name="if",
            then_branch=helper.make_graph(then, "then", [], [value("t", 1, None)]),
            else_branch=helper.make_graph(other, "else", [], [value("e", 1, None)]),
        ),
    ]
    held = {"k": np.float32(-1.0).reshape(()), "v": random(4, 3, 1, 1, seed=7), "w": random(6, 4, 3, 3)}
    held |= batchnorm_parameters(6, prefix="branch") | batchnorm_parameters(4, prefix="front", seed=5)
    return model(nodes, {"x": [1, 3, 8, 8]}, ["y"], held)


def test_a_branch_that_is_not_taken_shows_no_fold() -> None:
    """Both branches read the same weights; an error in those of the branch that runs says nothing of the other."""
    assert hows(convbn.fuse(chosen(taken=True)).report) == {"front": "float64", "branch": "float64"}
    report = convbn.fuse(chosen(taken=False)).report
    assert hows(report) == {"front": "float64", "branch": None}
    assert report.batchnorm.after == 0


def test_a_body_is_read_by_its_own_nodes() -> None:
    flow = Dataflow(chosen(taken=True))
    place = flow.report_names()["inner"]
    assert place == flow.report_names()["if"] == 5
    assert flow.stored_by(place, ("inner",)) == ("r", "w")
    assert flow.stored_by(place, ("inner", "branch", "conv"))[:3] == ("r", "w", "c")
    assert flow.stored_by(place, ("conv",)) == flow.reads[place]
    assert flow.stored_by(0, ("inner",)) == ("x", "v")


@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_weights_whose_squares_are_no_numbers_are_bounded(size: float) -> None:
    """(1e-30)² is 0 in float32 and (1e25)² is infinite."""
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["c"], name="conv", group=2), batchnorm("c", "y")]
    held = {"w": np.float32(size) * random(4, 3, 3, 3), **batchnorm_parameters(6)}
    for name in ("bn.beta", "bn.mean"):
        held[name] = (held[name] * size).astype(np.float32)
    assert hows(convbn.fuse(model(nodes, {"x": [1, 4, 8, 8]}, ["y"], held)).report)["bn"] is not None


def test_a_layer_in_a_function_is_found_behind_it() -> None:
    """Written out, its nodes have other names in the proof than in the fold; what stands behind has gone as well."""
    body = [
        helper.make_node("Conv", ["a", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["o"]),
    ]
    function = helper.make_function(
        "own", "Block", ["a", "w", "g", "b", "m", "v"], ["o"], body, [helper.make_opsetid("", 20)]
    )
    names = [f"bn.{name}" for name in ("gamma", "beta", "mean", "var")]
    nodes = [
        helper.make_node("Block", ["x", "w", *names], ["n"], domain="own", name="block"),
        node("Sub", "n", "k", "s"),
        node("Relu", "s", "y"),
    ]
    held = {"w": random(6, 3, 3, 3), "k": np.full(1, 1e4, np.float32), **batchnorm_parameters(6)}
    built = model(nodes, {"x": [1, 3, 8, 8]}, ["y"], held, functions=[function])
    assert list(hows(convbn.fuse(built).report).values()) == ["float64"]


def test_what_rounding_chooses_is_judged_at_what_the_choice_reads() -> None:
    def larger(factor: float) -> onnx.ModelProto:
        nodes = [
            node("Mul", "x", "k", "z"),
            node("Concat", "x", "z", "both", axis=1),
            node("ArgMax", "both", "y", axis=1, keepdims=0),
        ]
        built = model(nodes, {"x": [4, 1]}, ["y"], {"k": np.full(1, factor, np.float32)})
        built.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
        return built

    inputs = [{"x": np.float32([[1], [2], [-3], [4]])}]
    for plan in (None, FoldPlan()):
        answer = compare(larger(1.0), larger(1.0 + 2e-7), inputs=inputs, plan=plan)
        assert answer.equal
        assert "what the ArgMax before output 'y' reads" in answer.reason
    assert compare(larger(1.0), larger(1.01), inputs=inputs).status == "different"


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        for name, buffer in self.norm.named_buffers():
            if name != "num_batches_tracked":
                buffer.uniform_(0.5, 2)
        self.eval()

    def called(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.norm(self.conv(x))
        return made


class Twice(Layer):
    """One layer that is called twice, and that no output shows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.called(x) + self.called(2 * x) - 1e4) + x.mean()


class Casting(Layer):
    """It casts and makes tensors by itself, which float64 survives."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.called(x.half().float() @ torch.eye(8)) - 1e4) + x.mean()


class Narrow(Layer):
    """It reads an array of float32, and so does not run in float64."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.called(x @ torch.from_numpy(np.eye(8, dtype=np.float32))) - 1e4) + x.mean()


class Choosing(Layer):
    """Of its outputs none is a float, and its layer is called with arguments that no hook is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.norm(self.conv(x) + 0.0)).argmax(1)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Twice, {"norm": "float64", "norm (call 2)": "float64"}),
        (Casting, {"norm": "float64"}),
        (Narrow, {"norm": "float32"}),
    ],
)
def test_layers_are_judged_call_by_call_in_the_type_that_they_run_in(
    module: type[Layer], expected: dict[str, str]
) -> None:
    result = convbn.fuse(module(), IMAGE)
    assert hows(result.report) == expected
    wrong = copy.deepcopy(result.model)
    with torch.no_grad():
        wrong.conv.weight.mul_(1.01)
    plan = FoldPlan(tuple((fold.name, fold.into) for fold in result.report.folded))
    answer = compare(module(), wrong, example_inputs=(IMAGE,), plan=plan)
    assert answer.status == "different"
    assert answer.proof is not None
    assert len(answer.proof.wrong) == len(expected)


def test_float64_settles_no_choice_that_differs() -> None:
    module = Choosing()
    folded = copy.deepcopy(module)
    folded.norm = nn.Identity()  # type: ignore[assignment]  # takes its place
    plan = FoldPlan((("norm", ("conv",)),))
    assert compare(module, folded.eval(), example_inputs=(IMAGE,), plan=plan).status == "different"


def test_a_layer_of_two_batchnorms_is_none_that_is_judged_by_itself() -> None:
    class Two(Layer):
        def __init__(self) -> None:
            super().__init__()
            self.other = copy.deepcopy(self.norm)

    plan = FoldPlan((("norm", ("conv",)), ("other", ("conv",))))
    from convbn.bench.proof.torch.modules import prove_layers

    module = Two()
    module.forward = lambda x: module.called(x)  # type: ignore[method-assign]  # is what runs
    local = prove_layers(module, module, plan, {"x": IMAGE.numpy()}, lambda m, feeds: [])
    assert local is not None
    assert local.outcomes == ()


@pytest.mark.filterwarnings("error")
def test_an_example_without_numbers_shows_nothing_and_warns_of_nothing() -> None:
    with pytest.raises(CheckFailedError, match="no comparison could see a fold"):
        convbn.fuse(Casting(), torch.zeros(0, 3, 8, 8))


def folded_by_hand(
    module: nn.Module, conv: str = "conv", norm: str = "norm", factor: float = 1.0
) -> nn.Module:
    """The BatchNorm in ``norm(factor · conv(x))``, taken into the layer before the factor."""
    made = copy.deepcopy(module)
    layer, other = getattr(made, conv), getattr(made, norm)
    with torch.no_grad():
        scale = other.weight.double() / torch.sqrt(other.running_var.double() + other.eps)
        shift = other.bias.double() - other.running_mean.double() * scale
        layer.bias.copy_(layer.bias.double() * scale + shift / factor)
        layer.weight.copy_(layer.weight.double() * scale[:, None, None, None])
    setattr(made, norm, nn.Identity())
    return made.eval()


@pytest.mark.parametrize(
    "between", [lambda y: y.mul_(4), lambda y: y * 2 * 2, lambda y: y.relu_() * 4 - y.mul_(0)]
)
def test_memory_that_holds_other_numbers_by_then_is_no_layer_before_its_batchnorm(
    between: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    class Between(Layer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(between(self.conv(x)))  # type: ignore[no-any-return]

    module = Between()
    with torch.no_grad():
        assert module.conv.bias is not None
        module.conv.bias.fill_(9)  # nothing is below zero
    plan = FoldPlan((("norm", ("conv",)),))
    folded = folded_by_hand(module, factor=4.0)
    answer = compare(module, folded, example_inputs=(IMAGE,), plan=plan)
    assert answer.equal, answer.reason
    assert answer.proof is not None
    assert answer.proof.folds == (Shown("norm", "the outputs"),)
    with torch.no_grad():
        folded.conv.weight.mul_(1.01)
    assert compare(module, folded, example_inputs=(IMAGE,), plan=plan).status == "different"


class Steep(Layer):
    """Its outputs differ in float32 by what no input moves them by; and it has a branch that no output shows."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.other = copy.deepcopy(self.conv), copy.deepcopy(self.norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = torch.sin(4e3 * self.called(torch.sign(x)))
        return seen + 0 * self.other(self.hidden(x) + 0.0)


def test_a_fold_is_not_seen_by_outputs_that_differ_anyway() -> None:
    module = Steep()
    folded = folded_by_hand(folded_by_hand(module), "hidden", "other")
    plan = FoldPlan((("norm", ("conv",)), ("other", ("hidden",))))
    answer = compare(module, folded, example_inputs=(IMAGE,), plan=plan)
    assert answer.equal, answer.reason
    assert not answer.outputs[0].ok  # float64 says so
    assert answer.proof is not None
    assert answer.proof.folds == (Shown("norm", "float64"), Shown("other", None))


class Tied(Layer):
    """Which of two is the larger, in forty places of four thousand by their rounding alone, as no input moves it."""

    def __init__(self) -> None:
        super().__init__()
        level = self.called(torch.sign(TILES))[:, :1].detach()
        self.level = nn.Parameter(level + 0.005 * level.abs())
        self.level.data.flatten()[:40] = level.flatten()[:40]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.called(torch.sign(x))[:, :1], self.level], 1).argmax(1)


TILES = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def test_ties_of_a_program_are_settled_in_float64() -> None:
    with torch.no_grad():
        program = torch.export.export(Tied().eval(), (TILES,))
    result = convbn.fuse(program, inputs=(TILES,))
    assert "in float64" in result.report.verify["reason"]
    assert hows(result.report) == {"norm": "the outputs"}
    wrong = copy.deepcopy(result.model)
    with torch.no_grad():
        next(p for name, p in wrong.named_parameters() if name.endswith("conv.weight")).mul_(1.01)
    plan = FoldPlan((("norm", ("conv",)),))
    assert convbn.verify(program, wrong, inputs=(TILES,), plan=plan).status == "different"


class ByTensor(Layer):
    """A convolution that is called by its tensors, and an input that is given by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3, 1, 1, generator=torch.Generator().manual_seed(3)))

    def forward(self, *, image: torch.Tensor, masked: bool) -> torch.Tensor:
        made: torch.Tensor = self.norm(torch.nn.functional.conv2d(image, self.weight))
        return 0 * made + self.called(image) if masked else made


@pytest.mark.parametrize("masked", [False, True])
def test_layers_that_a_program_calls_by_their_tensors_are_looked_for_too(masked: bool) -> None:
    program = torch.export.export(ByTensor(), (), {"image": IMAGE, "masked": masked})
    found = sorted(str(how) for how in hows(convbn.fuse(program).report).values())
    assert found == (["None", "the outputs"] if masked else ["the outputs"])
