"""What a module's code does not let an edit do, stated on the view as locks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from convbn.fuse.frontends.torch.calls.schema import is_marker
from convbn.fuse.frontends.torch.graph_view.build import Drawing, Source, innermost, stack
from convbn.fuse.frontends.torch.limits.batchnorm_children import Remainders
from convbn.fuse.frontends.torch.limits.inplace import Overwriting
from convbn.fuse.frontends.torch.modules.hidden_state import (
    kept_in_attributes,
    overlapping,
    patched_forwards,
    stored_tensors,
)
from convbn.fuse.frontends.torch.modules.instrument import Prepared
from convbn.fuse.frontends.torch.modules.layers import plain_forward
from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Node, Value
from convbn.fuse.view.ops import (
    BIAS,
    WEIGHT,
    BatchNorm,
    Conv,
    ConvTranspose,
    Elementwise,
    Linear,
    Normalization,
)

if TYPE_CHECKING:
    import torch

__all__ = ["Site", "add_locks"]


@dataclass(frozen=True, slots=True)
class Site:
    """Where in a module the edits of a node are made.

    Attributes:
        parameters: by slot, the qualified name of the tensor there, or of the one to add.
        path: the module that a BatchNorm is; None where it is none.
        remainder: names of the module's children that stay when the BatchNorm goes, in calling order.
        quiet: paths of modules that must no longer work in place then.
    """

    parameters: Mapping[int, str] = field(default_factory=dict)
    path: str | None = None
    remainder: tuple[str, ...] = ()
    quiet: tuple[str, ...] = ()


def add_locks(
    prepared: Prepared, drawing: Drawing, source: Source, spelled: Callable[[], Source | None]
) -> None:
    """Lock every edit that the module does not allow, and give each node its :class:`Site`.

    Args:
        prepared: the module.
        drawing: of ``source``.
        source: what was captured.
        spelled: see :class:`Overwriting`.
    """
    _Locksmith(prepared, drawing, source, spelled).work()


def _slots(node: Node) -> tuple[int, ...]:
    """The slots of a node in which a rule may put another constant."""
    if isinstance(node.op, BatchNorm):
        return (1, 2, 3, 4)
    if isinstance(node.op, Conv | ConvTranspose | Linear | Normalization):
        return (WEIGHT, BIAS)
    if isinstance(node.op, Elementwise):
        return tuple(slot for slot, value in enumerate(node.inputs) if value is not None and value.constant)
    return ()


def _between(before: list[str], behind: list[str]) -> set[str]:
    """The forwards that see what the code in one place hands to the code in another one."""
    return (set(before) ^ set(behind)) | set([path for path in before if path in behind][-1:] or [""])


class _Locksmith:
    def __init__(
        self, prepared: Prepared, drawing: Drawing, source: Source, spelled: Callable[[], Source | None]
    ) -> None:
        self._prepared = prepared
        self._spelled = spelled
        self._module = prepared.module
        self._parts = prepared.parts
        self._drawing = drawing
        self._source = source
        self._graph = source.graph
        self._tensors = prepared.tensors
        self._on_trial: dict[Node, dict[int, str]] = {}
        for (node, slot), name in drawing.on_trial.items():
            self._on_trial.setdefault(node, {})[slot] = name
        self._seen = self._seen_by_hooks()
        self._stored = stored_tensors(self._module)
        self._patched = patched_forwards(self._module)
        self._listed = kept_in_attributes(self._module)
        read = [value for node in drawing.view.nodes for value in node.inputs if value is not None]
        # In whatever shape it is read, and as a bias that is not there yet.
        self._uses = Counter([*(value.name for value in read), *drawing.on_trial.values()])
        used = {value.name: self._tensors[value.name] for value in read if value.name in self._tensors}
        self._overlapping = overlapping(used)

    def work(self) -> None:
        nodes = self._drawing.view.nodes
        norms = [node for node in nodes if isinstance(node.op, BatchNorm)]
        calls = Counter(id(self._submodule(innermost(node.handle))) for node in norms)
        remainders = Remainders(self._graph, self._prepared)
        handles = {node.handle for node in norms}
        overwriting = Overwriting(self._graph, self._source, handles, self._spelled)
        self._observe()
        sites = {}
        for node in nodes:
            self._lock_parameters(node, _slots(node))
            sites[node] = Site(self._parameters(node))
            if not isinstance(node.op, BatchNorm):
                node.locks["bypass"] = Refusal(
                    Reason.NOT_A_MODULE, f"{node.label} is part of a forward's code, which stays"
                )
        for node in norms:
            path = innermost(node.handle)
            remainder = remainders.of(node.handle)
            refusal = self._why_it_must_stay(node, path, calls[id(self._submodule(path))], remainder)
            kept = () if isinstance(remainder, Refusal) else remainder
            quiet: tuple[str, ...] | Refusal = ()
            if refusal is None:
                inner = {f"{path}.{name}" for name in kept}
                quiet = overwriting.modules_behind(node.handle, self._parts, inner)
                refusal = quiet if isinstance(quiet, Refusal) else None
            if refusal is not None:
                node.locks["bypass"] = refusal
            sites[node] = Site(
                self._parameters(node), path, kept, () if isinstance(quiet, Refusal) else quiet
            )
        for node, site in sites.items():
            node.handle = site

    def _observe(self) -> None:
        """Let no map pass a value that a hook sees, or that a forward may keep."""
        for node in self._drawing.view.nodes:
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

    def _submodule(self, path: str) -> torch.nn.Module:
        return self._parts[path]

    def _parameters(self, node: Node) -> dict[int, str]:
        """The qualified names of a node's tensors, by slot; also of those that are there on trial."""
        names = dict(self._on_trial.get(node, {}))
        for slot, value in enumerate(node.inputs):
            if slot and value is not None and value.name in self._tensors:
                names[slot] = value.name
        return names

    def _lock_parameters(self, node: Node, slots: tuple[int, ...]) -> None:
        path = innermost(node.handle)
        names = self._parameters(node)
        patched = next((p for p in stack(node.handle) if p in self._patched), None)
        unknown = self._not_looked_into(node)
        for slot in slots:
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
            elif self._uses[names[slot]] > (1 if value is None else len(value.readers)):
                node.locks[slot] = self._used_again(node, names[slot])
            elif names[slot] in self._overlapping:
                node.locks[slot] = Refusal(
                    Reason.PARAMETER_SHARED,
                    f"'{names[slot]}' shares its memory with '{self._overlapping[names[slot]]}'",
                )
            elif value is not None and value.observed:
                node.locks[slot] = Refusal(
                    Reason.PARAMETER_SHARED, f"'{names[slot]}' of {node.label} is also {value.observed}"
                )
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
        part = self._submodule(str(node.handle.target))
        if plain_forward(part):
            return None
        return Refusal(
            Reason.PRODUCER_NOT_LINEAR,
            f"{type(part).__name__} '{node.name}' has a forward of its own, which only example inputs show",
        )

    def _name_parametrization(self, value: Value, path: str, slot: int) -> None:
        part = self._submodule(path)
        name = "weight" if slot == WEIGHT else "bias"
        if value.not_constant is None and path and name not in part._parameters and hasattr(part, name):
            value.not_constant = Refusal(
                Reason.PARAMETRIZED,
                f"the {name} of '{path}' is computed from other tensors (a parametrization, weight norm "
                "or pruning), which must be removed first",
            )

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
        readers = {reader.node for reader in value.readers}
        return len(readers) > 1 and {innermost(node.handle) for node in readers} == {path}

    def _why_it_must_stay(
        self, node: Node, path: str, calls: int, remainder: tuple[str, ...] | Refusal
    ) -> Refusal | None:
        part = self._submodule(path)
        if calls > 1 and path:
            return Refusal(Reason.CALLED_SEVERAL_TIMES, f"'{path}' normalises {calls} times in one run")
        data = node.input(0)
        if id(data) in self._seen:
            return Refusal(
                Reason.HOOKED, f"a hook of '{self._seen[id(data)]}' sees the numbers before the BatchNorm"
            )
        if isinstance(remainder, Refusal):
            return remainder
        if id(part) in self._listed:
            return Refusal(
                Reason.NOT_A_MODULE,
                f"'{path}' is also kept in {self._listed[id(part)]}, outside the module tree",
            )
        producer = None if data is None else data.producer
        if producer is None:
            return None
        here = stack(node.handle)
        frames = _between(stack(producer.handle), here)
        for frame in sorted(frames & self._patched):
            if frame in here:
                return Refusal(Reason.HOOKED, f"the forward of '{frame}' is replaced on the object itself")
        return None

    def _seen_by_hooks(self) -> dict[int, str]:
        """Values that go into or come out of a hooked module."""
        seen: dict[int, str] = {}
        values = self._drawing.values
        for node in self._graph.nodes:
            path = str(node.target) if node.op == "call_module" else innermost(node)
            marker = node.op == "call_module" or is_marker(node)
            if marker and path in self._prepared.hooked:
                for read in (node, *node.all_input_nodes):
                    if read in values:
                        seen[id(values[read])] = path
        return seen
