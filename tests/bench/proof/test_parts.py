"""What the local proof is made of: parts of models, what is claimed of them, bounds, layers, modules."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from support.graphs import batchnorm, batchnorm_parameters, model, random
from torch import nn

import convbn
from convbn.bench.equivalence.compare import compare
from convbn.bench.proof.claims import align, changed_values
from convbn.bench.proof.gaps import Bound, gap_of, layer_bound, noise_bound, spoil_of
from convbn.bench.proof.graph.dataflow import COMPUTED, Dataflow
from convbn.bench.proof.graph.execution import Runner, in_float64
from convbn.bench.proof.graph.whole import Whole
from convbn.bench.proof.prove import FoldPlan
from convbn.bench.proof.regions import linear_layer, regions_of
from convbn.cli import main
from convbn.errors import CheckFailedError, UsageError
from convbn.proof import verified


def chain() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        batchnorm("c", "b"),
        helper.make_node("Relu", ["b"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "u"], ["y"], name="last"),
    ]
    held = {"w": random(6, 3, 3, 3), "u": random(2, 6, 1, 1, seed=5), **batchnorm_parameters(6)}
    return model(nodes, {"x": [2, 3, 8, 8]}, ["y"], held)


def test_a_part_reads_what_is_cut_and_gives_it_under_another_name() -> None:
    flow = Dataflow(chain())
    part = flow.part(["b", "y"], {"b", "x"})
    assert set(part.feeds) == {"x", "b"}
    assert [value.name for value in part.model.graph.output] == ["b" + COMPUTED, "y"]
    x, b = random(2, 3, 8, 8), random(2, 6, 6, 6, seed=9)
    for value in part.model.graph.input:
        value.CopyFrom(helper.make_tensor_value_info(value.name, 1, {"x": x, "b": b}[value.name].shape))
    given = Runner(part.model, "part").run({"x": x, "b": b})
    whole = Whole(chain(), "whole")
    own = whole.values({"x": x}, ["b"])
    np.testing.assert_array_equal(given["b" + COMPUTED], own["b"])
    assert np.abs(given["y"] - own["y"]).max() > 0.1  # of another b


def test_a_file_gives_its_values_without_its_weights_being_read(tmp_path: Path) -> None:
    built, feeds = chain(), {"x": random(2, 3, 8, 8)}
    expected = Whole(built, "a").values(feeds, ["b"])["b"]
    onnx.save(built, tmp_path / "m.onnx")
    onnx.save(built, tmp_path / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    for name in ("m.onnx", "e.onnx"):
        with Whole(tmp_path / name, "a") as whole:
            np.testing.assert_array_equal(whole.values(feeds, ["b"])["b"], expected)


def test_what_stands_between_the_nodes_of_a_merge_has_changed_and_nothing_else() -> None:
    flow = Dataflow(chain())
    assert changed_values(flow, [], []) == set()
    assert changed_values(flow, ["c"], []) == {"c"}
    assert changed_values(flow, [], [("conv", "relu")]) == {"c", "b"}
    assert changed_values(flow, ["y"], []) == set()  # an output never is
    assert changed_values(flow, [], [("nobody",)]) is None


def test_claims_follow_from_the_two_models_and_the_plan() -> None:
    folded = convbn.fuse(chain(), options=convbn.FuseOptions(verify=False)).model
    a, b = Dataflow(chain()), Dataflow(folded)
    alignment = align(a, b, {"c"})
    assert [(claim.original, claim.binding) for claim in alignment.claims] == [("b", True)]
    assert alignment.same["r"] == "r"  # a Relu of the same is the same
    (region,) = regions_of(b, alignment)
    assert region.layer is not None
    assert len(region.nodes) == 1
    # Of nothing known, a value that gives another is given up and the region grows to where it is the same again.
    grown = align(a, b, None, given_up={"b", "r"})
    assert [(claim.original, claim.binding) for claim in grown.claims] == [("y", True)]
    assert len(regions_of(b, grown)[0].nodes) == 3


@pytest.mark.parametrize(
    ("node", "weight", "norms"),
    [
        (helper.make_node("Conv", ["x", "w"], ["y"]), np.full((2, 3, 1, 1), 2.0), [12**0.5] * 2),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1, alpha=2.0), np.ones((2, 4)), [4.0, 4.0]),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), np.diag([3.0, 4.0]), [3.0, 4.0]),
        (
            helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=2),
            np.arange(1.0, 5).reshape(4, 1, 1, 1),
            [5**0.5, 5.0],
        ),
    ],
)
def test_norms_are_those_of_the_output_channels(
    node: onnx.NodeProto, weight: np.ndarray, norms: list[float]
) -> None:
    graph = helper.make_graph([node], "g", [], [], [numpy_helper.from_array(weight.astype(np.float32), "w")])
    layer = linear_layer(Dataflow(helper.make_model(graph)), 0)
    assert layer is not None
    np.testing.assert_allclose(layer.norms, norms, rtol=1e-6)


def test_a_bias_of_a_million_does_not_hide_a_scale() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 3, 8, 8)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "t"], ["y"])],
        "g",
        [],
        [],
        [
            numpy_helper.from_array(random(4, 3, 1, 1), "w"),
            numpy_helper.from_array(np.full(4, 1e6, np.float32), "t"),
        ],
    )
    layer = linear_layer(Dataflow(helper.make_model(graph)), 0)
    assert layer is not None
    bound = layer_bound(layer, x, 2.0**-23, sums=False)
    exact = np.einsum(
        "oi,nihw->nohw", random(4, 3, 1, 1)[:, :, 0, 0].astype(np.float64), x.astype(np.float64)
    )
    assert gap_of(exact + 1e6, exact + 1e6 + 0.03, bound, layer).ok  # the stored bias is rounded
    assert not gap_of(exact + 1e6, exact * 1.0001 + 1e6, bound, layer).ok
    assert gap_of(exact + 1e6, exact + 1e6, bound, layer).sight > 1


def test_a_gap_is_infinite_where_nan_or_shapes_differ() -> None:
    bound = Bound(np.ones(2), np.ones(2), 1)
    a = np.zeros((1, 2, 3))
    other = a.copy()
    other[0, 1, 2] = np.nan
    assert not gap_of(a, other, bound).ok
    assert not gap_of(a, a[:, :, :2], bound).ok
    assert gap_of(other, other, bound).ok


def test_integers_may_differ_as_often_as_rounding_makes_them() -> None:
    base = np.zeros(1000, np.int64)
    moved = base.copy()
    moved[:10] = 1
    wrong = base.copy()
    wrong[:100] = 1
    bound = noise_bound(base, [moved, base], 1.0, 0.0)
    assert gap_of(base, moved, bound).ok
    assert not gap_of(base, wrong, bound).ok


def test_the_deliberate_error_is_one_that_the_type_can_tell() -> None:
    assert spoil_of(np.dtype(np.float32)) == 0.01
    assert spoil_of(np.dtype(np.float16)) == 16 * 2.0**-10


def test_float64_of_a_float32_graph() -> None:
    third = np.array([1 / 3], np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=1),
        helper.make_node("Div", ["h", "k"], ["y"]),
    ]
    (given,) = in_float64(
        model(nodes, {"x": [1]}, ["y"], {"k": np.array([3], np.float32)}), [{"x": third}]
    ) or [{}]
    assert given["y"].dtype == np.float64
    assert given["y"][0] == np.float64(third[0]) / 3


def spoilt(built: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(built)
    for tensor in other.graph.initializer:
        if tensor.name == "w":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), "w"))
    return other


def test_the_first_value_that_differs_is_named() -> None:
    found = convbn.compare_layers(chain(), spoilt(chain(), 1.01))
    assert found.first is not None
    assert (found.first.value, found.first.op) == ("c", "Conv")
    assert found.first.error == pytest.approx(0.01, rel=0.01)
    assert [row.same for row in found.rows] == [False] * 4


def test_what_a_fold_changed_on_purpose_is_no_difference() -> None:
    folded = convbn.fuse(chain()).model
    found = convbn.compare_layers(chain(), folded)
    assert found.first is None
    assert all(row.same for row in found.rows)
    with pytest.raises(UsageError, match="ONNX"):
        convbn.compare_layers(nn.ReLU(), nn.ReLU())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv(x)) - 1e3)


EXAMPLE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_layer_of_a_module_is_seen_behind_what_hides_it() -> None:
    report = convbn.fuse(Block().eval(), EXAMPLE).report
    assert report.verify["proof"]["folds"] == [{"name": "norm", "how": "float64"}]
    folded = convbn.fuse(Block().eval(), EXAMPLE).model
    with torch.no_grad():
        folded.conv.weight.mul_(1.01)
    answer = compare(Block().eval(), folded, example_inputs=(EXAMPLE,), plan=FoldPlan((("norm", ("conv",)),)))
    assert answer.status == "different"
    assert "'norm'" in answer.reason


class Masked(nn.Module):
    """One BatchNorm whose branch counts, and one whose branch does not."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.hidden = Block(), Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.seen.norm(self.seen.conv(x)) + 0 * self.hidden.norm(self.hidden.conv(x))


def test_folds_of_a_program_are_looked_for_in_its_outputs() -> None:
    program = torch.export.export(Masked().eval(), (EXAMPLE,))
    result = convbn.fuse(program)
    proof = result.report.verify["proof"]
    assert {fold["name"]: fold["how"] for fold in proof["folds"]} == {
        "seen.norm": "the outputs",
        "hidden.norm": None,
    }
    assert proof["sentence"].startswith(
        "1 of 2 folds shown by an error of 1 % in each, which the outputs tell;"
    )
    # The result that is handed back is not the one that was put off.
    again = convbn.fuse(program, options=convbn.FuseOptions(verify=False)).model
    for name, value in again.state_dict.items():
        assert torch.equal(value, result.model.state_dict[name])


def test_what_is_compared_as_a_whole_alone_says_so() -> None:
    module = Block().eval()
    exported = convbn.export_onnx(module, EXAMPLE - 1e4)
    answer = compare(module, exported, example_inputs=(EXAMPLE - 1e4,), plan=FoldPlan((("norm", ("conv",)),)))
    assert answer.proof is not None
    assert answer.proof.sentence == "outputs compared end to end on 2 inputs; no fold was judged by itself"
    assert answer.proof.not_shown == ("norm",)


def test_a_module_that_comes_back_in_training_mode_is_different() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout()).eval()
    other = copy.deepcopy(module)
    other[1].train()
    answer = compare(module, other, example_inputs=(EXAMPLE,), plan=FoldPlan())
    assert answer.status == "different"
    assert "training mode" in answer.reason


@dataclasses.dataclass
class Found:
    scores: torch.Tensor
    boxes: list[torch.Tensor]


class Detector(nn.Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> Found:
        return Found(x.sum(1), [x * self.factor])


def test_outputs_that_are_objects_are_compared_by_their_fields() -> None:
    answer = compare(Detector(), Detector(), example_inputs=(EXAMPLE,))
    assert [output.name for output in answer.outputs] == ["output.scores", "output.boxes[0]"]
    assert answer.equal
    assert not compare(Detector(), Detector(1.01), example_inputs=(EXAMPLE,)).equal


def test_strict_lets_no_fold_pass_that_nothing_saw(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="seen.conv"),
        batchnorm("c", "b", prefix="seen"),
        helper.make_node("Mul", ["x", "zero"], ["n"], name="none"),
        helper.make_node("Conv", ["n", "w"], ["d"], name="conv"),
        batchnorm("d", "e", prefix="hidden"),
        helper.make_node("Concat", ["b", "e"], ["y"], axis=1, name="concat"),
    ]
    held = {
        "w": random(6, 3, 1, 1),
        "zero": np.zeros(1, np.float32),
        **batchnorm_parameters(6, prefix="seen"),
        **batchnorm_parameters(6, prefix="hidden", seed=4),
    }
    path = tmp_path / "m.onnx"
    onnx.save(model(nodes, {"x": [1, 3, 8, 8]}, ["y"], held), path)
    report = convbn.fuse(path).report
    assert {fold["name"]: fold["how"] for fold in report.verify["proof"]["folds"]} == {
        "seen": "float64",
        "hidden": None,
    }
    assert main(["fuse", str(path), "-o", str(tmp_path / "o.onnx"), "--strict"]) == 1
    assert not (tmp_path / "o.onnx").exists()
    assert main(["fuse", str(path), "-o", str(tmp_path / "o.onnx")]) == 0


def test_a_model_that_rounding_moves_far_is_judged_beside_its_own_noise() -> None:
    class Steep(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sin(1e4 * self.factor * x)

    same = compare(Steep(1.0), Steep(1.0 + 2e-7), example_inputs=(EXAMPLE,))
    assert same.equal
    assert same.outputs[0].noise is not None
    assert same.outputs[0].noisy
    assert compare(Steep(1.0), Steep(1.001), example_inputs=(EXAMPLE,)).status == "different"


def test_what_is_refused_says_where_and_by_how_much() -> None:
    result = convbn.fuse(chain())
    with pytest.raises(CheckFailedError, match=r"value 'b' is computed otherwise.*off by 0\.0\d+ there"):
        verified(result.report, chain(), spoilt(result.model, 1.01))
