from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from convbn.bench.equivalence.compare import compare
from convbn.bench.models.errors import ReferenceFailedError
from convbn.errors import CheckFailedError, UsageError

ConvModel = Callable[..., onnx.ModelProto]
EXAMPLE = (torch.zeros(2, 3, 8, 8),)


def one_node(
    op: str, shape: list[int], *, kind: int = TensorProto.FLOAT, **attributes: Any
) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def folded_pair() -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    conv, norm = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.1, 2)
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    whole = torch.nn.Sequential(conv, norm).eval()
    return whole, torch.nn.utils.fuse_conv_bn_eval(conv.eval(), norm.eval())


def test_a_model_equals_itself_and_says_how_it_was_run(conv_model: ConvModel) -> None:
    answer = compare(conv_model(), conv_model())
    assert answer.equal
    assert answer.runtime == "onnxruntime-cpu@off"
    assert answer.outputs[0].shape == (2, 4, 8, 8)
    assert answer.outputs[0].max_abs_error == 0
    assert {"onnxruntime", "numpy"} <= set(answer.versions)
    json.dumps(answer.to_dict(), allow_nan=False)


def test_a_correct_fold_is_equal_though_not_identical() -> None:
    whole, folded = folded_pair()
    answer = compare(whole, folded, example_inputs=EXAMPLE)
    assert answer.status == "equal"
    assert 0 < answer.outputs[0].rel_error < 1e-5


def test_torch_against_exported_program_and_onnx() -> None:
    whole, folded = folded_pair()
    program = torch.export.export(folded, (torch.randn(2, 3, 8, 8),))
    assert compare(whole, program).status == "equal"
    exported = torch.onnx.export(folded, (torch.randn(2, 3, 8, 8),), dynamo=True, verbose=False)
    assert exported is not None
    answer = compare(whole, exported.model_proto)
    assert answer.status == "equal"
    assert answer.runtime == "torch-cpu against onnxruntime-cpu@off"


class _Residual(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(width, width, 3, padding=1), torch.nn.BatchNorm2d(width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.body(x))


def deep_pair(dtype: torch.dtype, lost: int | None = None) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Thirty residual blocks and the same folded; block ``lost`` is folded without its new bias."""
    torch.manual_seed(1)
    blocks = [_Residual(16) for _ in range(30)]
    folded = [_Residual(16) for _ in blocks]
    for index, (block, other) in enumerate(zip(blocks, folded, strict=True)):
        conv, norm = block.body
        assert isinstance(conv, torch.nn.Conv2d)
        assert isinstance(norm, torch.nn.BatchNorm2d)
        for tensor, (low, high) in ((norm.running_mean, (-1, 1)), (norm.running_var, (0.05, 2))):
            assert tensor is not None
            tensor.uniform_(low, high)
        with torch.no_grad():
            norm.weight.uniform_(0.05, 1.5)
            norm.bias.normal_()
        fused = torch.nn.utils.fuse_conv_bn_eval(conv.eval(), norm.eval())
        if index == lost:
            torch.nn.init.zeros_(fused.bias)  # type: ignore[arg-type]  # the fold gives it one
        other.body = torch.nn.Sequential(fused)
    head = torch.nn.Conv2d(3, 16, 1)
    return tuple(torch.nn.Sequential(head, *side).eval().to(dtype) for side in (blocks, folded))  # type: ignore[return-value]  # two of them


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_deep_fold_is_equal_in_every_precision_and_one_lost_bias_is_seen(dtype: torch.dtype) -> None:
    example = (torch.zeros(2, 3, 16, 16, dtype=dtype),)
    assert compare(*deep_pair(dtype), example_inputs=example).status == "equal"
    assert compare(*deep_pair(dtype, lost=15), example_inputs=example).status == "different"


@pytest.mark.parametrize("change", [{"bias": 0.1}, {"scale": 1.01}])
def test_a_wrong_model_is_different(conv_model: ConvModel, change: dict[str, float]) -> None:
    answer = compare(conv_model(), conv_model(**change))
    assert answer.status == "different"
    assert "over the bound" in answer.reason


def test_one_weak_channel_cannot_hide_behind_strong_ones(conv_model: ConvModel) -> None:
    good = conv_model(channel_gain=(1, 1, 1, 0.01))
    bad = conv_model(channel_gain=(1, 1, 1, 0.0102))
    answer = compare(good, bad)
    assert answer.outputs[0].rel_error < answer.outputs[0].bound
    assert answer.status == "different"
    assert "channel" in answer.reason


def test_optimisations_of_onnxruntime_are_off(conv_model: ConvModel) -> None:
    # Two Relu in a row: an optimiser drops one. Off, both stay in the session.
    from convbn.bench.runtimes.base import Variant
    from convbn.bench.runtimes.registry import open_session

    model = conv_model(extra="Relu")
    with open_session("onnxruntime-cpu@off", Variant("a", onnx=model)) as session:
        level = session._session.get_session_options().graph_optimization_level  # type: ignore[attr-defined]
    assert level.name == "ORT_DISABLE_ALL"


@pytest.mark.parametrize("dtype", [TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_types_without_a_kernel_fall_back_to_the_reference_evaluator(
    conv_model: ConvModel, dtype: int
) -> None:
    answer = compare(conv_model(dtype=dtype), conv_model(dtype=dtype))
    assert answer.equal
    assert answer.runtime == "onnx reference evaluator"
    assert compare(conv_model(dtype=dtype), conv_model(dtype=dtype, bias=1.0)).status == "different"


def test_the_bound_follows_the_weights_not_the_output(conv_model: ConvModel) -> None:
    def widened(model: onnx.ModelProto) -> onnx.ModelProto:
        model.graph.node[0].output[0] = "c"
        model.graph.node.append(helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT))
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
        return model

    half = widened(conv_model(dtype=TensorProto.FLOAT16))
    answer = compare(half, widened(conv_model(dtype=TensorProto.FLOAT16, scale=1.002)))
    assert answer.outputs[0].dtype == "float32"
    assert answer.outputs[0].bound == pytest.approx(0.03125)
    assert answer.equal
    assert not compare(conv_model(), conv_model(scale=1.002)).equal


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_constant_outputs_prove_nothing(conv_model: ConvModel, scale: float) -> None:
    # Weights 0, or a dead ReLU behind a large negative bias.
    dead = conv_model(scale=0.0, bias=3.0) if scale == 0 else conv_model(bias=-1e3, extra="Relu")
    answer = compare(dead, dead)
    assert answer.status == "inconclusive"
    assert "everywhere" in answer.reason


def test_outputs_that_ignore_the_input_prove_nothing() -> None:
    answer = compare(
        one_node("Shape", [2, 3], kind=TensorProto.INT64), one_node("Shape", [2, 3], kind=TensorProto.INT64)
    )
    assert answer.status == "inconclusive"
    assert "different inputs" in answer.reason


def test_integers_must_be_identical() -> None:
    reference = one_node("ArgMax", [4, 50], kind=TensorProto.INT64, axis=1)
    candidate = one_node("ArgMin", [4, 50], kind=TensorProto.INT64, axis=1)
    assert compare(reference, reference).equal
    answer = compare(reference, candidate)
    assert answer.status == "different"
    assert "identical" in answer.reason
    json.dumps(answer.to_dict(), allow_nan=False)


def test_nan_on_both_sides_is_inconclusive_on_one_side_different() -> None:
    root, plain = one_node("Sqrt", [2, 50]), one_node("Identity", [2, 50])
    assert compare(root, root).status == "inconclusive"
    answer = compare(root, plain)
    assert answer.status == "different"
    assert "NaN in only one" in answer.reason
    assert compare(plain, root).status == "different"


def test_an_overflow_is_tried_again_with_smaller_inputs() -> None:
    # exp(x·300) overflows float32 for x > 0.3, hardly at a tenth of the scale.
    class Steep(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.exp(x * 100)

    answer = compare(Steep(), Steep(), example_inputs=(torch.zeros(2, 64),))
    assert answer.equal
    assert answer.input_scale == 0.1


def test_shapes_types_and_numbers_of_outputs_must_agree(conv_model: ConvModel) -> None:
    flat = one_node("Flatten", [2, 3, 4])
    assert "shape" in compare(one_node("Identity", [2, 3, 4]), flat).reason
    wide = one_node("Cast", [2, 3, 4], kind=TensorProto.DOUBLE, to=TensorProto.DOUBLE)
    answer = compare(one_node("Identity", [2, 3, 4]), wide)
    assert answer.status == "different"
    assert "float64 in the candidate" in answer.reason
    two = conv_model()
    two.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, None))
    assert "number of outputs" in compare(conv_model(), two).reason


def test_a_reference_that_cannot_run_says_the_way_out() -> None:
    broken = one_node("NoSuchOperator", [2])
    with pytest.raises(ReferenceFailedError, match=r"NoSuchOperator.*--input-shape.*--no-verify") as caught:
        compare(broken, broken)
    assert isinstance(caught.value, CheckFailedError)
    assert "\n" not in str(caught.value)


def test_a_candidate_that_cannot_run_is_different(conv_model: ConvModel) -> None:
    answer = compare(conv_model(), one_node("NoSuchOperator", [2]))
    assert answer.status == "different"
    assert "cannot be run" in answer.reason


def test_a_module_without_examples_says_what_is_missing() -> None:
    module = torch.nn.Linear(3, 2)
    with pytest.raises(UsageError, match="example_inputs"):
        compare(module, module)
    assert compare(module, module, shapes={"x": (5, 3)}).equal


def test_the_callers_module_and_inputs_stay_as_they_were() -> None:
    whole, folded = folded_pair()
    whole.train()
    next(whole.children()).eval()
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    given = {"x": np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    copy = given["x"].copy()
    answer = compare(whole, folded, inputs=[given])
    assert answer.equal
    assert answer.seed is None
    assert [part.training for part in whole.modules()] == [True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())
    assert np.array_equal(given["x"], copy)


def test_no_samples_is_a_usage_error(conv_model: ConvModel) -> None:
    with pytest.raises(UsageError, match="sample"):
        compare(conv_model(), conv_model(), samples=0)
