"""Edits that the graph of a module would allow and the module does not: shared tensors, hooks, replaced forwards.

Each is stated on the view, as a lock of the node that would be edited or as a value that somebody observes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from convbn.fuse.frontends.torch.calls.schema import is_marker
from convbn.fuse.frontends.torch.edit.module import EditSite
from convbn.fuse.frontends.torch.graph_view.build import CapturedGraph, GraphView, innermost, stack
from convbn.fuse.frontends.torch.limits.batchnorm_children import BatchNormChildren
from convbn.fuse.frontends.torch.limits.inplace import InplaceWrites
from convbn.fuse.frontends.torch.materialize.weights import OTHER_FORMS, materializable
from convbn.fuse.frontends.torch.modules.hidden_state import (
    kept_in_attributes,
    overlapping,
    patched_forwards,
    stored_tensors,
)
from convbn.fuse.frontends.torch.modules.instrument import Instrumented
from convbn.fuse.frontends.torch.modules.layers import plain_forward
from convbn.fuse.frontends.torch.modules.registered_convs import conv_layout_of
from convbn.fuse.operators.batch_norm import BatchNorm
from convbn.fuse.operators.contraction import Contraction
from convbn.fuse.operators.conv import Conv
from convbn.fuse.operators.conv_transpose import ConvTranspose
from convbn.fuse.operators.elementwise import Elementwise
from convbn.fuse.operators.gather import Gather
from convbn.fuse.operators.linear import Linear
from convbn.fuse.operators.normalization import Normalization
from convbn.fuse.operators.registered_conv import RegisteredConv
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.op import BIAS, WEIGHT

__all__ = ["constrain_edits"]


def constrain_edits(
    instrumented: Instrumented,
    graph_view: GraphView,
    captured: CapturedGraph,
    as_written: Callable[[], CapturedGraph | None],
) -> None:
    """Lock every edit that the module does not allow, and give each node its :class:`EditSite`.

    Args:
        instrumented: the module.
        graph_view: of ``captured``.
        captured: the graph of the module.
        as_written: see :class:`InplaceWrites`.
    """
    _EditConstraints(instrumented, graph_view, captured, as_written).state()


def _slots(node: Node) -> tuple[int, ...]:
    """The slots of a node in which a rule may put another constant."""
    if isinstance(node.op, BatchNorm):
        return (1, 2, 3, 4)
    if isinstance(node.op, Conv | ConvTranspose | Linear | Normalization | RegisteredConv):
        return (WEIGHT, BIAS)
    if isinstance(node.op, Contraction):
        return (node.op.weight_slot, BIAS)
    if isinstance(node.op, Elementwise | Gather):
        return tuple(slot for slot, value in enumerate(node.inputs) if value is not None and value.constant)
    return ()


@dataclass(frozen=True, slots=True)
class _Readers:
    """Who reads more of a value than its shape and type.

    Attributes:
        times: how often it is read.
        nodes: how many read it.
        paths: of the modules whose forwards read it.
    """

    times: int
    nodes: int
    paths: frozenset[str]


def _between(before: list[str], behind: list[str]) -> set[str]:
    """The forwards that see what the code in one place hands to the code in another one."""
    return (set(before) ^ set(behind)) | set([path for path in before if path in behind][-1:] or [""])


class _EditConstraints:
    def __init__(
        self,
        instrumented: Instrumented,
        graph_view: GraphView,
        captured: CapturedGraph,
        as_written: Callable[[], CapturedGraph | None],
    ) -> None:
        self._instrumented = instrumented
        self._as_written = as_written
        self._parts = instrumented.parts
        self._graph_view = graph_view
        self._captured = captured
        self._tensors = instrumented.tensors
        self._seen = self._seen_by_hooks()
        self._stored = stored_tensors(instrumented.module)
        self._patched = patched_forwards(instrumented.module)
        self._listed = kept_in_attributes(instrumented.module)
        read = [value for node in graph_view.view.nodes for value in node.inputs if value is not None]
        # In whatever shape it is read, and as a bias that is not there yet.
        self._uses = Counter(
            value.name
            for node in graph_view.view.nodes
            for slot, value in enumerate(node.inputs)
            if value is not None and node.op.sees_numbers(slot)
        )
        self._uses.update(name for slots in graph_view.on_trial.values() for name in slots.values())
        used = {value.name: self._tensors[value.name] for value in read if value.name in self._tensors}
        self._overlapping = overlapping(used)
        self._readers: dict[Value, _Readers] = {}

    def state(self) -> None:
        nodes = self._graph_view.view.nodes
        norms = [node for node in nodes if isinstance(node.op, BatchNorm)]
        calls = Counter(id(self._parts[innermost(node.handle)]) for node in norms)
        children = BatchNormChildren(self._captured.graph, self._instrumented)
        handles = {node.handle for node in norms}
        writes = InplaceWrites(self._captured, handles, self._as_written)
        self._observe()
        sites = {}
        for node in nodes:
            node.ties = self._parameters(node)
            self._constrain_parameters(node)
            sites[node] = EditSite(node.ties)
            if not isinstance(node.op, BatchNorm):
                node.locks["bypass"] = Refusal(
                    Reason.NOT_A_MODULE, f"{node.label} is part of a forward's code, which stays"
                )
        for node in norms:
            path = innermost(node.handle)
            kept = children.of(node.handle)
            sites[node] = EditSite(node.ties, path)
            refusal = self._why_it_must_stay(node, path, kept)
            if refusal is None and not isinstance(kept, Refusal):
                inner = {f"{path}.{name}" for name in kept}
                out_of_place = writes.modules_behind(node.handle, self._parts, inner)
                if isinstance(out_of_place, Refusal):
                    refusal = out_of_place
                else:
                    sites[node] = replace(sites[node], kept=kept, out_of_place=out_of_place)
            times = calls[id(self._parts[path])]
            if refusal is None and times > 1 and path:
                refusal = Refusal(
                    Reason.CALLED_SEVERAL_TIMES,
                    f"'{path}' normalises {times} times in one run, not always behind the same layer",
                )
            if refusal is not None:
                node.locks["bypass"] = refusal
        for node, site in sites.items():
            node.handle = site

    def _observe(self) -> None:
        """Let no map pass a value that a hook sees, or that a forward may keep."""
        for node in self._graph_view.view.nodes:
            for value in node.outputs:
                keeper = self._kept_by(value)
                if id(value) in self._seen:
                    value.observed = f"seen by a hook of '{self._seen[id(value)]}'"
                elif keeper is not None:
                    value.observed = f"perhaps kept in '{self._stored[keeper]}' of '{keeper or 'the model'}'"

    def _kept_by(self, value: Value) -> str | None:
        """The forward that can see a value and keeps some tensor in an attribute."""
        producer = value.producer
        if producer is None or not self._stored:
            return None
        before = stack(producer.handle)
        frames: set[str] = set()
        for reader in value.readers or ():
            frames |= _between(before, stack(reader.node.handle))
        return min(frames & {*self._stored}, default=None)

    def _parameters(self, node: Node) -> dict[int, str]:
        """The qualified names of a node's tensors, by slot; also of those that are there on trial."""
        names = dict(self._graph_view.on_trial.get(node, {}))
        for slot, value in enumerate(node.inputs):
            stored = slot or isinstance(node.op, Gather)
            if stored and value is not None and value.name in self._tensors:
                names[slot] = value.name
        return names

    def _constrain_parameters(self, node: Node) -> None:
        path = innermost(node.handle)
        names = self._parameters(node)
        patched = next((p for p in stack(node.handle) if p in self._patched), None)
        unknown = self._not_looked_into(node)
        for slot in _slots(node):
            value = node.input(slot)
            if slot in node.locks:
                continue
            if value is not None and value.constant is None:
                self._name_parametrization(value, path, slot)
            if patched is not None:
                node.locks[slot] = Refusal(
                    Reason.HOOKED, f"the forward of '{patched}' is replaced on the object itself"
                )
            elif unknown is not None:
                node.locks[slot] = unknown
            elif slot not in names:
                node.locks[slot] = self._no_parameter(node, slot, value)
            elif names[slot] in self._overlapping:
                node.locks[slot] = Refusal(
                    Reason.PARAMETER_SHARED,
                    f"'{names[slot]}' shares its memory with '{self._overlapping[names[slot]]}'",
                )
            elif value is not None and value.observed:
                node.locks[slot] = Refusal(
                    Reason.PARAMETER_SHARED, f"'{names[slot]}' of {node.label} is also {value.observed}"
                )
            elif self._uses[names[slot]] > (1 if value is None else self._readers_of(value).times):
                node.locks[slot] = self._used_again(node, names[slot])
            elif value is not None and self._only_called_again(value, path):
                node.locks[slot] = Refusal(
                    Reason.CALLED_SEVERAL_TIMES,
                    f"'{path}' uses '{names[slot]}' {len(value.readers)} times in one run",
                )

    def _used_again(self, node: Node, name: str) -> Refusal:
        """What is read in several shapes, or would be a bias of several calls."""
        return Refusal(
            Reason.CALLED_SEVERAL_TIMES,
            f"'{name}' of {node.label} would be used {self._uses[name]} times in one run",
        )

    def _not_looked_into(self, node: Node) -> Refusal | None:
        """Why a traced layer whose forward is not its class's own cannot be edited."""
        if node.handle.op != "call_module":
            return None
        part = self._parts[str(node.handle.target)]
        if plain_forward(part) or conv_layout_of(part) is not None:
            return None
        return Refusal(
            Reason.PRODUCER_NOT_LINEAR,
            f"{type(part).__name__} '{node.name}' has a forward of its own, which only example inputs show",
        )

    def _name_parametrization(self, value: Value, path: str, slot: int) -> None:
        part = self._parts[path]
        name = "weight" if slot == WEIGHT else "bias"
        if value.not_constant is not None or not path:
            return
        if name not in part._parameters and hasattr(part, name):
            value.not_constant = Refusal(
                Reason.PARAMETRIZED,
                f"the {name} of '{path}' is computed from other tensors (a parametrization, weight norm "
                f"or pruning): {OTHER_FORMS}",
            )
        elif slot == WEIGHT and materializable(part):
            detail = f"the forward of '{path}' computes its weight at every call: {OTHER_FORMS}"
            value.not_constant = Refusal(Reason.PARAMETRIZED, detail)

    def _no_parameter(self, node: Node, slot: int, value: Value | None) -> Refusal:
        if value is None:
            return Refusal(Reason.NO_BIAS, f"the forward behind {node.label} does not read a bias")
        if isinstance(node.op, Elementwise):
            return Refusal(
                Reason.NOT_A_MODULE, f"the constant of {node.label} is part of a forward's code, which stays"
            )
        return Refusal(
            Reason.PARAMETRIZED, f"'{value.name}' of {node.label} is no parameter or buffer of a module"
        )

    def _only_called_again(self, value: Value, path: str) -> bool:
        readers = self._readers_of(value)
        return readers.nodes > 1 and readers.paths == {path}

    def _readers_of(self, value: Value) -> _Readers:
        # Once: a weight that is used in every step of a loop would be looked through in every step again.
        if value not in self._readers:
            seeing = [reader.node for reader in value.readers if reader.sees_numbers]
            paths = frozenset(innermost(node.handle) for node in seeing)
            self._readers[value] = _Readers(len(seeing), len(set(seeing)), paths)
        return self._readers[value]

    def _why_it_must_stay(self, node: Node, path: str, kept: tuple[str, ...] | Refusal) -> Refusal | None:
        part = self._parts[path]
        if path in self._instrumented.read:
            return Refusal(
                Reason.NOT_A_MODULE,
                f"the code around '{path}' reads its '{self._instrumented.read[path]}', so it must stay there",
            )
        data = node.input(0)
        if id(data) in self._seen:
            return Refusal(
                Reason.HOOKED, f"a hook of '{self._seen[id(data)]}' sees the numbers before the BatchNorm"
            )
        if isinstance(kept, Refusal):
            more = f"; {OTHER_FORMS}" if materializable(part) else ""
            return replace(kept, sentence=kept.detail + more)
        if id(part) in self._listed:
            return Refusal(
                Reason.NOT_A_MODULE,
                f"'{path}' is also kept in {self._listed[id(part)]}, outside the module tree",
            )
        producer = None if data is None else data.producer
        if producer is None:
            return None
        here = stack(node.handle)
        frames = _between(stack(producer.handle), here) & self._patched & {*here}
        if frames:
            return Refusal(Reason.HOOKED, f"the forward of '{min(frames)}' is replaced on the object itself")
        return None

    def _seen_by_hooks(self) -> dict[int, str]:
        """Values that go into or come out of a hooked module."""
        seen: dict[int, str] = {}
        values = self._graph_view.values
        for node in self._captured.graph.nodes:
            path = str(node.target) if node.op == "call_module" else innermost(node)
            marker = node.op == "call_module" or is_marker(node)
            if marker and path in self._instrumented.hooked:
                for read in (node, *node.all_input_nodes):
                    if read in values:
                        seen[id(values[read])] = path
        return seen
