"""The dataflow of one ONNX model as its file states it, and parts of it that can be run by themselves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

    from convbn.bench.models.inputs import Array

__all__ = ["COMPUTED", "Dataflow", "Part", "Slice", "name_outputs"]

#: What the name of a value ends in where a part computes it and reads it from outside as well.
COMPUTED = "::computed"


@dataclass(frozen=True)
class Slice:
    """Nodes of a model by their places, the values that they read from outside, and their initializers."""

    nodes: tuple[int, ...]
    feeds: tuple[str, ...]
    constants: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """A slice as a model, and what it has to be fed with."""

    model: onnx.ModelProto
    feeds: tuple[str, ...]


class Dataflow:
    """Who gives and who reads each value of a model's main graph.

    Args:
        model: is not changed; local functions are written out in a copy.
        read: gives the bytes of initializers that lie in files.

    Attributes:
        nodes: of the main graph, in running order.
        producer: the place of the node that gives a value.
        reads: by node, the values it reads by slot; those that only its bodies read stand behind.
        readers: by value, the nodes and slots that read it.
        constants: initializers by name.
        inputs, outputs: of the graph, in order; initializers are no inputs.
    """

    def __init__(self, model: onnx.ModelProto, read: Callable[[Any], bytes] | None = None) -> None:
        if model.functions:
            from onnx import inliner

            # Functions that call themselves, or are called with too many inputs, stay as they are: onnx raises what it
            # likes on them, and the runtime says what it has against them.
            with suppress(Exception):
                model = inliner.inline_local_functions(model)
        self.model, self._read = model, read
        graph = model.graph
        self.nodes = list(graph.node)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self._hoist()
        self._sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
        self.inputs = [
            v.name for v in graph.input if v.name not in self.constants and v.name not in self._sparse
        ]
        self._fed = set(self.inputs)
        self.outputs = [value.name for value in graph.output]
        self.producer = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.reads = [(*node.input, *sorted(_free_names(node))) for node in self.nodes]
        self.readers: dict[str, list[tuple[int, int]]] = {}
        for i, names in enumerate(self.reads):
            for slot, name in enumerate(names):
                if name:
                    self.readers.setdefault(name, []).append((i, slot))

    def _hoist(self) -> None:
        """Count what bodies store among the constants, where its name is no other's."""
        taken = set(self.constants) | {name for node in self.nodes for name in node.output}
        for i, node in enumerate(self.nodes):
            if not any(body.initializer for body in _all_bodies(node)):
                continue
            self.nodes[i] = copy = type(node)()
            copy.CopyFrom(node)
            for body in _all_bodies(copy):
                kept = []
                for tensor in body.initializer:
                    held = type(tensor)()
                    held.CopyFrom(tensor)
                    if tensor.name in taken:
                        kept.append(held)
                    else:
                        self.constants[tensor.name] = held
                        taken.add(tensor.name)
                del body.initializer[:]
                body.initializer.extend(kept)

    def flows(self, name: str) -> bool:
        """Whether a name stands for a value that a node gives or the caller feeds."""
        return name in self.producer or name in self._fed

    def array(self, name: str) -> Array:
        """The numbers of an initializer."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self._held(self.constants[name]))

    def _held(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """A tensor with its bytes."""
        if tensor.data_location != tensor.EXTERNAL or self._read is None:
            return tensor
        held = type(tensor)(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        held.raw_data = self._read(tensor)
        return held

    def slice(self, wanted: Iterable[str], cut: Collection[str], loose: Collection[str] = ()) -> Slice:
        """The nodes that compute some values from others.

        Args:
            wanted: what they compute.
            cut: values that are read from outside, not computed for those who read them.
            loose: initializers that are read from outside too, so that they can be given other numbers.
        """
        needed, feeds, constants = set[int](), dict[str, None](), dict[str, None]()
        waiting = [self.producer[name] for name in wanted if name in self.producer]
        while waiting:
            i = waiting.pop()
            if i in needed:
                continue
            needed.add(i)
            for name in self.reads[i]:
                if name in cut or name in loose or name in self._fed:
                    feeds[name] = None
                elif name in self.producer:
                    waiting.append(self.producer[name])
                elif name in self.constants or name in self._sparse:
                    constants[name] = None
        return Slice(tuple(sorted(needed)), tuple(feeds), tuple(constants))

    def part(
        self,
        wanted: Iterable[str],
        cut: Collection[str],
        loose: Collection[str] = (),
        *,
        embedded: bool = False,
    ) -> Part:
        """A slice as a model of its own; a wanted value that is also read from outside goes by its name and COMPUTED.

        Args:
            wanted: its outputs, in this order.
            cut, loose: as in :meth:`slice`.
            embedded: whether it brings its weights along where the whole leaves them in files.
        """
        import onnx

        wanted = list(wanted)
        found = self.slice(wanted, cut, loose)
        feeds = set(found.feeds)
        part = onnx.ModelProto(ir_version=max(self.model.ir_version, 4))
        part.opset_import.extend(self.model.opset_import)
        graph = part.graph
        graph.name = "part"
        for i in found.nodes:
            node = graph.node.add()
            node.CopyFrom(self.nodes[i])
            name_outputs(node)
            for slot, name in enumerate(node.output):
                if name in feeds:
                    node.output[slot] = name + COMPUTED
        for name in found.constants:
            if name in self._sparse:
                graph.sparse_initializer.append(self._sparse[name])
            else:
                tensor = self.constants[name]
                graph.initializer.append(self._held(tensor) if embedded else tensor)
        graph.input.extend(onnx.ValueInfoProto(name=name) for name in found.feeds)
        graph.output.extend(
            onnx.ValueInfoProto(name=name + COMPUTED if name in feeds else name) for name in wanted
        )
        return Part(part, found.feeds)

    def strict_ancestors(self) -> list[int]:
        """By node, the set of the nodes before it, as bits."""
        before: list[int] = []
        for names in self.reads:
            bits = 0
            for name in names:
                place = self.producer.get(name)
                if place is not None and place < len(before):
                    bits |= before[place] | 1 << place
            before.append(bits)
        return before

    def report_names(self) -> dict[str, int]:
        """The node by the name that reports give it; what stands in a body is part of the node that has it."""
        return {name: place for name, (place, _) in self._named().items()}

    def stored_by(self, place: int, names: Collection[str]) -> tuple[str, ...]:
        """What a node reads; of one with bodies, what those of the named nodes read that stand in them.

        Args:
            place: of the node.
            names: as reports give them.
        """
        if next(_bodies(self.nodes[place]), None) is None:
            return self.reads[place]
        named = self._named()
        inside = [named[name][1] for name in names if name in named and named[name][0] == place]
        return tuple(name for node in inside for name in node.input) or self.reads[place]

    def _named(self) -> dict[str, tuple[int, onnx.NodeProto]]:
        """By the name that reports give a node, its place, or that of the one whose body it stands in, and itself."""
        found: dict[str, tuple[int, onnx.NodeProto]] = {}
        counts: dict[str, int] = {}
        level = [(node, i) for i, node in enumerate(self.nodes)]
        while level:
            for node, i in level:
                name = node.name or f"{node.op_type}({node.output[0] if node.output else ''})"
                counts[name] = counts.get(name, 0) + 1
                found.setdefault(name if counts[name] == 1 else f"{name} ({counts[name]})", (i, node))
            level = [(inner, i) for node, i in level for body in _bodies(node) for inner in body.node]
        return found


def name_outputs(node: onnx.NodeProto) -> None:
    """Take away the outputs without a name at the end: onnxruntime dies of those of a BatchNorm."""
    while node.output and not node.output[-1]:
        node.output.pop()


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from attribute.graphs
        if attribute.HasField("g"):
            yield attribute.g


def _all_bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of a node, and of the nodes in them."""
    for body in _bodies(node):
        yield body
        for inner in body.node:
            yield from _all_bodies(inner)


def _free_names(node: onnx.NodeProto) -> set[str]:
    """What the bodies of a node read that they do not give themselves."""
    free = set[str]()
    for body in _bodies(node):
        own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
        own |= {tensor.values.name for tensor in body.sparse_initializer}
        read = {value.name for value in body.output}
        for inner in body.node:
            read |= {name for name in inner.input if name} | _free_names(inner)
            own |= set(inner.output)
        free |= read - own
    return free
