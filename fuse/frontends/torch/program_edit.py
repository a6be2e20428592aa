"""A plan's edits on a copy of an exported program."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeGuard

from numpy.typing import NDArray

from convbn.fuse.frontends.torch.aten import Mapped, arguments, map_aten
from convbn.fuse.frontends.torch.tensors import to_tensor
from convbn.fuse.view.edits import Edit, SetConstant
from convbn.fuse.view.ops import BIAS, WEIGHT

if TYPE_CHECKING:
    import torch
    import torch.fx
    from torch.export import ExportedProgram
    from torch.export.exported_program import ModuleCallEntry

__all__ = ["edit_program"]


def edit_program(program: ExportedProgram, edits: Sequence[Edit]) -> ExportedProgram:
    """A program with the edits made; tensors that none of them touches are shared with ``program``."""
    editor = _Editor(program)
    for edit in edits:
        if isinstance(edit, SetConstant):
            editor.set_constant(edit.node.handle.name, edit.slot, edit.values)
        else:
            editor.bypass(edit.node.handle.name)
    return editor.finish()


def _copied(call: ModuleCallEntry) -> ModuleCallEntry:
    """A copy whose names can be changed; the tree specs beside them are constant."""
    signature = call.signature
    if signature is None:
        return call
    inputs, outputs = copy.deepcopy(signature.inputs), copy.deepcopy(signature.outputs)
    return replace(call, signature=replace(signature, inputs=inputs, outputs=outputs))


class _Editor:
    def __init__(self, program: ExportedProgram) -> None:
        from torch.export.graph_signature import ExportGraphSignature

        self._program = program
        self._module = copy.deepcopy(program.graph_module)
        self._graph = self._module.graph
        signature = program.graph_signature
        self._inputs = list(copy.deepcopy(signature.input_specs))
        self._signature = ExportGraphSignature(self._inputs, list(copy.deepcopy(signature.output_specs)))
        self._calls = [_copied(call) for call in program.module_call_graph]
        self._state = dict(program.state_dict)
        self._constants: dict[str, Any] = dict(program.constants)
        self._nodes: dict[str, torch.fx.Node] = {}
        for original, node in zip(program.graph.nodes, self._graph.nodes, strict=True):
            # A copy renames what is called like a builtin ("input"), and the signature does not follow.
            node.name = original.name
            self._nodes[node.name] = node
        self._stale: set[torch.fx.Node] = set()

    def set_constant(self, name: str, slot: int, values: NDArray[Any]) -> None:
        node = self._nodes[name]
        mapped = self._mapped(node)
        read = mapped.slots[slot] if slot < len(mapped.slots) else None
        current = read if self._is_state(read) else None
        if current is not None and self._only_for(current, node, mapped.through):
            self._replace(current, values)
            return
        # A BatchNorm without γ and β has its mean to stand beside.
        beside = current or next(other for other in mapped.slots[1:] if self._is_state(other))
        own = self._insert(beside, None if current is not None else ("", "weight", "bias")[slot], values)
        if slot == WEIGHT and mapped.through is not None:
            with self._graph.inserting_before(node):
                turned = self._graph.node_copy(mapped.through)
            turned.replace_input_with(beside, own)
            node.replace_input_with(mapped.through, turned)
            if not mapped.through.users:
                self._graph.erase_node(mapped.through)
        else:
            self._set_argument(node, mapped, slot, own)

    def bypass(self, name: str) -> None:
        node = self._nodes[name]
        source = self._mapped(node).slots[0]
        if source is None or isinstance(source, str):
            raise ValueError(f"{node.name} has no input to be bypassed to")
        outputs = [node]
        if isinstance(node.meta.get("val"), tuple | list):
            outputs = [user for user in node.users if user.args[1] == 0]
        for output in outputs:
            output.replace_all_uses_with(source)
            self._rename(output.name, source.name)
        self._stale.update(read for read in node.all_input_nodes if read.op == "placeholder")
        for user in list(node.users):
            self._graph.erase_node(user)
        self._graph.erase_node(node)

    def finish(self) -> ExportedProgram:
        from torch.export import ExportedProgram

        self._remove_stale()
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

    def _spec(self, placeholder: torch.fx.Node) -> Any:
        return next(spec for spec in self._inputs if getattr(spec.arg, "name", None) == placeholder.name)

    def _is_state(self, node: torch.fx.Node | str | None) -> TypeGuard[torch.fx.Node]:
        """Whether the node stands for a tensor of the program."""
        if node is None or isinstance(node, str) or node.op != "placeholder":
            return False
        return self._spec(node).target is not None

    def _tensor(self, target: str) -> Any:
        return self._state[target] if target in self._state else self._constants[target]

    def _only_for(
        self, placeholder: torch.fx.Node, node: torch.fx.Node, through: torch.fx.Node | None
    ) -> bool:
        """Whether nobody but ``node`` sees the tensor."""
        users = set(placeholder.users)
        if through in users and set(through.users) == {node}:
            users = (users - {through}) | {node}
        target = self._spec(placeholder).target
        reads = sum(read is placeholder for read in arguments(node).values())
        return users == {node} and reads <= 1 and sum(spec.target == target for spec in self._inputs) == 1

    def _replace(self, placeholder: torch.fx.Node, values: NDArray[Any]) -> None:
        target = self._spec(placeholder).target
        new = self._like(self._tensor(target), values)
        (self._state if target in self._state else self._constants)[target] = new

    def _like(self, old: torch.Tensor, values: NDArray[Any]) -> torch.Tensor:
        import torch

        new = to_tensor(values, old)
        return torch.nn.Parameter(new, old.requires_grad) if isinstance(old, torch.nn.Parameter) else new

    def _insert(self, beside: torch.fx.Node, suffix: str | None, values: NDArray[Any]) -> torch.fx.Node:
        """A placeholder for a new tensor, of the kind of the one it stands beside."""
        spec = self._spec(beside)
        target = spec.target if suffix is None else f"{spec.target.rpartition('.')[0]}.{suffix}".lstrip(".")
        target = self._fresh(target)
        old = self._tensor(spec.target)
        (self._state if spec.target in self._state else self._constants)[target] = self._like(old, values)
        with self._graph.inserting_after(beside):
            placeholder: torch.fx.Node = self._graph.placeholder(f"{beside.name}_{suffix or 'own'}")
        placeholder.meta["val"] = beside.meta["val"].new_empty(values.shape)
        new = copy.deepcopy(spec)
        new.arg.name, new.target = placeholder.name, target
        self._inputs.insert(self._inputs.index(spec) + 1, new)
        return placeholder

    def _fresh(self, target: str) -> str:
        taken = {*self._state, *self._constants}
        number, name = 1, target
        while name in taken:
            name, number = f"{target}_{number}", number + 1
        return name

    def _set_argument(
        self, node: torch.fx.Node, mapped: Mapped, slot: int, placeholder: torch.fx.Node
    ) -> None:
        import torch

        name = mapped.names[slot]
        if name is None:  # mm and matmul of two matrices have no bias; addmm is the same with one
            if slot != BIAS:
                raise ValueError(f"{node.name} has no slot {slot}")
            node.target, node.args, node.kwargs = torch.ops.aten.addmm.default, (placeholder, *node.args), {}
            return
        position = list(arguments(node)).index(name)
        if name in node.kwargs or position >= len(node.args):
            node.update_kwarg(name, placeholder)
        else:
            node.update_arg(position, placeholder)

    def _rename(self, old: str, new: str) -> None:
        """Let the signatures name the value that took an output's place."""
        named: list[Any] = [spec.arg for spec in self._signature.output_specs]
        for call in self._calls:
            if call.signature is not None:
                named.extend((*call.signature.inputs, *call.signature.outputs))
        for argument in named:
            if getattr(argument, "name", None) == old:
                argument.name = new

    def _remove_stale(self) -> None:
        """Drop what only the bypassed nodes read, under all its names, and their batch counters."""
        gone: set[int] = set()
        folders: set[str] = set()
        for placeholder in self._stale:
            target = self._spec(placeholder).target
            if target is not None and not placeholder.users:
                gone.add(id(self._tensor(target)))
                folders.add(target.rpartition(".")[0])
        for placeholder in self._graph.find_nodes(op="placeholder"):
            spec = self._spec(placeholder)
            if placeholder.users or spec.target is None:
                continue
            folder, _, name = spec.target.rpartition(".")
            counter = name == "num_batches_tracked" and folder in folders
            if counter or id(self._tensor(spec.target)) in gone:
                self._graph.erase_node(placeholder)
                self._inputs.remove(spec)
                self._state.pop(spec.target, None)
                self._constants.pop(spec.target, None)
