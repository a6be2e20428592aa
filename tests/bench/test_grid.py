"""The cases of a benchmark: which are made, in which forms, and what becomes of those that cannot be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from support.graphs import batchnorm, batchnorm_parameters, model, random

import convbn
from convbn.bench.cases.case import Case, batch_of, case_feeds, model_file
from convbn.bench.cases.study import Grid, NamedModel, Study
from convbn.bench.cases.variants import original_variant
from convbn.bench.measure.options import ProtocolOptions
from convbn.bench.measure.protocol import measure
from convbn.bench.results.comparisons import SELF_FUSED
from convbn.bench.runtimes.base import Variant
from convbn.common.schema import problem
from convbn.errors import BadInputError, ConvBNError, FileAccessError, NotSupportedError, UsageError
from convbn.export.engines.run.load import EngineFile
from convbn.export.loading.source_model import SourceModel
from convbn.export.onnx_io.provenance import add_provenance

SCHEMA = Path(__file__).parents[2] / "bench" / "bench-result.schema.json"
QUICK = ProtocolOptions(
    budget_seconds=0.3, warmup_seconds=0.05, block_seconds=0.002, min_blocks=5, memory=False
)
OFF = ("onnxruntime-cpu@off",)


def small(batch: int | str) -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), batchnorm("c", "y")]
    made = model(nodes, {"x": [2, 3, 8, 8]}, ["y"], {"w": random(6, 3, 3, 3), **batchnorm_parameters(6)})
    for value in (*made.graph.input, *made.graph.output):
        axis = value.type.tensor_type.shape.dim[0] if value.type.tensor_type.shape.dim else None
        if axis is not None and isinstance(batch, str):
            axis.dim_param = batch
        elif axis is not None:
            axis.dim_value = int(batch)
    return made


def cases(subject: SourceModel, grid: Grid, runtimes: Sequence[str] = OFF, **more: Any) -> list[Case]:
    return list(Study([[NamedModel("net", lambda: subject)]], grid, runtimes=runtimes, **more))


def test_every_combination_is_a_case_with_inputs_of_its_size() -> None:
    found = cases(SourceModel(small("n")), Grid(batches=(1, 4), threads=(1, 2)))
    assert [(case.batch, case.threads) for case in found] == [(1, 1), (1, 2), (4, 1), (4, 2)]
    assert [batch_of(case_feeds(case, seed=0, samples=1)[0]) for case in found] == [1, 1, 4, 4]
    assert [one.name for one in found[0].variants] == ["original", "folded", SELF_FUSED]
    assert found[0].fold is not None
    assert found[0].fold["batchnorm"] == {"before": 1, "after": 0}


def test_a_fixed_batch_is_kept_and_another_is_a_row_with_the_way_out() -> None:
    found = cases(SourceModel(small(2)), Grid(batches=(2, 8)))
    assert found[0].failure is None
    assert isinstance(found[1].failure, NotSupportedError)
    assert "--dynamic-batch" in str(found[1].failure)
    assert [side.name for side in found[1].variants] == ["original", "folded"]
    with pytest.raises(NotSupportedError, match="fixed to 2"):
        cases(SourceModel(small(2)), Grid(batches=(8,)))  # an only case is not hidden in a row


def test_one_bad_file_does_not_take_the_others_down(tmp_path: Path) -> None:
    def gone() -> SourceModel:
        raise FileAccessError("no such file", source="gone.onnx")

    groups = [[NamedModel("bad", gone)], [NamedModel("good", lambda: SourceModel(small(2)))]]
    result = measure(Study(groups, runtimes=OFF), QUICK)
    bad, good = result.cases
    assert {row.status for row in bad.rows} == {"not measured"}
    assert "gone.onnx" in (bad.rows[0].reason or "")
    assert [(row.side, row.status) for row in good.rows] == [
        ("original", "measured"),
        ("folded", "measured"),
        (SELF_FUSED, "measured"),
    ]


def test_the_self_fused_side_has_a_row_only_where_it_means_something() -> None:
    runtimes = ("onnxruntime-cpu@off", "onnxruntime-cpu", "onnxruntime-cuda@off", "torch-cpu")
    found = cases(SourceModel(small(2)), Grid(), runtimes)
    case = measure(found, QUICK).cases[0]
    with_it = {row.runtime for row in case.rows if row.side == SELF_FUSED}
    assert with_it == {"onnxruntime-cpu@off", "onnxruntime-cuda@off"}
    assert [side.name for side in cases(SourceModel(small(2)), Grid(), ["onnxruntime-cpu"])[0].variants] == [
        "original",
        "folded",
    ]


def test_others_are_measured_as_they_are(tmp_path: Path) -> None:
    group = [NamedModel(name, lambda: SourceModel(small(2))) for name in ("net", "other.onnx")]
    found = next(iter(Study([group], runtimes=["onnxruntime-cpu"])))
    assert [side.name for side in found.variants] == ["original", "other.onnx"]
    assert found.fold is None


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.body(x)
        return out


def test_a_module_is_exported_again_for_each_batch_and_only_if_it_is_needed() -> None:
    subject = SourceModel(Net().eval(), (torch.randn(2, 3, 8, 8),))
    first, second = cases(subject, Grid(batches=(1, 5)), ["onnxruntime-cpu@off", "torch-cpu"])
    sizes = [
        case.variants[0].onnx.graph.input[0].type.tensor_type.shape.dim[0].dim_value
        for case in (first, second)
    ]  # type: ignore[union-attr]  # ONNX models
    assert sizes == [1, 5]
    assert second.variants[0].example_inputs is not None
    assert second.variants[0].example_inputs[0].shape == (5, 3, 8, 8)
    only = cases(subject, Grid(), ["torch-cpu"])[0]
    assert all(side.onnx is None for side in only.variants)
    with pytest.raises(UsageError, match="--input-shape"):
        cases(SourceModel(Net().eval()), Grid(batches=(2,)), ["torch-cpu"])


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_every_side_is_converted_and_none_keeps_the_old_precision(precision: str) -> None:
    subject = SourceModel(Net().eval(), (torch.randn(2, 3, 8, 8),))
    found = cases(subject, Grid(precisions=("fp32", precision)), ["onnxruntime-cpu@off", "torch-cpu"])
    assert [case.precision for case in found] == ["fp32", precision]
    wanted = {"fp16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[precision]
    for side in found[1].variants:
        assert wanted in {tensor.data_type for tensor in side.onnx.graph.initializer}  # type: ignore[union-attr]  # ONNX
        if precision == "int8":
            assert side.module is None  # eager PyTorch has no such kernels: its rows say what is missing
        else:
            assert next(side.module.parameters()).dtype == torch.float16  # type: ignore[union-attr,operator]  # a module
    assert next(subject.model.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"batches": (0,)}, "batch"),
        ({"threads": (2, -1)}, "threads"),
        ({"precisions": ("fp7",)}, "fp7"),
    ],
)
def test_senseless_grids_are_refused(values: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        Grid(**values)


def test_an_engine_is_only_measured(tmp_path: Path) -> None:
    engine = SourceModel(None, path="m.engine", engines={"tensorrt": EngineFile(tmp_path / "m.engine")})
    with pytest.raises(NotSupportedError, match="cannot be folded"):
        cases(engine, Grid(), ["tensorrt"])
    with pytest.raises(NotSupportedError, match="--batch is for models"):
        cases(engine, Grid(batches=(1,)), ["tensorrt"])
    group = [NamedModel("net", lambda: SourceModel(small(2))), NamedModel("m.engine", lambda: engine)]
    case = measure(Study([group], runtimes=["onnxruntime-cpu"]), QUICK)
    assert "needs an ONNX model" in (case.cases[0].rows[1].reason or "")
    with pytest.raises(UsageError, match="what to feed"):
        case_feeds(Case("e", (original_variant(engine),), ("tensorrt",)), seed=0, samples=1)


def test_sizes_count_weights_that_lie_beside_the_file_and_hashes_are_of_the_file(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside.onnx", tmp_path / "outside.onnx"
    onnx.save(small(2), inside)
    onnx.save(small(2), outside, save_as_external_data=True, location="w.bin", size_threshold=0)
    whole, split = model_file(Variant("a", onnx=inside)), model_file(Variant("a", onnx=str(outside)))
    assert whole.bytes == inside.stat().st_size
    assert split.bytes == outside.stat().st_size + (tmp_path / "w.bin").stat().st_size
    assert whole.sha256 != split.sha256
    module = torch.nn.Linear(10, 10)
    assert model_file(Variant("a", module=module)).bytes == 440
    with pytest.raises(FileAccessError):
        model_file(Variant("a", onnx=tmp_path / "gone.onnx"))


def test_a_side_brings_along_what_its_layers_lose(tmp_path: Path) -> None:
    losses = [{"node": "conv", "operator": "Conv", "error": 0.02}]
    built, path = small(2), tmp_path / "int8.onnx"
    record = {"precision": "int8", "method": "mse", "sensitivity": [losses[0] | {"further": 1}]}
    add_provenance(built, {"precision": json.dumps(record)})
    onnx.save(built, path)
    assert model_file(Variant("a", onnx=path)).sensitivity == losses
    assert model_file(Variant("a", onnx=built)).sensitivity == losses
    result = measure(Study([[NamedModel("net", lambda: SourceModel(built))]], runtimes=OFF), QUICK).to_dict()
    assert problem(result, SCHEMA) is None
    assert result["cases"][0]["sides"][0]["sensitivity"] == losses
    # What is no record is none of ours, and no reason to fail.
    for text in ("{", "[]", '{"precision": "int8", "method": "mse", "sensitivity": [{"node": 1}]}'):
        add_provenance(built, {"precision": text})
        assert model_file(Variant("a", onnx=built)).sensitivity is None


@pytest.mark.parametrize("kind", ["input", "stored"])
def test_float16_beside_the_arithmetic_is_no_precision(kind: str) -> None:
    """What a file stores or is given in float16 and computes in float32 is converted like any other."""
    built = small(2)
    graph, half = built.graph, onnx.TensorProto.FLOAT16
    if kind == "input":
        graph.input[0].type.tensor_type.elem_type = half
        graph.node[0].input[0] = "wide"
        graph.node.insert(0, helper.make_node("Cast", ["x"], ["wide"], to=1))
    else:
        weight = next(tensor for tensor in graph.initializer if tensor.name == "w")
        array = numpy_helper.to_array(weight).astype(np.float16)
        weight.CopyFrom(numpy_helper.from_array(array, "stored"))
        graph.node.insert(0, helper.make_node("Cast", ["stored"], ["w"], to=1))
    (case,) = cases(SourceModel(built), Grid(precisions=("fp16",)))
    for side in case.variants[:2]:
        kernels = {t.data_type for t in side.onnx.graph.initializer if len(t.dims) == 4}  # type: ignore[union-attr]  # a model
        assert kernels == {half}


def test_the_batch_is_that_of_all_inputs_or_none() -> None:
    one, two = np.zeros((4, 3)), np.zeros((5, 3))
    assert batch_of({"a": one, "b": one}) == 4
    assert batch_of({"a": one, "b": two}) is None
    assert batch_of({"a": one, "b": np.zeros(())}) is None
    assert batch_of({"a": np.zeros((0, 3))}) is None
    assert batch_of({}) is None


def test_the_api_measures_each_model_against_its_own_fold(tmp_path: Path) -> None:
    paths = []
    for name in ("one", "two"):
        paths.append(tmp_path / f"{name}.onnx")
        onnx.save(small("n"), paths[-1])
    told: list[tuple[str, int, int]] = []
    result = convbn.bench(
        *paths,
        each=True,
        runtimes=["onnxruntime-cpu"],
        options=QUICK,
        grid=Grid(batches=(1, 2)),
        progress=lambda *step: told.append(step),
    )
    assert [(case.name, case.batch) for case in result.cases] == [
        ("one.onnx", 1),
        ("one.onnx", 2),
        ("two.onnx", 1),
        ("two.onnx", 2),
    ]
    assert all(row.status == "measured" for case in result.cases for row in case.rows)
    assert any("(4 of 4)" in phase for phase, _, _ in told)
    assert all(done >= 0 and steps > 0 for _, done, steps in told)


def test_a_failed_case_has_rows_also_where_nobody_named_a_runtime(tmp_path: Path) -> None:
    path = tmp_path / "good.onnx"
    onnx.save(small(2), path)
    result = convbn.bench(tmp_path / "gone.onnx", path, each=True, options=QUICK)
    assert {row.status for row in result.cases[0].rows} == {"not measured"}
    assert {row.status for row in result.cases[1].rows} == {"measured"}


def test_a_program_keeps_its_batch() -> None:
    program = torch.export.export(Net().eval(), (torch.randn(2, 3, 8, 8),))
    with pytest.raises(NotSupportedError, match="captured with"):
        cases(SourceModel(program), Grid(batches=(4,)), ["torch-cpu"])


def test_errors_of_an_only_model_are_raised() -> None:
    def broken() -> SourceModel:
        raise BadInputError("is garbage", source="x.onnx")

    with pytest.raises(ConvBNError, match="garbage"):
        list(Study([[NamedModel("x", broken)]], runtimes=OFF))
