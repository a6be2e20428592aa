"""What holds for the fold of every ONNX graph, each law a function that fails where it does not."""

from __future__ import annotations

import onnx

from convbn.fuse.fold import fold
from support.random_graphs import difference, outlined
from support.reference import fold_error, judges_error, read_apart


def batchnorms(built: onnx.ModelProto) -> int:
    count, waiting = 0, [built.graph]
    while waiting:
        graph = waiting.pop()
        count += sum(node.op_type == "BatchNormalization" for node in graph.node)
        waiting += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return count


def check(built: onnx.ModelProto, kind: str) -> None:
    """Equal in onnxruntime, every BatchNorm told, and nothing left to do."""
    before = built.SerializeToString(deterministic=True)
    result = fold(built)
    assert built.SerializeToString(deterministic=True) == before
    report = result.report
    assert report.batchnorm.before == batchnorms(built)
    assert report.batchnorm.after == batchnorms(result.model)
    names = [entry.name for entry in (*report.folded, *report.kept)]
    assert len(names) == len(set(names)) == report.batchnorm.before
    assert all(entry.detail for entry in report.kept)
    assert report.nodes.after <= report.nodes.before
    onnx.checker.check_model(result.model, full_check=True)
    check_equal(built, result.model, kind)
    check_again(result.model)


def check_equal(built: onnx.ModelProto, folded: onnx.ModelProto, kind: str) -> None:
    """Equal in onnxruntime, or in float64 where that is known to compute other numbers than the standard."""
    error, allowed = difference(built, folded, kind)
    if error >= allowed and read_apart(built) is not None:
        error, allowed = fold_error(built, folded, kind)
    assert error < allowed


def check_again(folded: onnx.ModelProto) -> None:
    """A second run changes nothing."""
    again = fold(folded)
    assert again.model.SerializeToString(deterministic=True) == folded.SerializeToString(deterministic=True)


def check_outlined(built: onnx.ModelProto, first: int, length: int) -> None:
    """Whatever stands in a function of its own folds as if it did not."""
    count = len(built.graph.node)
    model = outlined(built, first % count, min(first % count + length, count))
    before = model.SerializeToString(deterministic=True)
    result, plain = fold(model), fold(built)
    assert model.SerializeToString(deterministic=True) == before
    assert len(result.report.folded) == len(plain.report.folded)
    assert [str(kept.reason) for kept in result.report.kept] == [
        str(kept.reason) for kept in plain.report.kept
    ]
    onnx.checker.check_model(result.model, full_check=True)
    check_equal(built, result.model, "float32")
    check_again(result.model)


def check_in_float64(built: onnx.ModelProto, kind: str) -> None:
    """Equal in the reference evaluator, but for the rounding of what the fold stores."""
    error, allowed = fold_error(built, fold(built).model, kind)
    assert error < allowed


def check_judges(built: onnx.ModelProto) -> str | None:
    """Both judges read the graph in the same way, or there is a reason, which is returned."""
    reason = read_apart(built)
    if reason is None:
        error, allowed = judges_error(built)
        assert error < allowed
    return reason
