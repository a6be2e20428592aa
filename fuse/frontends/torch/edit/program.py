"""A plan's edits on a copy of an exported program."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from numpy.typing import NDArray

from convbn.fuse.frontends.torch.calls.aten import map_aten
from convbn.fuse.frontends.torch.calls.schema import arguments
from convbn.fuse.frontends.torch.calls.tensors import to_tensor
from convbn.fuse.frontends.torch.edit.writing import call_of, copied, fresh, put_argument, rename
from convbn.fuse.operators.calls import Mapped
from convbn.fuse.operators.elementwise import Elementwise
from convbn.fuse.view.dataflow import Constant, Value
from convbn.fuse.view.edits import Edit, Evaluate, Replace, SetConstant
from convbn.fuse.view.op import WEIGHT, Op

if TYPE_CHECKING:
    import torch
    import torch.fx
    from torch.export import ExportedProgram

__all__ = ["edit_program"]


def edit_program(
    program: ExportedProgram, module: torch.fx.GraphModule, edits: Sequence[Edit]
) -> ExportedProgram:
    """A program with the edits made; tensors that none of them touches are shared with ``program``.

    Args:
        program: with the tensors and signatures; not changed.
        module: the graph that was drawn, with the program's placeholders; not changed.
        edits: in order. Of several constants for one slot only the last is made, and none for a node that is
            bypassed or given all of its operands later.
    """
    editor = _Editor(program, module)
    last = {(id(e.node), e.slot): e for e in edits if isinstance(e, SetConstant)}
    later = {id(e.node): i for i, e in enumerate(edits) if not isinstance(e, SetConstant)}
    for i, edit in enumerate(edits):
        if isinstance(edit, SetConstant):
            if last[id(edit.node), edit.slot] is edit and later.get(id(edit.node), -1) < i:
                editor.set_constant(edit)
        elif isinstance(edit, Replace):
            editor.exchange(edit)
        elif isinstance(edit, Evaluate):
            editor.store(edit)
        else:
            editor.bypass(edit.node.handle.name, edit.slot)
    return editor.finish()


_SUFFIXES = ("input", "weight", "bias", "running_mean", "running_var")


class _Editor:
    def __init__(self, program: ExportedProgram, module: torch.fx.GraphModule) -> None:
        self._program = program
        self._module = copy.deepcopy(module)
        self._graph = self._module.graph
        self._signature = copy.deepcopy(program.graph_signature)
        self._inputs: list[Any] = self._signature.input_specs
        self._calls = [copied(call) for call in program.module_call_graph]
        self._state = dict(program.state_dict)
        self._constants: dict[str, Any] = dict(program.constants)
        self._nodes: dict[str, torch.fx.Node] = {}
        for original, node in zip(module.graph.nodes, self._graph.nodes, strict=True):
            # A copy renames what is called like a builtin ("input"), and the signature does not follow.
            node.name = original.name
            self._nodes[node.name] = node
        self._stale: set[torch.fx.Node] = set()
        self._gone: set[torch.fx.Node] = set()
        self._shared: dict[tuple[Hashable, int], torch.fx.Node] = {}
        self._sums: dict[torch.fx.Node, torch.fx.Node] = {}
        self._wanted: dict[torch.fx.Node, str] = {}
        self._specs = dict(zip(self._graph.find_nodes(op="placeholder"), self._inputs, strict=True))
        outputs: list[Any] = [graph.output_node().args[0] for graph in (program.graph, self._graph)]
        for stated, given in zip(*outputs, strict=True):
            # An output that showed another one's memory is what was written there last.
            if stated is not None:
                rename(self._signature, self._calls, getattr(stated, "name", ""), getattr(given, "name", ""))

    def set_constant(self, edit: SetConstant) -> None:
        name, slot, values, adds = edit.node.handle.name, edit.slot, edit.values, edit.node.adds
        node = self._nodes[name]
        mapped = self._mapped(node)
        read = mapped.slots[slot] if slot < len(mapped.slots) else None
        current = read if self._is_state(read) else None
        key = (edit.constant.key, slot)
        if key in self._shared and mapped.through is None and slot not in adds:
            # The same layer, called again: one tensor for all of its calls.
            self._stale.update(other for other in (read,) if isinstance(other, type(node)))
            put_argument(node, mapped, slot, self._shared[key])
            return
        if current is not None and self._only_for(current, node, mapped.through):
            self._replace(current, values)
            self._shared[key] = current
            return
        named = mapped.names[slot] in (*_SUFFIXES[1:], None)
        suffix = None if current is not None else _SUFFIXES[slot] if named else "folded"
        beside = current or self._neighbour(node, mapped, slot)
        own = self._shared[key] = self._insert(beside, suffix, values)
        if slot == WEIGHT and mapped.through is not None:
            with self._graph.inserting_before(node):
                turned = self._graph.node_copy(mapped.through)
            turned.replace_input_with(beside, own)
            node.replace_input_with(mapped.through, turned)
            self._stale.add(mapped.through)
        else:
            self._stale.update(other for other in (read,) if isinstance(other, type(node)))
            if slot in adds:
                self._add(node, own)
            else:
                put_argument(node, mapped, slot, own)

    def _add(self, node: torch.fx.Node, bias: torch.fx.Node) -> None:
        """The sum of a product and a bias, which whoever read the product reads in its place."""
        import torch

        with self._graph.inserting_after(node):
            total = self._graph.call_function(torch.ops.aten.add.Tensor, (node, bias))
        total.meta.update(node.meta)
        node.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
        rename(self._signature, self._calls, node.name, total.name)
        self._sums[node] = total

    def exchange(self, edit: Replace) -> None:
        """Another operator over other operands, in the place of the node and under its name."""
        node = self._nodes[edit.node.handle.name]
        operands: list[torch.fx.Node | None] = []
        for slot, operand in enumerate(edit.operands):
            if isinstance(operand, Constant):
                operands.append(self._own_tensor(node, edit.op, slot, operand.array()))
            else:
                operands.append(None if operand is None else self._node_of(operand))
        self._stale.update(node.all_input_nodes)
        several = isinstance(node.meta.get("val"), tuple | list)
        if several:
            node.meta["val"] = node.meta["val"][0]
        node.target, node.args = call_of(edit.op, operands, like=node.target)
        node.kwargs = {}
        for user in list(node.users) if several else ():
            user.replace_all_uses_with(node)
            rename(self._signature, self._calls, user.name, node.name)
            self._graph.erase_node(user)
            self._gone.add(user)

    def _own_tensor(self, node: torch.fx.Node, op: Op, slot: int, values: NDArray[Any]) -> torch.fx.Node:
        """A tensor for nobody but ``node``: the one that stands there, if it is that, with other numbers."""
        mapped = self._mapped(node)
        read = mapped.slots[slot] if slot < len(mapped.slots) else None
        if type(op) is type(mapped.op) and self._is_state(read) and self._only_for(read, node, None):
            self._replace(read, values)
            return read
        suffix = "folded" if isinstance(op, Elementwise) else _SUFFIXES[slot]
        return self._insert(self._neighbour(node, mapped, slot), suffix, values)

    def store(self, edit: Evaluate) -> None:
        """A tensor of the program in the place of what computes it."""
        node = self._nodes[edit.node.handle.name]
        beside = self._nearest(node.all_input_nodes)
        own = self._nodes[node.name] = self._insert(beside, "computed", edit.constant.array())
        node.replace_all_uses_with(own)
        self._stale.add(node)

    def bypass(self, name: str, slot: int) -> None:
        node = self._nodes[name]
        source = self._mapped(node).slots[slot]
        if not isinstance(source, type(node)):
            raise ValueError(f"{node.name} has no input to be bypassed to")
        several = isinstance(node.meta.get("val"), tuple | list)
        outputs = [user for user in node.users if user.args[1] == 0] if several else [node]
        for output in outputs:
            output.replace_all_uses_with(source)
            rename(self._signature, self._calls, output.name, source.name)
        self._stale.update(read for read in node.all_input_nodes if read is not source)
        for gone in (*node.users, node):
            self._graph.erase_node(gone)
            self._gone.add(gone)

    def _node_of(self, value: Value) -> torch.fx.Node:
        """The node that a value of the view is now: bypassed nodes are gone from both alike."""
        producer = value.producer
        if producer is None:
            return self._nodes[value.name]
        node: torch.fx.Node = self._nodes[producer.handle.name]
        if not isinstance(node.meta.get("val"), tuple | list):
            return self._sums.get(node, node)  # one result
        index = producer.outputs.index(value)
        found: torch.fx.Node = next(user for user in node.users if user.args[1] == index)
        return found

    def _neighbour(self, node: torch.fx.Node, mapped: Mapped, slot: int) -> torch.fx.Node:
        """The tensor of the program that a new one for ``slot`` of ``node`` stands beside."""
        slots = mapped.slots[slot : slot + 1] + mapped.slots[1:] + mapped.slots[:1]
        return self._nearest([read for read in (*slots, mapped.through) if isinstance(read, type(node))])

    def _nearest(self, waiting: list[torch.fx.Node]) -> torch.fx.Node:
        """The first tensor of the program on the way back from some nodes."""
        seen = set(waiting)
        while waiting:
            current = waiting.pop(0)
            if self._is_float(current):
                return current
            # What a constant is computed from, else the nearest tensor before it.
            further = [read for read in current.all_input_nodes if read not in seen]
            seen.update(further)
            waiting.extend(further)
        first: torch.fx.Node = next(read for read in self._specs if self._is_float(read))
        return first

    def _is_float(self, node: torch.fx.Node) -> bool:
        return self._is_state(node) and bool(self._tensor(self._specs[node].target).is_floating_point())

    def finish(self) -> ExportedProgram:
        from torch.export import ExportedProgram

        self._remove_dead()
        self._remove_stale()
        self._settle_names()
        self._graph.lint()
        self._module.recompile()
        return ExportedProgram(  # validates itself
            root=self._module,
            graph=self._graph,
            graph_signature=self._signature,
            state_dict=self._state,
            range_constraints=copy.deepcopy(self._program.range_constraints),
            module_call_graph=self._calls,
            example_inputs=self._program.example_inputs,
            constants=self._constants,
            verifiers=self._program.verifiers,
        )

    def _mapped(self, node: torch.fx.Node) -> Mapped:
        mapped = map_aten(node)
        if mapped is None:
            raise ValueError(f"{node.name} is no node that a plan edits")
        return mapped

    def _is_state(self, node: torch.fx.Node | str | float | None) -> TypeGuard[torch.fx.Node]:
        """Whether the node stands for a tensor of the program."""
        if node is None or isinstance(node, str | int | float) or node.op != "placeholder":
            return False
        target = self._specs[node].target
        return target in self._state or target in self._constants

    def _held(self, target: str) -> dict[str, Any]:
        """The program's own tensors of the kind that one is."""
        return self._state if target in self._state else self._constants

    def _tensor(self, target: str) -> Any:
        return self._held(target)[target]

    def _only_for(
        self, placeholder: torch.fx.Node, node: torch.fx.Node, through: torch.fx.Node | None
    ) -> bool:
        """Whether nobody but ``node`` sees the tensor."""
        users = set(placeholder.users)
        if through in users and set(through.users) == {node}:
            users = (users - {through}) | {node}
        target = self._specs[placeholder].target
        reads = sum(read is placeholder for read in arguments(node).values())
        return users == {node} and reads <= 1 and sum(spec.target == target for spec in self._inputs) == 1

    def _replace(self, placeholder: torch.fx.Node, values: NDArray[Any]) -> None:
        target = self._specs[placeholder].target
        self._held(target)[target] = self._like(self._tensor(target), values)
        if tuple(placeholder.meta["val"].shape) != values.shape:
            placeholder.meta["val"] = placeholder.meta["val"].new_empty(values.shape)

    def _like(self, old: torch.Tensor, values: NDArray[Any]) -> torch.Tensor:
        import torch

        new = to_tensor(values, old)
        return torch.nn.Parameter(new, old.requires_grad) if isinstance(old, torch.nn.Parameter) else new

    def _insert(self, beside: torch.fx.Node, suffix: str | None, values: NDArray[Any]) -> torch.fx.Node:
        """A placeholder for a new tensor, of the kind of the one it stands beside."""
        spec = self._specs[beside]
        target = spec.target if suffix is None else f"{spec.target.rpartition('.')[0]}.{suffix}".lstrip(".")
        wanted, target = target, fresh(target, {*self._state, *self._constants})
        old = self._tensor(spec.target)
        self._held(spec.target)[target] = self._like(old, values)
        with self._graph.inserting_after(beside):
            placeholder: torch.fx.Node = self._graph.placeholder(f"{beside.name}_{suffix or 'own'}")
        placeholder.target = placeholder.name  # FX makes the name unique, and writes the target into the code
        new_dtype = self._held(target)[target].dtype
        placeholder.meta["val"] = beside.meta["val"].new_empty(values.shape, dtype=new_dtype)
        new = copy.deepcopy(spec)
        new.arg.name, new.target = placeholder.name, target
        self._inputs.insert(self._inputs.index(spec) + 1, new)
        self._specs[placeholder] = new
        self._wanted[placeholder] = wanted
        return placeholder

    def _settle_names(self) -> None:
        """Give new tensors the names of those whose place they took, where these have gone."""
        for placeholder, wanted in self._wanted.items():
            spec = self._specs[placeholder]
            if wanted in self._state or wanted in self._constants or not placeholder.users:
                continue
            held = self._held(spec.target)
            held[wanted] = held.pop(spec.target)
            spec.target = wanted

    def _remove_dead(self) -> None:
        """Drop what only computed constants that nobody reads any more."""
        waiting = list(self._stale)
        erased = set(self._gone)
        while waiting:
            node = waiting.pop()
            if node.op != "call_function" or node.users or node in erased:
                continue
            self._stale.update(node.all_input_nodes)
            waiting.extend(node.all_input_nodes)
            self._graph.erase_node(node)
            erased.add(node)

    def _remove_stale(self) -> None:
        """Drop what only the bypassed nodes read, under all its names, and their batch counters."""
        gone: set[int] = set()
        folders: set[str] = set()
        for placeholder in self._stale:
            if self._is_state(placeholder) and not placeholder.users:
                target = self._specs[placeholder].target
                gone.add(id(self._tensor(target)))
                folders.add(target.rpartition(".")[0])
        for placeholder in self._graph.find_nodes(op="placeholder"):
            spec = self._specs[placeholder]
            if placeholder.users or not self._is_state(placeholder):
                continue
            folder, _, name = spec.target.rpartition(".")
            counter = name == "num_batches_tracked" and folder in folders
            if counter or id(self._tensor(spec.target)) in gone:
                self._graph.erase_node(placeholder)
                self._inputs.remove(spec)
                self._state.pop(spec.target, None)
                self._constants.pop(spec.target, None)
