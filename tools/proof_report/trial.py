"""One network: its fold proven, and the same fold with one BatchNorm off by 1 % held against the same original."""

from __future__ import annotations

import gc
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coverage_report.trained import first_line

if TYPE_CHECKING:
    import onnx

    from convbn.bench.equivalence.compare import Equality

__all__ = ["ERROR", "spoilt", "trial"]

#: By which the scale of one BatchNorm is off.
ERROR = 0.01


def trial(path: str, place: float, sender: Connection) -> None:
    """Fold and prove a file, right and wrong; sends the facts.

    Args:
        path: of the unfused ONNX file.
        place: which of its folds is spoilt, from 0 (the first) to 1.
        sender: of a pipe.
    """
    try:
        facts = _facts(Path(path), place)
    except Exception as error:  # whatever happens is the row's reason
        facts = {"failed": first_line(error)}
    sender.send(facts)
    sender.close()


def _facts(path: Path, place: float) -> dict[str, Any]:
    import onnx

    begun = time.process_time()
    model = onnx.load(path)
    right, names = _judged(path, model)
    facts: dict[str, Any] = {
        "failed": None,
        "folds": len(names),
        "status": right.status,
        "reason": right.reason,
        "not_shown": [] if right.proof is None else list(right.proof.not_shown),
        "noise": max((output.noise or 0.0 for output in right.outputs), default=0.0),
        "spoilt": None,
        "spoilt_status": None,
        "spoilt_reason": None,
    }
    if names:
        name = names[min(int(place * len(names)), len(names) - 1)]
        wrong, _ = _judged(path, spoilt(model, name))
        facts |= {"spoilt": name, "spoilt_status": wrong.status, "spoilt_reason": wrong.reason}
    return facts | {"cpu_seconds": round(time.process_time() - begun, 2)}


def _judged(path: Path, model: onnx.ModelProto) -> tuple[Equality, list[str]]:
    """What the proof says of a model's fold against the file, and the names of what was folded."""
    import onnx

    import convbn
    from convbn.bench.proof.prove import FoldPlan

    folded, report = convbn.fuse(model, options=convbn.FuseOptions(verify=False))
    plan = FoldPlan(tuple((fold.name, fold.into) for fold in report.folded), report.moved, report.merges)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "folded.onnx"
        onnx.save(folded, target)
        del folded
        gc.collect()
        return convbn.verify(path, target, plan=plan), [fold.name for fold in report.folded]


def spoilt(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model whose fold is what a wrong fold of the given one would be: γ of one BatchNorm times 1.01.

    Args:
        model: is not changed.
        name: of the BatchNorm in the report of its fold.
    """
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    from convbn.bench.proof.graph.dataflow import Dataflow

    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    node = graph.node[Dataflow(model).report_names()[name]]
    stored = {tensor.name: tensor for tensor in graph.initializer}
    scale = node.input[1]
    node.input[1] = f"{scale}_off"
    if scale in stored:
        gamma = numpy_helper.to_array(stored[scale])
        off = (gamma * (1 + ERROR)).astype(gamma.dtype)
        graph.initializer.append(numpy_helper.from_array(off, node.input[1]))
        return made
    factor = numpy_helper.from_array(np.full(1, 1 + ERROR, np.float32), f"{scale}_by")
    graph.initializer.append(factor)
    place = list(graph.node).index(node)
    graph.node.insert(place, helper.make_node("Mul", [scale, factor.name], [node.input[1]]))
    return made
