"""One call of a model-local function, written out: its nodes under names of their own in the place of the call.

Not ``onnx.inliner``: that serialises the whole model, weights included, and its names do not say which call a node
came from. Here ``block1/bn`` is the node ``bn`` of the function that the node ``block1`` calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from convbn.fuse.frontends.onnx.model.graphs import Names, bodies_of

if TYPE_CHECKING:
    import onnx

__all__ = ["FunctionKey", "Inliner", "called", "key_of"]

Attributes = Mapping[str, "onnx.AttributeProto"]
FunctionKey = tuple[str, str, str]
"""Domain, name and overload."""


def key_of(function: onnx.FunctionProto) -> FunctionKey:
    """What a function is called by."""
    return _domain(function.domain), function.name, function.overload


def called(node: onnx.NodeProto) -> FunctionKey:
    """The function that a node calls, if there is one of that name."""
    return _domain(node.domain), node.op_type, node.overload


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


class Inliner:
    """Replaces calls by what they do.

    Args:
        functions: those whose calls are replaced; none calls itself, by whatever detour.
        names: every name of the model, of tensors and of nodes: onnxruntime wants the latter to differ, too.

    Attributes:
        calls: how often each function was written out.
    """

    def __init__(self, functions: Mapping[FunctionKey, onnx.FunctionProto], names: Iterable[str]) -> None:
        self._functions = functions
        self._names = Names(names)
        self._labels = Names(())
        self.calls: Counter[FunctionKey] = Counter()

    def rewrite(self, graph: onnx.GraphProto) -> None:
        """Replace every call in ``graph`` and the bodies below it."""
        calls = any(called(node) in self._functions for node in graph.node)
        nodes = list(self._rewritten(graph.node))
        if calls:
            del graph.node[:]
            graph.node.extend(nodes)

    def _rewritten(self, nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
        for node in nodes:
            for body in bodies_of(node):
                self.rewrite(body)
            function = self._functions.get(called(node))
            if function is None:
                yield node
            else:
                self.calls[called(node)] += 1
                yield from self._rewritten(self._written_out(node, function))

    def _written_out(self, call: onnx.NodeProto, function: onnx.FunctionProto) -> list[onnx.NodeProto]:
        import onnx

        label = self._labels.fresh(call.name or function.name)
        # An input that the call leaves out is left out of every node that would read it.
        renamed = dict.fromkeys(function.input, "") | dict(zip(function.input, call.input, strict=False))
        aliases = []
        for place, name in enumerate(function.output):
            wanted = call.output[place] if place < len(call.output) else ""
            if name not in renamed:
                renamed[name] = wanted or self._names.fresh(f"{label}/{name}")
            elif wanted:
                aliases.append((name, wanted))
        attributes = {a.name: a for a in (*function.attribute_proto, *call.attribute)}

        def rename(name: str) -> str:
            if name and name not in renamed:
                renamed[name] = self._names.fresh(f"{label}/{name}")
            return renamed.get(name, "")

        nodes = [self._copy(node, label, rename, attributes) for node in function.node]
        # An output that is an input, or the same as another output, has no node to take its name from.
        nodes += [onnx.helper.make_node("Identity", [rename(name)], [to]) for name, to in aliases]
        return nodes

    def _copy(
        self, node: onnx.NodeProto, label: str, rename: Callable[[str], str], attributes: Attributes
    ) -> onnx.NodeProto:
        copy = type(node)()
        copy.CopyFrom(node)
        if node.name:
            copy.name = self._names.fresh(f"{label}/{node.name}")
        copy.input[:] = [rename(name) for name in node.input]
        copy.output[:] = [rename(name) for name in node.output]
        del copy.attribute[:]
        for attribute in node.attribute:
            given = attributes.get(attribute.ref_attr_name) if attribute.ref_attr_name else attribute
            if given is None:
                continue  # the call leaves it out, and so does the node
            own = copy.attribute.add()
            own.CopyFrom(given)
            own.name = attribute.name
            if given is attribute:
                for body in (*([own.g] if own.HasField("g") else []), *own.graphs):
                    self._rename_body(body, label, rename, attributes)
        return copy

    def _rename_body(
        self, body: onnx.GraphProto, label: str, rename: Callable[[str], str], attributes: Attributes
    ) -> None:
        """Names that a body makes are new at each call; the others are the function's."""
        made = [value.name for value in (*body.input, *body.initializer)]
        made += [tensor.values.name for tensor in body.sparse_initializer]
        made += [name for node in body.node for name in node.output if name]
        own = {name: self._names.fresh(f"{label}/{name}") for name in dict.fromkeys(made)}

        def inner(name: str) -> str:
            return own[name] if name in own else rename(name)

        for value in (*body.input, *body.output, *body.value_info, *body.initializer):
            value.name = inner(value.name)
        for tensor in body.sparse_initializer:
            tensor.values.name = inner(tensor.values.name)
        for annotation in body.quantization_annotation:
            annotation.tensor_name = inner(annotation.tensor_name)
        nodes = [self._copy(node, label, inner, attributes) for node in body.node]
        del body.node[:]
        body.node.extend(nodes)
