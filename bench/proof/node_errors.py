"""How much each node of a model in a lower precision errs by itself, and which nodes that are worst.

Compared from end to end, the last node looks worst: it has inherited every error before it. Here both models stand in
one graph, and every node of the lower one reads the values of the original, rounded as the lower one holds them. What
then differs in its result is its own doing: its rounded inputs and weights, its sums, its overflow. The differences are
measured inside the graph, so that its intermediate values are never all in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf, isfinite
from typing import TYPE_CHECKING, Literal

from convbn.bench.equivalence.half_emulation import rounded_graph
from convbn.bench.models.errors import SessionError
from convbn.bench.models.inputs import Feeds
from convbn.bench.runtimes.onnxruntime_session import load_session
from convbn.common.encoding import JsonReady
from convbn.export.precision.graphs import FLOAT, captured, element_types, rename_in_bodies
from convbn.fuse.frontends.onnx.model.graphs import bodies_of

if TYPE_CHECKING:
    import onnx

__all__ = ["NodeError", "node_errors"]

#: float16, bfloat16.
_HALF = (10, 16)
#: int32, int64, bool: what is counted and decided on the way is taken from the original.
_EXACT = (6, 7, 9)
#: Operators that hand their input on as it is: what they give was rounded before.
_PASSING = frozenset(
    {
        *(
            "Concat",
            "Expand",
            "Flatten",
            "Gather",
            "Identity",
            "MaxPool",
            "Pad",
            "Relu",
            "Reshape",
            "Slice",
            "Split",
        ),
        *("Squeeze", "Tile", "Transpose", "Unsqueeze"),
    }
)
#: Both models go to onnxruntime as one message, which protobuf allows up to 2 GiB.
_LARGEST = 1_900_000_000
_LOW = "convbn::low::"


@dataclass(frozen=True)
class NodeError(JsonReady):
    """What a node adds to the error of a model.

    Attributes:
        node: its name.
        operator: its type.
        error: of its worst output, infinite where that overflows or is no number.
        rounded_by: names of the nodes in which its inputs become a 16-bit type, and of those that hand them on.
    """

    node: str
    operator: str
    error: float
    rounded_by: tuple[str, ...] = ()


def node_errors(
    original: onnx.ModelProto,
    candidate: onnx.ModelProto,
    feeds: Feeds,
    norm: Literal["max", "rms"] = "max",
) -> tuple[NodeError, ...]:
    """The error of each node by itself, the worst first; nodes without one are left out.

    Args:
        original: in float32 and in the candidate's opset.
        candidate: the same in another precision, made by :func:`convbn.export.precision.convert.convert`: its nodes
            and their results have the names that they have in the original.
        feeds: one input.
        norm: ``max`` for max |a − b| / max |a|, ``rms`` for ‖a − b‖ / ‖a‖.

    Returns:
        Nothing where onnxruntime cannot run the two side by side: beyond 1.9 GB, or for want of a kernel.
    """
    emulated = rounded_graph(candidate) or candidate
    if original.ByteSize() + emulated.ByteSize() > _LARGEST:
        return ()
    pair = _SideBySide(original, candidate, emulated)
    try:
        session = load_session(pair.merged(norm), "candidate")
        given = {value.name: feeds[value.name] for value in original.graph.input if value.name in feeds}
        found = dict(zip(session.output_names, map(float, session.run(given)), strict=True))
    except SessionError:
        return ()
    worst: dict[str, NodeError] = {}
    for value in pair.compared:
        node, error = pair.maker(value), _relative(*(found[name] for name in _measures(value)))
        if error > 0 and (node.name not in worst or error > worst[node.name].error):
            worst[node.name] = NodeError(node.name, node.op_type, error, tuple(pair.rounded_by(node)))
    return tuple(sorted(worst.values(), key=lambda row: -row.error))


def _relative(norm: float, apart: float, size: float) -> float:
    """``apart / size``; infinite where the norm of the difference is no number, as its maximum may not tell."""
    if not isfinite(norm):
        return inf
    return 0.0 if apart == 0 else apart / size if size else inf


def _measures(value: str) -> tuple[str, str, str]:
    return f"convbn::norm::{value}", f"convbn::apart::{value}", f"convbn::size::{value}"


class _SideBySide:
    """The original, and beside it the candidate, whose nodes read the original's values."""

    def __init__(
        self, original: onnx.ModelProto, candidate: onnx.ModelProto, emulated: onnx.ModelProto
    ) -> None:
        self._original, self._emulated = original, emulated
        self._makers: dict[str, onnx.NodeProto] = {
            name: node for node in candidate.graph.node for name in node.output
        }
        self._types = element_types(candidate)
        before = element_types(original)
        made = [name for node in original.graph.node for name in node.output if name in self._makers]
        self.compared = [
            name for name in made if before.get(name) == FLOAT and self._types.get(name) in (FLOAT, *_HALF)
        ]
        self._shared = {*self.compared} | {
            name for name in made if before.get(name) in _EXACT and before[name] == self._types.get(name)
        }

    def maker(self, value: str) -> onnx.NodeProto:
        """The node that computes a value; casts behind it compute nothing."""
        node = self._makers[value]
        while node.op_type == "Cast" and node.input[0] in self._makers and node.input[0] not in self._shared:
            node = self._makers[node.input[0]]
        return node

    def rounded_by(self, node: onnx.NodeProto) -> Iterator[str]:
        """See :attr:`NodeError.rounded_by`."""
        waiting, seen = [node], {node.name}
        while waiting:
            for name in waiting.pop().input:
                source = self._makers.get(name)
                if source is None or self._types.get(name) not in _HALF or source.op_type == "Cast":
                    continue
                if source.name not in seen:
                    seen.add(source.name)
                    yield source.name
                    if source.op_type in _PASSING:
                        waiting.append(source)

    def merged(self, norm: str) -> onnx.ModelProto:
        """One graph, whose outputs are the measures of every value that is compared."""
        import onnx

        merged = onnx.ModelProto()
        merged.CopyFrom(self._original)
        graph, make = merged.graph, onnx.helper.make_node
        merged.ir_version = max(merged.ir_version, self._emulated.ir_version)
        domains = {entry.domain for entry in merged.opset_import}
        merged.opset_import.extend(e for e in self._emulated.opset_import if e.domain not in domains)
        del graph.value_info[:], graph.output[:]
        read = self._reading(graph)
        for tensor in self._emulated.graph.initializer:
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = _LOW + tensor.name
        for node in self._emulated.graph.node:
            low = graph.node.add()
            low.CopyFrom(node)
            low.ClearField("name")  # which may stand there but once
            for index, name in enumerate(node.input):
                low.input[index] = read(name)
            for index, name in enumerate(node.output):
                low.output[index] = name and _LOW + name
            if any(bodies_of(node)):
                rename_in_bodies(low, {name: read(name) for name in captured(node)})
        for value in self.compared:
            whole, apart, size = _measures(value)
            difference, magnitude = f"{apart}::values", f"{size}::values"
            graph.node.append(make("Sub", [_LOW + value, value], [difference]))
            graph.node.append(make("ReduceL2", [difference], [whole], keepdims=0))
            if norm == "rms":
                graph.node.append(make("Identity", [whole], [apart]))
                graph.node.append(make("ReduceL2", [value], [size], keepdims=0))
            else:
                for source, absolute, most in (
                    (difference, f"{difference}::abs", apart),
                    (value, magnitude, size),
                ):
                    graph.node.append(make("Abs", [source], [absolute]))
                    graph.node.append(make("ReduceMax", [absolute], [most], keepdims=0))
            graph.output.extend(
                onnx.helper.make_tensor_value_info(name, FLOAT, []) for name in (whole, apart, size)
            )
        return merged

    def _reading(self, graph: onnx.GraphProto) -> Callable[[str], str]:
        """What the candidate's nodes read in the place of a value; casts that this takes go into the graph."""
        import onnx

        stored = {tensor.name for tensor in self._emulated.graph.initializer}
        before = {value.name: value.type.tensor_type.elem_type for value in graph.input}
        instead: dict[str, str] = {}
        for value in self._emulated.graph.input:
            code = value.type.tensor_type.elem_type
            if value.name not in stored:
                instead[value.name] = value.name
                if code != before[value.name]:
                    instead[value.name] = _LOW + value.name
                    graph.node.append(
                        onnx.helper.make_node("Cast", [value.name], [_LOW + value.name], to=code)
                    )
        for name in sorted(self._shared):
            instead[name] = name
            if self._types[name] in _HALF:
                rounded, instead[name] = f"convbn::rounded::{name}", f"convbn::given::{name}"
                graph.node.append(onnx.helper.make_node("Cast", [name], [rounded], to=self._types[name]))
                graph.node.append(onnx.helper.make_node("Cast", [rounded], [instead[name]], to=FLOAT))
        return lambda name: name and instead.get(name, _LOW + name)
