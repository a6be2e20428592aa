"""Small ONNX graphs with one thing about them, and the runtime that judges them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

OPSET = 20


def random(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def batchnorm_parameters(
    channels: int, *, prefix: str = "bn", seed: int = 1, dtype: Any = np.float32
) -> dict[str, np.ndarray]:
    """γ of both signs, and statistics far from 0 and 1."""
    rng = np.random.default_rng(seed)
    return {
        f"{prefix}.gamma": (rng.uniform(0.5, 2, channels) * rng.choice([-1, 1], channels)).astype(dtype),
        f"{prefix}.beta": rng.standard_normal(channels).astype(dtype),
        f"{prefix}.mean": rng.standard_normal(channels).astype(dtype),
        f"{prefix}.var": rng.uniform(0.2, 3, channels).astype(dtype),
    }


def batchnorm(source: str, target: str, *, prefix: str = "bn", **attributes: Any) -> onnx.NodeProto:
    names = [f"{prefix}.{name}" for name in ("gamma", "beta", "mean", "var")]
    return helper.make_node("BatchNormalization", [source, *names], [target], name=prefix, **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Sequence[str],
    initializers: Mapping[str, np.ndarray],
    *,
    opset: int = OPSET,
    elem_type: int = TensorProto.FLOAT,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """A model whose outputs have the shapes that inference gives them, and no other tensor has any."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, elem_type, list(shape)) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, elem_type, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    domains = [helper.make_opsetid("", opset), *(helper.make_opsetid(f.domain, 1) for f in functions)]
    built = helper.make_model(graph, opset_imports=domains, functions=functions)
    # The newest IR that every onnxruntime we allow can load.
    built.ir_version = min(built.ir_version, 10)
    for output, inferred in zip(
        built.graph.output, onnx.shape_inference.infer_shapes(built).graph.output, strict=True
    ):
        output.CopyFrom(inferred)
    return built


def run(built: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The model's outputs in onnxruntime with its optimisations off: left on, it folds too."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        built.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, dict(feeds)))


def relative_error(reference: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    """``max|a − b| / max|a|``, the worst of all outputs, which must agree in number and shape."""
    assert [a.shape for a in reference] == [b.shape for b in other]
    return max(
        float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max() / np.abs(a.astype(np.float64)).max())
        for a, b in zip(reference, other, strict=True)
    )


def operators(built: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in built.graph.node]


class Writer:
    """Nodes one after the other, and the constants that they read."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def __call__(self, kind: str, *operands: Any, **attributes: Any) -> str:
        names = []
        for operand in operands:
            if not isinstance(operand, str):
                name = f"c{len(self.constants)}"
                stored = np.asarray(operand)
                self.constants[name] = stored.astype(np.int64 if stored.dtype.kind == "i" else np.float32)
                operand = name
            names.append(operand)
        output = f"v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, names, [output], name=f"{kind}_{len(self.nodes)}", **attributes)
        )
        return output

    def batchnorm(self, source: str, channels: int) -> str:
        prefix = f"bn{len(self.nodes)}"
        self.constants |= batchnorm_parameters(channels, prefix=prefix, seed=len(self.nodes))
        self.nodes.append(batchnorm(source, f"v{len(self.nodes)}", prefix=prefix))
        return self.nodes[-1].output[0]
