"""New weights in the place of a folded ONNX model's: the graph stays as it is, node by node.

The new weights come folded, from a model of the same architecture. Both graphs are walked side by side; each weight
gets the value of the one that stands in its place, whatever the two are called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from convbn.errors import BadInputError

if TYPE_CHECKING:
    import onnx

__all__ = ["refitted"]

_HINT = "a refit takes weights of the same architecture, folded with the same options; otherwise export the new model"
_FLOATS = frozenset({"float16", "float32", "float64", "bfloat16"})


def refitted(target: onnx.ModelProto, fresh: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Put the weights of one model into another.

    Args:
        target: the model whose graph, names and metadata stay; it is left as it is.
        fresh: a model with the same graph.

    Returns:
        A copy of the target with new weights, and how many of them changed.

    Raises:
        BadInputError: the graphs differ, or a weight has another shape or type, or a constant that is no weight
            another value; the message names the first place.
    """
    import onnx

    if target.functions or fresh.functions:
        raise BadInputError("holds model-local functions, which a refit does not look into", hint=_HINT)
    opsets = [
        {(e.domain.removeprefix("ai.onnx"), e.version) for e in m.opset_import} for m in (target, fresh)
    ]
    if opsets[0] != opsets[1]:
        raise _differs("its opset is another")
    result = onnx.ModelProto()
    result.CopyFrom(target)
    return result, _Walk(result, fresh).run()


class _Walk:
    """Both graphs side by side; values are paired as they are met."""

    def __init__(self, target: onnx.ModelProto, fresh: onnx.ModelProto) -> None:
        self._graphs = target.graph, fresh.graph
        self._stored = [{tensor.name: tensor for tensor in graph.initializer} for graph in self._graphs]
        self._paired: dict[str, str] = {}
        self._changed = 0

    def run(self) -> int:
        """Replace the target's weights; how many changed."""
        target, fresh = self._graphs
        for what in ("input", "output"):
            names = [[v.name for v in getattr(graph, what)] for graph in self._graphs]
            if len(names[0]) != len(names[1]):
                raise _differs(f"it has {len(names[0])} {what}s, the new model {len(names[1])}")
        given = [[v.name for v in graph.input] for graph in self._graphs]
        for mine, theirs in zip(*given, strict=True):
            self._pair(mine, theirs, "the inputs")
        if len(target.node) != len(fresh.node):
            raise _differs(f"it has {len(target.node)} nodes, the new model {len(fresh.node)}")
        for one, other in zip(target.node, fresh.node, strict=True):
            self._node(one, other)
        for one, other in zip(target.output, fresh.output, strict=True):
            self._pair(one.name, other.name, "the outputs")
        return self._changed

    def _node(self, one: onnx.NodeProto, other: onnx.NodeProto) -> None:
        shown = f"node {one.op_type} {one.name or one.output[0]!r}"
        if (one.domain, one.op_type) != (other.domain, other.op_type):
            raise _differs(f"{shown} is {other.op_type} in the new model")
        if [bool(name) for name in one.input] != [bool(name) for name in other.input]:
            raise _differs(f"{shown} reads other inputs")
        for mine, theirs in zip(one.input, other.input, strict=True):
            self._pair(mine, theirs, shown)
        attributes = {attribute.name: attribute for attribute in other.attribute}
        if attributes.keys() != {attribute.name for attribute in one.attribute}:
            raise _differs(f"{shown} has other attributes")
        for attribute in one.attribute:
            theirs = attributes[attribute.name]
            if one.op_type == "Constant" and attribute.HasField("t") and theirs.HasField("t"):
                self._replace(attribute.t, theirs.t, shown)
            elif attribute.SerializeToString(deterministic=True) != theirs.SerializeToString(
                deterministic=True
            ):
                raise _differs(f"{shown} has another {attribute.name!r}")
        if len(one.output) != len(other.output):
            raise _differs(f"{shown} has another number of outputs")
        for mine, theirs in zip(one.output, other.output, strict=True):
            self._pair(mine, theirs, shown)

    def _pair(self, mine: str, theirs: str, where: str) -> None:
        """Two values that stand in the same place: weights get the new ones when they are first met."""
        if self._paired.setdefault(mine, theirs) != theirs:
            raise _differs(f"{where}: what it calls {mine!r} are two values in the new model")
        a, b = (stored.get(name) for stored, name in zip(self._stored, (mine, theirs), strict=True))
        if (a is None) != (b is None):
            raise _differs(f"{where}: {mine!r} is a weight in only one of the two")
        if a is not None and b is not None and self._stored[0].pop(mine, None) is not None:
            self._replace(a, b, where)
            self._stored[0][mine] = a

    def _replace(self, mine: onnx.TensorProto, theirs: onnx.TensorProto, where: str) -> None:
        from onnx import numpy_helper

        if mine.dims != theirs.dims or mine.data_type != theirs.data_type:
            raise _differs(f"{where}: {mine.name!r} is {_shown(mine)}, in the new model {_shown(theirs)}")
        old, new = (numpy_helper.to_array(tensor) for tensor in (mine, theirs))
        if old.tobytes() == new.tobytes():
            return
        if old.dtype.name not in _FLOATS:
            raise _differs(f"{where}: {mine.name!r} is no weight, and has another value")
        if not np.isfinite(new.astype(np.float64)).all():
            raise _differs(f"{where}: the new {mine.name!r} holds NaN or infinity")
        kept = mine.name, mine.doc_string
        mine.CopyFrom(theirs)
        mine.name, mine.doc_string = kept
        self._changed += 1


def _shown(tensor: onnx.TensorProto) -> str:
    from onnx import TensorProto

    return (
        f"{TensorProto.DataType.Name(tensor.data_type).lower()} {'x'.join(map(str, tensor.dims)) or 'scalar'}"
    )


def _differs(cause: str) -> BadInputError:
    return BadInputError(f"does not fit the new weights: {cause}", hint=_HINT)
