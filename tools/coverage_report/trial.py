"""One tool on one file, in a process of its own: ``python -m coverage_report.trial TOOL SOURCE RESULT [ARRAYS]``.

Writes RESULT once the tool is done and again once its output is judged, so that a crash of the judging is
not taken for one of the tool.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from coverage_report.graphs import count_batchnorms, operators, relative_error, run_plain
from coverage_report.peers import PEERS

__all__ = ["convert", "judge", "main", "write_tiny"]


def main(arguments: list[str]) -> int:
    """Run the tool, then judge what it wrote."""
    tool, source, result = arguments[0], Path(arguments[1]), Path(arguments[2])
    arrays = Path(arguments[3]) if len(arguments) > 3 else None
    with tempfile.TemporaryDirectory(dir=result.parent) as folder:
        target = Path(folder) / "out.onnx"
        try:
            facts = convert(tool, source, target)
        except Exception as error:  # whatever a tool raises is its row's reason
            facts = {"failure": traceback.format_exception_only(error)[-1].strip().splitlines()[0][:300]}
            result.write_text(json.dumps(facts))
            return 0
        result.write_text(json.dumps(facts))
        result.write_text(json.dumps(facts | judge(source, target, arrays)))
    return 0


def convert(tool: str, source: Path, target: Path) -> dict[str, Any]:
    """CPU seconds of the conversion and what the tool reports.

    The tool is called once on a graph of two nodes first, so that what it imports on the way does not count
    into ``cpu_seconds``; it does into ``process_cpu_seconds``, which start with the process.
    """
    tiny = target.with_name("tiny.onnx")
    write_tiny(tiny)
    PEERS[tool].convert(tiny, target)
    target.unlink()
    before = _cpu_seconds()
    said = PEERS[tool].convert(source, target)
    after = _cpu_seconds()
    return {
        "failure": None,
        "cpu_seconds": round(after - before, 4),
        "process_cpu_seconds": round(after, 4),
        "kept": dict(Counter(entry["reason"] for entry in said.get("kept", ()))),
        "folded": dict(Counter(entry["rule"] for entry in said.get("folded", ()))),
    }


def judge(source: Path, target: Path, arrays: Path | None = None) -> dict[str, Any]:
    """Validity, BatchNorms left, and errors of a tool's output.

    Args:
        source: the unfused file.
        target: the output.
        arrays: inputs and float64 truth of another export of the network, whose float32 outputs are not those
            of this file: it is run for its own.
    """
    import numpy as np
    import onnx

    model = onnx.load(target)
    facts: dict[str, Any] = {
        "batchnorms": count_batchnorms(model),
        "nodes": sum(1 for _ in operators(model)),
        "bytes": target.stat().st_size,
        "invalid": None,
        "unrunnable": None,
        "error": None,
        "truth_error": None,
        "truth_rms": None,
    }
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        facts["invalid"] = str(error).strip().splitlines()[0][:300]
    del model
    stored = np.load(arrays or source.with_suffix(".npz"))
    inputs = [name.removeprefix("x_") for name in stored.files if name.startswith("x_")]
    references = [_stored(stored, f"reference_{k}_") for k in inputs]
    truths = [_stored(stored, f"truth_{k}_") for k in inputs]
    if not all(references):
        facts["unrunnable"] = "the unfused file gives nothing to compare with"
        return facts
    try:
        if arrays is not None:
            references = [run_plain(source, stored[f"x_{k}"]) for k in inputs]
        outputs = [run_plain(target, stored[f"x_{k}"]) for k in inputs]
    except Exception as error:  # onnxruntime's own errors have no common base
        facts["unrunnable"] = str(error).strip().splitlines()[0][:300]
        return facts
    if not all(np.isfinite(output).all() for given in outputs for output in given):
        facts["unrunnable"] = "its outputs hold Inf or NaN"
        return facts
    facts["error"] = _worst(references, outputs)
    if all(truths):
        facts["truth_error"] = _worst(truths, outputs)
        facts["truth_rms"] = _root_mean_square(truths, outputs)
    return facts


def _stored(arrays: Any, prefix: str) -> list[Any]:
    return [arrays[name] for name in arrays.files if name.startswith(prefix)]


def _root_mean_square(expected: list[list[Any]], actual: list[list[Any]]) -> float | None:
    """Of the relative errors over the inputs: what one draw of rounding errors does counts by its share."""
    errors = [relative_error(e, a) for e, a in zip(expected, actual, strict=True)]
    known = [error for error in errors if error is not None]
    return math.sqrt(sum(e * e for e in known) / len(known)) if known and len(known) == len(errors) else None


def _worst(expected: list[list[Any]], actual: list[list[Any]]) -> float | None:
    """The largest relative error over the inputs; None if outputs do not pair."""
    errors = [relative_error(e, a) for e, a in zip(expected, actual, strict=True)]
    known = [error for error in errors if error is not None]
    return max(known) if len(known) == len(errors) else None


def _cpu_seconds() -> float:
    """User and system time of this process and of the children that it waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def write_tiny(path: Path) -> None:
    """A graph of a convolution and a BatchNorm."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    one = {name: numpy_helper.from_array(np.ones(1, "f4"), name) for name in ("s", "b", "m", "v")}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("BatchNormalization", ["c", *one], ["y"], "bn"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 2, 2])],
        [numpy_helper.from_array(np.ones((1, 1, 1, 1), "f4"), "w"), *one.values()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
