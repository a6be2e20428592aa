"""ONNX's own conformance models go through the fold and compute what they did."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support.graphs import relative_error, run

from convbn.errors import ConvBNError
from convbn.fuse.fold import fold

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
WITH_BATCHNORM = ("light_densenet121", "light_inception_v2", "light_resnet50", "light_shufflenet")


def cases() -> Iterator[tuple[str, onnx.ModelProto, list[np.ndarray], list[np.ndarray]]]:
    """Every generated case whose inputs and outputs are arrays, with its first data set."""
    from onnx.backend.test.case.node import collect_testcases

    with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
        found = collect_testcases(None)
    for case in found:
        if case.model is not None and case.data_sets:
            yield case.name, case.model, *case.data_sets[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_operators_compute_what_they_did() -> None:
    from onnx.reference import ReferenceEvaluator

    seen, changed, refused = 0, [], []
    for name, model, inputs, outputs in cases():
        before = model.SerializeToString(deterministic=True)
        try:
            result = fold(model)
        except ConvBNError as error:
            refused.append((name, str(error)))
            continue
        seen += 1
        assert model.SerializeToString(deterministic=True) == before, name
        if result.model.SerializeToString(deterministic=True) == before:
            continue
        changed.append(name)
        names = [value.name for value in result.model.graph.input]
        given = ReferenceEvaluator(result.model).run(None, dict(zip(names, inputs, strict=True)))
        for expected, got in zip(outputs, given, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5, err_msg=name)
    assert refused == []
    assert seen > 1000
    assert len(changed) > 3


def randomised(path: Path, seed: int) -> onnx.ModelProto:
    """A light model with weights: it comes with constants that give one output whatever the input."""
    model = onnx.load(path)
    rng = np.random.default_rng(seed)
    graph = model.graph
    shapes = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    slots = {name: (n.op_type, i) for n in graph.node for i, name in enumerate(n.input)}
    made = [n for n in graph.node if n.op_type == "ConstantOfShape" and n.input[0] in shapes]
    for node in made:
        shape = [int(n) for n in shapes[node.input[0]]]
        operator, slot = slots[node.output[0]]
        fan = max(1, int(np.prod(shape[1:])))
        values = rng.standard_normal(shape) * (np.sqrt(2 / fan) if len(shape) > 1 else 0.2)
        if (operator == "BatchNormalization" and slot in (1, 4)) or operator == "Unsqueeze":
            values = rng.uniform(0.5, 1.5, shape)
        graph.initializer.append(numpy_helper.from_array(values.astype("f4"), node.output[0]))
        graph.node.remove(node)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_BATCHNORM)
def test_light_models_with_random_weights(name: str) -> None:
    model = randomised(LIGHT / f"{name}.onnx", 0)
    result = fold(model)
    report = result.report
    stored = {tensor.name for tensor in model.graph.initializer}
    (x,) = [value for value in model.graph.input if value.name not in stored]
    shape = [d.dim_value for d in x.type.tensor_type.shape.dim]
    feeds = {x.name: np.random.default_rng(1).standard_normal(shape).astype("f4")}
    before = run(model, feeds)
    assert np.ptp(before[0]) > 0
    assert relative_error(before, run(result.model, feeds)) < 1e-4
    assert report.batchnorm.before >= 49
    assert report.batchnorm.after <= (62 if name == "light_densenet121" else 0), report.kept[:3]
