from __future__ import annotations

import numpy as np
import onnx
import pytest

from convbn.errors import NotSupportedError
from convbn.export.onnx_io.provenance import add_provenance, in_opset


def facts_of(model):
    return {entry.key: entry.value for entry in model.metadata_props}


def test_facts_are_added_once(tiny):
    model = tiny.conv_bn(folded=True)
    model.metadata_props.add(key="own", value="stays")
    add_provenance(model, {"version": "1", "source": "a.onnx"})
    add_provenance(model, {"version": "2"})
    assert facts_of(model) == {"own": "stays", "convbn.version": "2", "convbn.source": "a.onnx"}
    onnx.checker.check_model(model)


def test_the_order_does_not_depend_on_the_caller(tiny):
    models = []
    for facts in ({"a": "1", "b": "2"}, {"b": "2", "a": "1"}):
        model = tiny.conv_bn(folded=True)
        add_provenance(model, facts)
        models.append(model.SerializeToString())
    assert models[0] == models[1]


def test_another_opset(tiny):
    import onnxruntime

    model = tiny.conv_bn(folded=False)
    add_provenance(model, {"version": "1"})
    before = model.SerializeToString()
    converted = in_opset(model, 19)
    assert {entry.domain: entry.version for entry in converted.opset_import}[""] == 19
    assert facts_of(converted) == {"convbn.version": "1"}
    assert model.SerializeToString() == before
    feed = {"x": np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)}
    outputs = [
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, feed
        )[0]
        for m in (model, converted)
    ]
    np.testing.assert_array_equal(*outputs)


def test_the_same_opset_is_the_same_model(tiny):
    model = tiny.conv_bn(folded=True)
    assert in_opset(model, 17) is model


@pytest.mark.parametrize("opset", [0, -1, 999])
def test_unknown_opsets(tiny, opset):
    with pytest.raises(NotSupportedError, match=f"knows no opset {opset}; 1 to ") as error:
        in_opset(tiny.conv_bn(folded=True), opset)
    assert error.value.exit_code == 4


def test_what_the_converter_cannot_do(tiny):
    with pytest.raises(NotSupportedError, match="onnx cannot bring this model into opset 20") as error:
        in_opset(tiny.single("NoSuchOperator"), 20)
    assert "\n" not in str(error.value)
