"""What decides a verdict in the proof: what counts as the same, what may be off by how much, what counts as seen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from support.graphs import batchnorm, batchnorm_parameters, model, random
from torch import nn

import convbn
from convbn.bench.equivalence.compare import compare
from convbn.bench.equivalence.reference_run import execute
from convbn.bench.models.inputs import Array, Feeds
from convbn.bench.proof import local
from convbn.bench.proof.claims import align
from convbn.bench.proof.gaps import layer_bound
from convbn.bench.proof.graph.dataflow import Dataflow
from convbn.bench.proof.graph.execution import in_float64
from convbn.bench.proof.prove import FoldPlan
from convbn.bench.proof.regions import LinearLayer, linear_layer
from convbn.bench.proof.torch.modules import settled_in_float64


def stored(name: str, array: Any, *, raw: bool = True) -> onnx.TensorProto:
    held = np.asarray(array, np.float32)
    if raw:
        return numpy_helper.from_array(held, name)
    return helper.make_tensor(name, onnx.TensorProto.FLOAT, held.shape, held.flatten().tolist())


def flow(node: onnx.NodeProto, *tensors: onnx.TensorProto) -> Dataflow:
    value = helper.make_tensor_value_info
    graph = helper.make_graph([node], "g", [value("x", 1, None)], [value("y", 1, None)], list(tensors))
    return Dataflow(helper.make_model(graph))


# What counts as the same.


def claimed(one: onnx.NodeProto, other: onnx.NodeProto, *tensors: tuple[onnx.TensorProto, ...]) -> bool:
    """Whether the second node's output has to be shown; tensors are the first model's and the second's."""
    before, after = tensors or ((), ())
    return bool(align(flow(one, *before), flow(other, *after), set()).claims)


def test_the_same_node_with_another_attribute_is_not_the_same() -> None:
    def leaky(alpha: float) -> onnx.NodeProto:
        return helper.make_node("LeakyRelu", ["x"], ["y"], alpha=alpha)

    assert claimed(leaky(0.1), leaky(0.2))
    assert not claimed(leaky(0.1), leaky(0.1))


def test_an_input_that_is_left_out_is_the_same_as_one_that_is_left_out() -> None:
    clip = helper.make_node("Clip", ["x", "", "k"], ["y"])
    k = (stored("k", 6.0),)
    assert not claimed(clip, clip, k, k)
    lower = helper.make_node("Clip", ["x", "k", ""], ["y"])
    assert claimed(clip, lower, k, k)


@pytest.mark.parametrize("raw", [True, False])
def test_constants_are_the_same_by_type_shape_and_numbers(raw: bool) -> None:
    node = helper.make_node("Mul", ["x", "k"], ["y"])
    one = (stored("k", [[1.0, 2.0]], raw=raw),)
    assert not claimed(node, node, one, (stored("k", [[1.0, 2.0]], raw=raw),))
    assert not claimed(node, node, one, (stored("k", [[1.0, 2.0]], raw=not raw),))
    assert claimed(node, node, one, (stored("k", [[1.0, 2.5]], raw=raw),))
    assert claimed(node, node, one, (stored("k", [[1.0], [2.0]], raw=raw),))  # the same bytes
    assert claimed(node, node, one, (numpy_helper.from_array(np.float32([[1, 2]]).view(np.int32), "k"),))


def test_integers_inside_a_model_have_to_be_identical() -> None:
    def shifted(by: int) -> onnx.ModelProto:
        nodes = [
            helper.make_node("Cast", ["x"], ["i"], to=7),
            helper.make_node("Add", ["i", "k"], ["n"]),
            helper.make_node("Cast", ["n"], ["y"], to=1),
        ]
        return model(nodes, {"x": [2, 3]}, ["y"], {"k": np.int64([1000 + by])})

    same = {row.value: row.same for row in convbn.compare_layers(shifted(0), shifted(1)).rows}
    assert (same["i"], same["n"]) == (True, False)


# What may be off by how much.


def layer(node: onnx.NodeProto, *tensors: onnx.TensorProto) -> LinearLayer | None:
    return linear_layer(flow(node, *tensors), 0)


def test_a_layer_is_read_as_its_operator_defines_it() -> None:
    w = np.arange(6.0).reshape(2, 3)  # not square
    rows = np.linalg.norm(w, axis=0)
    product = layer(helper.make_node("MatMul", ["x", "w"], ["y"]), stored("w", w))
    assert product is not None
    assert (product.axis, product.terms) == (-1, 2)  # of three dimensions too
    np.testing.assert_allclose(product.norms, rows, rtol=1e-6)
    gemm = helper.make_node("Gemm", ["x", "w", "b"], ["y"], beta=0.5)
    for bias, expected in (([2.0, 4.0, 6.0], [1, 2, 3]), ([8.0], [4, 4, 4])):
        found = layer(gemm, stored("w", w), stored("b", bias))
        assert found is not None
        np.testing.assert_array_equal(found.bias, expected)
    assert layer(gemm, stored("w", w), stored("b", [[1.0, 2, 3], [4, 5, 6]])) is None
    kernel = np.arange(1.0, 13).reshape(2, 3, 1, 2)
    transposed = layer(helper.make_node("ConvTranspose", ["x", "w"], ["y"]), stored("w", kernel))
    assert transposed is not None
    assert transposed.terms == 4
    np.testing.assert_allclose(transposed.norms, np.sqrt((kernel**2).sum((0, 2, 3))), rtol=1e-6)


def test_a_layer_whose_bias_is_computed_is_none() -> None:
    weight = stored("w", np.ones((2, 3, 1, 1)))
    assert layer(helper.make_node("Conv", ["x", "w", "other"], ["y"]), weight) is None
    assert layer(helper.make_node("Conv", ["x", "w", ""], ["y"]), weight) is not None


def test_the_bound_is_the_one_that_is_documented() -> None:
    """``4 (u + ε √K) ‖W_c‖ max|x| + 2 (u + ε) |b_c|``, and without the sums where there are none."""
    eps, norms, bias = 2.0**-23, np.array([3.0, 5.0]), np.array([7.0, -11.0])
    one = LinearLayer("x", norms, bias, 16, 1, np.dtype(np.float32))
    x = np.array([1e-3, -2e-3])
    exact = layer_bound(one, x, eps, sums=False)
    weights = 4 * eps / 2 * norms * 2e-3
    np.testing.assert_allclose(exact.mean, weights + eps * np.abs(bias))
    # And what the mean of many equal numbers is off by.
    np.testing.assert_allclose(exact.rest, 2 * weights + 2.0**-20 * eps * np.abs(bias))
    summed = layer_bound(one, x, eps, sums=True)
    weights = 4 * (eps / 2 + 4 * eps) * norms * 2e-3
    np.testing.assert_allclose(summed.mean, weights + 3 * eps * np.abs(bias))
    np.testing.assert_allclose(summed.rest, 2 * weights + 3 * eps * np.abs(bias))


def cancelling(channels: int = 6) -> Array:
    """Weights of a thousand that cancel each other, so that their rounding is all that is left of a constant."""
    w = 1e3 * np.random.default_rng(0).standard_normal((channels, 3, 1, 1))
    return (w - w.mean(1, keepdims=True)).astype(np.float32)


AROUND_TEN = (10 + 1e-4 * np.random.default_rng(1).standard_normal((2, 3, 8, 8))).astype(np.float32)


def test_a_region_may_move_as_far_as_the_rounding_of_its_weights_moves_it() -> None:
    """A map that goes through a pool makes a region of two nodes, which has no formula of its own.

    Of 64 channels some move by nothing where three weights are moved at random.
    """
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("AveragePool", ["c"], ["p"], name="pool", kernel_shape=[2, 2]),
        batchnorm("p", "y"),
    ]
    built = model(nodes, {"x": [2, 3, 8, 8]}, ["y"], {"w": cancelling(64), **batchnorm_parameters(64)})
    report = convbn.fuse(built, inputs={"x": AROUND_TEN}).report
    assert report.batchnorm.after == 0
    proof = report.verify["proof"]
    assert (report.verify["status"], proof["wrong"]) == ("equal", [])
    assert proof["worst"]["error"] > 4 * 2.0**-23  # more than its last place


def test_constants_in_nodes_are_widened_and_other_numbers_are_left() -> None:
    """A group of 1 and a kernel of 1 have the numbers of FLOAT, and are none."""
    nodes = [
        helper.make_node("Constant", [], ["k"], value=stored("", [0.1])),
        helper.make_node("Mul", ["x", "k"], ["m"]),
        helper.make_node("Conv", ["m", "w"], ["c"], group=1, kernel_shape=[1, 1]),
        helper.make_node("Shape", ["c"], ["s"]),
        helper.make_node("Constant", [], ["i"], value=numpy_helper.from_array(np.int64([2]))),
        helper.make_node("Gather", ["s", "i"], ["h"]),
        helper.make_node("EyeLike", ["e"], ["eye"], dtype=1),
    ]
    built = model(
        nodes, {"x": [1, 1, 2, 2], "e": [2, 2]}, ["c", "h", "eye"], {"w": np.ones((1, 1, 1, 1), np.float32)}
    )
    x = random(1, 1, 2, 2)
    (given,) = in_float64(built, [{"x": x, "e": np.zeros((2, 2), np.float32)}]) or [{}]
    np.testing.assert_array_equal(given["c"], x.astype(np.float64) * np.float64(np.float32(0.1)))
    assert (given["c"].dtype, given["h"].dtype, given["eye"].dtype) == (np.float64, np.int64, np.float64)


# What counts as seen.


def test_every_fold_is_seen_in_its_own_region() -> None:
    nodes: list[onnx.NodeProto] = []
    held: dict[str, Array] = {}
    for i, data in enumerate("xab"):
        nodes += [
            helper.make_node("Conv", [data, f"w{i}"], [f"c{i}"], name=f"conv{i}"),
            batchnorm(f"c{i}", f"n{i}", prefix=f"bn{i}"),
            helper.make_node("Relu", [f"n{i}"], ["aby"[i]], name=f"relu{i}"),
        ]
        held |= {f"w{i}": random(3, 3, 1, 1, seed=i), **batchnorm_parameters(3, prefix=f"bn{i}", seed=i)}
    proof = convbn.fuse(model(nodes, {"x": [1, 3, 8, 8]}, ["y"], held)).report.verify["proof"]
    assert {fold["name"]: fold["how"] for fold in proof["folds"]} == dict.fromkeys(
        ["bn0", "bn1", "bn2"], "float64"
    )


def test_a_shift_of_a_million_lets_no_scale_be_seen_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_CHEAP", 0)
    monkeypatch.setattr(local, "_COSTLY", 0)  # as for a region that is too large for float64
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y")]
    parameters = batchnorm_parameters(4)
    (beta,) = (name for name in parameters if name.endswith(("beta", "bias")))
    parameters[beta] = np.full(4, 1e6, np.float32)
    built = model(nodes, {"x": [1, 3, 8, 8]}, ["y"], {"w": 1e-3 * random(4, 3, 1, 1), **parameters})
    with pytest.raises(convbn.CheckFailedError, match="no comparison could see"):
        convbn.fuse(built)


class Folded(nn.Module):
    """``norm(conv(x))``, or the other way round, with what stands around it."""

    def __init__(self, before: Callable[[Any], Any] = lambda x: x, *, front: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 1)
        self.norm = nn.BatchNorm2d(3 if front else 6)
        self.table = nn.Embedding(5, 3)
        self.before, self.front = before, front
        for name, buffer in self.norm.named_buffers():
            if name != "num_batches_tracked":
                buffer.uniform_(0.5, 2)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(self.table(x).permute(0, 3, 1, 2) if x.dtype == torch.int64 else x)
        return self.conv(self.norm(x)) if self.front else self.norm(self.conv(x))


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def how(module: nn.Module, example: torch.Tensor) -> str | None:
    (fold,) = convbn.fuse(module, example, inputs=(example,)).report.verify["proof"]["folds"]
    found: str | None = fold["how"]
    return found


@pytest.mark.parametrize("front", [False, True])
def test_a_layer_is_judged_with_a_batchnorm_on_either_side(front: bool) -> None:
    assert how(Folded(front=front), IMAGE) == "float64"


def test_integers_stay_integers_where_a_module_runs_in_float64() -> None:
    assert how(Folded(), torch.arange(32).reshape(2, 4, 4) % 5) == "float64"


def test_a_layer_that_is_fed_with_zeros_is_not_seen_by_its_bias() -> None:
    with pytest.raises(convbn.CheckFailedError, match="no comparison could see"):
        convbn.fuse(Folded(lambda x: 0 * x), IMAGE)


def test_a_layer_may_move_as_far_as_the_rounding_of_its_weights_moves_it() -> None:
    module = Folded()
    with torch.no_grad():
        module.conv.weight.copy_(torch.from_numpy(cancelling()))
        assert module.conv.bias is not None
        module.conv.bias.zero_()
        module.norm.bias.zero_()
        module.norm.running_mean.zero_()  # type: ignore[union-attr]  # a tensor
    example = torch.from_numpy(AROUND_TEN)
    report = convbn.fuse(module, inputs=(example,)).report
    assert report.verify["proof"]["worst"]["error"] > 4 * 2.0**-23
    assert report.verify["status"] == "equal"


def run(module: nn.Module, feeds: Feeds) -> list[Array]:
    return execute(module, "copy", [feeds]).outputs[0]


def test_float64_settles_what_rounding_explains_and_nothing_else() -> None:
    module, plan = Folded(), FoldPlan((("norm", ("conv",)),))
    folded = convbn.fuse(module, IMAGE).model
    wrong = copy.deepcopy(folded)
    with torch.no_grad():
        wrong.conv.weight.mul_(1.0001)
    feeds = [{"x": IMAGE.numpy()}]
    settled = settled_in_float64(module, folded, plan, feeds, run)
    assert settled is not None
    assert settled.status == "equal"
    assert settled_in_float64(module, wrong, plan, feeds, run) is None


def test_float64_settles_nothing_where_rounding_would_hide_anything() -> None:
    class Chaotic(Folded):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sin(1e9 * super().forward(x))

    module = Chaotic()
    folded = convbn.fuse(module, IMAGE, options=convbn.FuseOptions(verify=False)).model
    plan = FoldPlan((("norm", ("conv",)),))
    assert settled_in_float64(module, folded, plan, [{"x": IMAGE.numpy()}], run) is None


def test_a_fold_that_the_outputs_show_is_found_behind_one_that_has_no_layer() -> None:
    class Changed(Folded):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x) + 0.0)  # what the BatchNorm reads is not what the layer gave

    module = Changed()
    folded = copy.deepcopy(module)
    scale = module.norm.weight / torch.sqrt(module.norm.running_var + module.norm.eps)  # type: ignore[operator]
    with torch.no_grad():
        assert folded.conv.bias is not None
        folded.conv.weight.mul_(scale[:, None, None, None])
        folded.conv.bias.copy_((folded.conv.bias - module.norm.running_mean) * scale + module.norm.bias)
    folded.norm = nn.Identity()  # type: ignore[assignment]  # takes its place
    kept = copy.deepcopy(folded.state_dict())
    plan = FoldPlan((("gone", ("nobody",)), ("norm", ("conv",))))
    answer = compare(module, folded.eval(), example_inputs=(IMAGE,), plan=plan)
    assert answer.equal
    assert answer.proof is not None
    assert {fold.name: fold.how for fold in answer.proof.folds} == {"gone": None, "norm": "the outputs"}
    assert all(torch.equal(kept[name], value) for name, value in folded.state_dict().items())
