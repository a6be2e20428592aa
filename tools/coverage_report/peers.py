"""The tools that are compared, each as one function from an ONNX file to an ONNX file.

A new one is a function here and a line in ``PEERS``. Every tool runs with the settings that its documentation
gives first; nothing is tuned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["PEERS", "Peer"]

#: Reads the file, writes the other, and returns what the tool says of its work, JSON-ready.
Convert: TypeAlias = Callable[[Path, Path], Mapping[str, Any]]


@dataclass(frozen=True)
class Peer:
    """One tool.

    Attributes:
        name: in reports and options.
        distribution: the package whose version counts.
        convert: the adapter.
        what: the call, in words.
    """

    name: str
    distribution: str
    convert: Convert
    what: str

    @property
    def version(self) -> str | None:
        """The installed version; None if it is missing."""
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return None


def _convbn(source: Path, target: Path) -> Mapping[str, Any]:
    import contextlib
    import io
    import json

    from convbn.cli import main

    told = target.with_suffix(".json")
    arguments = ["fuse", str(source), "-o", str(target), "--no-verify", "--force", "-q", "--json", str(told)]
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main(arguments)
    if code:
        raise RuntimeError(f"exit code {code}: {errors.getvalue().strip()}")
    report: dict[str, Any] = json.loads(told.read_text())
    return report


def _load_save(source: Path, target: Path) -> Mapping[str, Any]:
    import onnx

    onnx.save(onnx.load(source), target)
    return {}


def _onnxruntime(source: Path, target: Path) -> Mapping[str, Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return {}


def _onnxoptimizer(source: Path, target: Path) -> Mapping[str, Any]:
    import onnx
    import onnxoptimizer

    onnx.save(onnxoptimizer.optimize(onnx.load(source)), target)
    return {}


def _onnxslim(source: Path, target: Path) -> Mapping[str, Any]:
    import onnx
    import onnxslim

    onnx.save(onnxslim.slim(str(source)), target)
    return {}


def _onnxscript(source: Path, target: Path) -> Mapping[str, Any]:
    import onnx
    from onnxscript import optimizer, rewriter

    onnx.save(rewriter.rewrite(optimizer.optimize(onnx.load(source))), target)
    return {}


def _onnxsim(source: Path, target: Path) -> Mapping[str, Any]:
    import onnx
    import onnxsim

    simplified, _ = onnxsim.simplify(onnx.load(source))
    onnx.save(simplified, target)
    return {}


PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("convbn", "convbn", _convbn, "`convbn fuse --no-verify`"),
        Peer("onnxruntime", "onnxruntime", _onnxruntime, "optimised model of a session, level basic"),
        Peer("onnxoptimizer", "onnxoptimizer", _onnxoptimizer, "`optimize`, default passes"),
        Peer("onnxslim", "onnxslim", _onnxslim, "`slim`"),
        Peer("onnxscript", "onnxscript", _onnxscript, "`optimizer.optimize`, then `rewriter.rewrite`"),
        Peer("onnxsim", "onnxsim", _onnxsim, "`simplify`"),
        Peer(
            "load-save", "onnx", _load_save, "`onnx.save(onnx.load(f))`, no fold: the least a tool can cost"
        ),
    )
}
