"""The dataflow of one model, brought up to date edit by edit.

A frontend builds a :class:`View` once. Rules read it and propose edits; :meth:`View.apply` brings the
view up to date with the edits that were accepted, so that the next rule sees the model as it will be.
Neither changes the model behind it: that is the frontend's part, from the plan's list of edits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from convbn.fuse.refusal import Reason, Refusal
from convbn.fuse.view.dataflow import Constant, Node, Reader, Value
from convbn.fuse.view.edits import Bypass, Edit, Evaluate, Replace, SetConstant

__all__ = ["View", "vanishes"]


class View:
    """The dataflow of one model: its nodes in an order in which they can run.

    Args:
        nodes: in running order.
        pure: what the nodes say is all there is to know: a node that writes to its inputs is shown as one
            that gives new values, and whoever else could see a value stands at ``observed``. Then maps may
            move in every direction.
        replaceable: nodes may change their operator. True of graphs; a PyTorch module's code stays, and only
            takes other parameters of the same shapes and bypasses.
        additions: the model can be given a sum that broadcasts; ONNX has none before opset 7.

    Attributes:
        clock: how many edits were applied so far.
    """

    def __init__(
        self, nodes: Sequence[Node], *, pure: bool = False, replaceable: bool = True, additions: bool = True
    ) -> None:
        self._all = tuple(nodes)
        self._nodes = {id(node): node for node in nodes}
        self.pure = pure
        self.replaceable = replaceable
        self.additions = additions
        self.clock = 0

    @property
    def nodes(self) -> list[Node]:
        """Those that are left, in running order."""
        return list(self._nodes.values())

    def __contains__(self, node: Node) -> bool:
        return id(node) in self._nodes

    def operators(self) -> Counter[str]:
        """How often each operator is called, by the name that a reader of a report knows."""
        return Counter(node.op.describe() for node in self.nodes)

    def batchnorms(self) -> Iterator[Node]:
        """The BatchNorm nodes, in running order."""
        return (node for node in self.nodes if node.op.is_batchnorm)

    def check(self, edit: Edit, *, together: bool = False) -> Refusal | None:
        """Whether the model behind the view can be edited so; the refusal if it cannot.

        Args:
            edit: is not made.
            together: pass over that others share what is changed, since it will be changed for them as well.
        """
        if isinstance(edit, Bypass | Evaluate):
            return _unless(edit.node.locks.get("bypass"), together)
        if isinstance(edit, Replace):
            if self.pure and self.replaceable:
                return edit.node.locks.get("bypass")
            return Refusal(
                Reason.NOT_A_MODULE, f"{edit.node.label} cannot become another operator in a module"
            )
        lock = _unless(edit.node.locks.get(edit.slot), together)
        if lock is not None:
            return lock
        value = edit.node.input(edit.slot)
        if value is None or value.constant is None:
            return None
        if not self.replaceable and value.constant.shape != edit.constant.shape:
            return Refusal(
                Reason.NOT_A_MODULE,
                f"'{value.name}' of {edit.node.label} would need the shape {list(edit.constant.shape)}",
            )
        if together or value.constant.cloneable or sum(reader.sees_numbers for reader in value.readers) == 1:
            return None
        others = ", ".join(sorted({r.node.label for r in value.readers if r.node is not edit.node}))
        return Refusal(
            Reason.PARAMETER_SHARED,
            f"'{value.name}' of {edit.node.label} is also used by {others or 'another call of it'}",
        )

    def apply(self, edit: Edit) -> None:
        """Make the view show the model as it is after ``edit``."""
        self.clock += 1
        self._touch(edit.node)
        if isinstance(edit, SetConstant):
            self._set_constant(edit.node, edit.slot, edit.constant)
        elif isinstance(edit, Replace):
            self._replace(edit)
        elif isinstance(edit, Evaluate):
            self._evaluate(edit)
        else:
            self._bypass(edit.node, edit.slot)
        self._touch(edit.node)

    def release(self) -> None:
        """Take nodes and values apart, which refer to each other, so that they go without a search for cycles."""
        for node in self._all:
            node.inputs, node.outputs, node.handle = [], [], None

    def _touch(self, node: Node) -> None:
        """Mark a node and its values, by which whoever shares one of them is marked, too."""
        node.touched = self.clock
        for value in (*node.inputs, *node.outputs):
            if value is not None:
                value.touched = self.clock

    def _set_constant(self, node: Node, slot: int, constant: Constant) -> None:
        while len(node.inputs) <= slot:
            node.inputs.append(None)
        old = node.inputs[slot]
        new = Value(f"{node.name}.{slot}" if old is None else old.name, constant.shape, constant=constant)
        new.readers.append(Reader(node, slot))
        node.inputs[slot] = new
        if old is not None:
            old.readers = [r for r in old.readers if r.node is not node or r.slot != slot]
            new.replaces = old
            new.alone = not (old.readers or old.observed or old.producer)
            self._drop_if_unread([old])

    def _replace(self, edit: Replace) -> None:
        node, before = edit.node, edit.node.inputs
        self._read_no_more(node)
        node.op = edit.op
        node.inputs = []
        for slot, operand in enumerate(edit.operands):
            if isinstance(operand, Value):
                node.inputs.append(operand)
                operand.readers.append(Reader(node, slot))
            else:
                node.inputs.append(None)
                if operand is not None:
                    self._set_constant(node, slot, operand)
        self._drop_if_unread(before)

    def _bypass(self, node: Node, slot: int) -> None:
        source, output = node.inputs[slot], node.outputs[0]
        if source is None:  # a BatchNorm without data is refused by the frontends
            raise ValueError(f"{node.label} has no input to be bypassed to")
        renamed = _takes_over_the_name(source, node)
        self._take_out(node)
        if renamed:
            source.renamed = output.renamed or output.name
        output.gave_way_to = source
        source.stands_for += (output.name, *output.stands_for)
        for reader in output.readers:
            reader.node.inputs[reader.slot] = source
        source.readers.extend(output.readers)
        source.observed = source.observed or output.observed
        self._drop_if_unread([value for value in node.inputs if value is not source])

    def _evaluate(self, edit: Evaluate) -> None:
        node, output = edit.node, edit.node.outputs[0]
        self._take_out(node)
        output.constant, output.producer = edit.constant, None
        self._drop_if_unread(node.inputs)

    def _drop_if_unread(self, values: Sequence[Value | None]) -> None:
        """Remove the nodes that only computed ``values`` if nobody reads these any more."""
        waiting = list(values)
        while waiting:
            value = waiting.pop()
            producer = None if value is None else value.producer
            if producer is None or producer not in self:
                continue
            if any(output.readers or output.observed for output in producer.outputs):
                continue
            self._touch(producer)
            self._take_out(producer)
            waiting.extend(producer.inputs)

    def _take_out(self, node: Node) -> None:
        del self._nodes[id(node)]
        self._read_no_more(node)

    @staticmethod
    def _read_no_more(node: Node) -> None:
        for value in {id(v): v for v in node.inputs if v is not None}.values():
            value.readers = [r for r in value.readers if r.node is not node]


def _unless(lock: Refusal | None, together: bool) -> Refusal | None:
    """A lock, but for one that only keeps the calls of one layer apart."""
    return None if together and lock is not None and lock.reason is Reason.CALLED_SEVERAL_TIMES else lock


def vanishes(node: Node, slot: int = 0) -> bool:
    """Whether a node that is bypassed leaves none: an Identity stays where its output is seen by its name."""
    source = node.inputs[slot]
    return not node.outputs[0].observed or (source is not None and _takes_over_the_name(source, node))


def _takes_over_the_name(source: Value, node: Node) -> bool:
    """Whether nobody else knows what a bypassed node read, so that the names of a model's outputs stay."""
    maker = source.producer
    alone = all(reader.node is node for reader in source.readers)
    return maker is not None and maker.scope == node.scope and alone and not source.observed
