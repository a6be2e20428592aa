"""Rewrites a float32 graph so that the selected nodes compute in float16 or bfloat16.

A tensor exists once in the type of the node that makes it, and at most once more as a cast. So between two
nodes that stay in float32 nothing passes through the narrower type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from convbn.export.precision.graphs import FLOAT, captured, names_of, rename_in_bodies
from convbn.export.precision.selection import Selection
from convbn.fuse.frontends.onnx.model.graphs import bodies_of

if TYPE_CHECKING:
    import onnx

__all__ = ["CODES", "cast_graph", "narrowed"]

#: TensorProto.DataType of the 16-bit types.
CODES: Mapping[str, int] = {"float16": 10, "bfloat16": 16}


def narrowed(array: Any, low: str) -> Any:
    """A NumPy array in a 16-bit type, rounded to nearest."""
    import ml_dtypes
    import numpy as np

    with np.errstate(over="ignore"):
        return array.astype(np.float16 if low == "float16" else ml_dtypes.bfloat16)


def cast_graph(
    model: onnx.ModelProto, types: Mapping[str, int], selection: Selection, *, low: str, keep_io_types: bool
) -> int:
    """Cast a prepared model in place.

    Args:
        model: see :func:`convbn.export.precision.graphs.prepared`.
        types: element type of each tensor.
        selection: which inputs and outputs of which nodes take the type.
        low: ``float16`` or ``bfloat16``.
        keep_io_types: whether graph inputs and outputs stay in float32.

    Returns:
        How many Cast nodes were added.
    """
    return _Caster(model, types, low, keep_io_types).run(selection)


@dataclass
class _Caster:
    model: onnx.ModelProto
    types: Mapping[str, int]
    low: str
    keep_io_types: bool
    nodes: list[Any] = field(default_factory=list)
    have: dict[str, int] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    casts: dict[tuple[str, int], str] = field(default_factory=dict)

    def run(self, selection: Selection) -> int:
        graph = self.model.graph
        self.code = CODES[self.low]
        self.names = names_of(self.model)
        io_code = FLOAT if self.keep_io_types else self.code
        inputs = {value.name for value in graph.input}
        self.weights = {t.name: t for t in graph.initializer if t.data_type == FLOAT and t.name not in inputs}
        before = len(graph.node)
        self._name_outputs(selection, io_code)
        self._narrow_weights(selection)
        for value in graph.input:
            if self.types.get(value.name) == FLOAT:
                overridable = any(tensor.name == value.name for tensor in graph.initializer)
                self.have[value.name] = FLOAT if overridable else io_code
                value.type.tensor_type.elem_type = self.have[value.name]
        for index, node in enumerate(graph.node):
            self._rewrite(node, selection.low_inputs[index], selection.low_outputs[index])
        for value in graph.output:
            if value.name in self.renamed:
                self.nodes.append(self._cast(self.renamed[value.name], value.name, io_code))
            if self.types.get(value.name) == FLOAT:
                changed = value.name in self.have and value.name not in self.weights
                value.type.tensor_type.elem_type = io_code if changed else FLOAT
        del graph.node[:]
        graph.node.extend(self.nodes)
        self._retype_annotations()
        return len(self.nodes) - before

    def _name_outputs(self, selection: Selection, io_code: int) -> None:
        """Where an output is made in the other type, its name goes to the cast behind it."""
        made: dict[str, int] = {}
        for index, node in enumerate(self.model.graph.node):
            for position, name in enumerate(node.output):
                if self.types.get(name) == FLOAT:
                    made[name] = self.code if position in selection.low_outputs[index] else FLOAT
        for value in self.model.graph.output:
            if made.get(value.name, io_code) != io_code:
                self.renamed[value.name] = self.names.fresh(f"{value.name}_uncast")

    def _narrow_weights(self, selection: Selection) -> None:
        """Weights in place where every reader wants them narrow, else a narrow copy beside them."""
        graph = self.model.graph
        wide = {value.name for value in graph.output}
        narrow: set[str] = set()
        for index, node in enumerate(graph.node):
            if any(bodies_of(node)):
                wide |= captured(node)
            for position, name in enumerate(node.input):
                (narrow if position in selection.low_inputs[index] else wide).add(name)
        for name in sorted(narrow & self.weights.keys()):
            tensor = self.weights[name]
            made = self._narrow_tensor(tensor)
            if name in wide:
                made.name = self.casts[name, self.code] = self.names.fresh(f"{name}_{self.low}")
                graph.initializer.append(made)
                self.have[name] = FLOAT
            else:
                tensor.CopyFrom(made)
                self.have[name] = self.code
        for name in self.weights:
            self.have.setdefault(name, FLOAT)

    def _narrow_tensor(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        from onnx import numpy_helper

        made = numpy_helper.from_array(narrowed(numpy_helper.to_array(tensor), self.low), tensor.name)
        made.doc_string = tensor.doc_string
        return made

    def _rewrite(self, node: onnx.NodeProto, low_in: frozenset[int], low_out: frozenset[int]) -> None:
        for position, name in enumerate(node.input):
            if self.types.get(name) == FLOAT:
                node.input[position] = self._read(name, self.code if position in low_in else FLOAT)
        if any(bodies_of(node)):
            floats = [name for name in sorted(captured(node)) if self.types.get(name) == FLOAT]
            rename_in_bodies(node, {name: self._read(name, FLOAT) for name in floats})
        for position, name in enumerate(node.output):
            if self.types.get(name) == FLOAT:
                self.have[name] = self.code if position in low_out else FLOAT
                node.output[position] = self.renamed.get(name, name)
        self.nodes.append(node)

    def _read(self, name: str, code: int) -> str:
        actual = self.renamed.get(name, name)
        if self.have.get(name, code) == code:
            return actual
        if (name, code) not in self.casts:
            target = self.names.fresh(f"{name}_{self.low if code == self.code else 'float32'}")
            self.nodes.append(self._cast(actual, target, code))
            self.casts[name, code] = target
        return self.casts[name, code]

    def _cast(self, source: str, target: str, code: int) -> onnx.NodeProto:
        from onnx import helper

        name = self.names.fresh(f"{target}_cast")
        return helper.make_node("Cast", [source], [target], name=name, to=code)

    def _retype_annotations(self) -> None:
        graph = self.model.graph
        kept = [value for value in graph.value_info if value.name not in self.renamed]
        for value in kept:
            if self.have.get(value.name) == self.code:
                value.type.tensor_type.elem_type = self.code
        del graph.value_info[:]
        graph.value_info.extend(kept)
