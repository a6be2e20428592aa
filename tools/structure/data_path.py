"""Every function that a model passes on its way through ``convbn.fuse``, and how often it comes back to a file.

python tools/structure/data_path.py [--root CHECKOUT] [--write docs/architecture.md]

A Conv → BatchNorm → ReLU → Conv → BatchNorm is folded and verified, once from an ONNX file and once as a PyTorch
module. A function counts if one of its arguments is the model: its path, a graph or module of a framework, convbn's
view, or an object or list that holds one of these. A method of the view itself is a question to the model and does
not count. Each way from one function to another is walked once, when it
is first taken; a *return* is a step into a file that had been entered before and left.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("fuse", "export", "bench", "src/convbn")
MODELS = {
    ("onnx", "ModelProto"),
    ("onnx", "GraphProto"),
    ("onnx_graphsurgeon", "Graph"),
    ("torch", "Module"),
    ("torch", "ExportedProgram"),
    ("torch", "Graph"),
    ("convbn", "View"),
}
"""Package and class of what is the model."""

PROOF = ("src/convbn/proof.py", "verified")
KINDS = {"onnx": "An ONNX file", "module": "A PyTorch module"}
BEGIN, END = "<!-- data path: begin -->", "<!-- data path: end -->"


@dataclass
class Walk:
    """What a profiler saw.

    Attributes:
        root: of the checkout.
        path: the model's file.
        steps: file and name of each function as it was entered, each way from one to another once.
    """

    root: Path
    path: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ways: set[tuple[object, object]] = set()
        self._stack: list[tuple[str, str]] = []
        self._places: dict[CodeType, str | None] = {}
        self._kinds: dict[type, bool] = {}

    def profile(self, frame: FrameType, event: str, argument: object) -> None:
        """For ``sys.setprofile``."""
        code = frame.f_code
        place = self._places.setdefault(code, self._place(code))
        if place is None or event not in ("call", "return"):
            return
        if event == "return":
            if self._stack and self._stack[-1] == (place, code.co_qualname):
                self._stack.pop()
            return
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        given = [frame.f_locals.get(name) for name in names]
        asked = names[:1] == ("self",) and self._is_model(given[0])
        if any(map(self._holds, given[asked:])):
            here = (place, code.co_qualname)
            way = (self._stack[-1] if self._stack else None, here)
            if way not in self._ways:
                self._ways.add(way)
                self.steps.append(here)
            self._stack.append(here)

    def _place(self, code: CodeType) -> str | None:
        if code.co_name.startswith("<"):  # of a module, a lambda, a comprehension
            return None
        path = Path(os.path.realpath(code.co_filename))
        inside = path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else ""
        return inside if inside.startswith(tuple(f"{folder}/" for folder in FOLDERS)) else None

    def _holds(self, value: Any, depth: int = 1) -> bool:
        if isinstance(value, str | Path):
            return str(value) == self.path
        return self._is_model(value) or (
            depth > 0 and any(self._holds(part, depth - 1) for part in _parts(value))
        )

    def _is_model(self, value: Any) -> bool:
        kind = type(value)
        if kind not in self._kinds:
            names = {
                (c.__module__.partition(".")[0].replace("onnx_ml_pb2", "onnx"), c.__name__)
                for c in kind.__mro__
            }
            self._kinds[kind] = bool(names & MODELS)
        return self._kinds[kind]


def _parts(value: Any) -> Iterable[Any]:
    """What a list, or an object of convbn, holds directly."""
    if isinstance(value, list | tuple):
        return value[:8]
    if isinstance(value, dict):
        return list(value.values())[:8]
    if not type(value).__module__.startswith("convbn"):
        return ()
    slots = [slot for kind in type(value).__mro__ for slot in getattr(kind, "__slots__", ())]
    return [*getattr(value, "__dict__", {}).values(), *(getattr(value, slot, None) for slot in slots)]


def returns(files: Sequence[str]) -> int:
    """How many steps from file to file lead into one that had been left."""
    left: set[str] = set()
    count = 0
    for before, file in zip(["", *files], files, strict=False):
        if file != before:
            count += file in left
            left.add(before)
    return count


def parts(steps: Sequence[tuple[str, str]]) -> dict[str, Sequence[tuple[str, str]]]:
    """The fold, and what comes from the first step into the proof on."""
    proof = steps.index(PROOF) if PROOF in steps else len(steps)
    return {"The fold": steps[:proof], "The proof": steps[proof:]}


def walked(kind: str, root: Path) -> Walk:
    """Fold once for the imports, then again under the profiler."""
    import convbn

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        given: tuple[Any, ...] = (path,) if kind == "onnx" else _module()
        if kind == "onnx":
            _write_onnx(path)
        convbn.fuse(*given)
        walk = Walk(root, path)
        sys.setprofile(walk.profile)
        try:
            convbn.fuse(*given)
        finally:
            sys.setprofile(None)
    return walk


def _module() -> tuple[Any, ...]:
    import torch
    from torch import nn

    layers = (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6))
    return nn.Sequential(*layers).eval(), torch.randn(2, 3, 8, 8)


def _write_onnx(path: str) -> None:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    shapes = {"w1": (6, 3, 3, 3), "w2": (6, 6, 3, 3)}
    arrays = {name: rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()}
    parameters = [f"{name}{layer}" for layer in (1, 2) for name in ("gamma", "beta", "mean", "var")]
    arrays |= {name: rng.uniform(0.5, 2, 6).astype("f4") for name in parameters}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"]),
        helper.make_node("BatchNormalization", ["c1", *parameters[:4]], ["n1"]),
        helper.make_node("Relu", ["n1"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["c2"]),
        helper.make_node("BatchNormalization", ["c2", *parameters[4:]], ["y"]),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 6, 4, 4])
    graph = helper.make_graph(nodes, "example", [x], [y], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def measured(kind: str, root: Path) -> list[tuple[str, str]]:
    """The steps of one kind in a process of its own, which imports the convbn of ``root``."""
    variables = {**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--walk", kind, "--root", str(root)]
    output = subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout
    return [(file, name) for file, name in json.loads(output.splitlines()[-1])]


def page(found: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """The section of docs/architecture.md."""
    lines: list[str] = []
    for kind, steps in found.items():
        lines += [f"### {KINDS[kind]}", ""]
        for part, taken in parts(steps).items():
            functions: dict[str, dict[str, None]] = {}
            for file, name in taken:
                functions.setdefault(file, {})[name] = None
            count = sum(map(len, functions.values()))
            lines += [
                f"{part}: {count} functions in {len(functions)} files, {returns([file for file, _ in taken])} returns.",
                "",
                *(
                    f"{number}. `{file}`: {', '.join(f'`{name}`' for name in names)}"
                    for number, (file, names) in enumerate(functions.items(), 1)
                ),
                "",
            ]
    return "\n".join(lines)


def main() -> int:
    """Print the section, or put it into a document."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="a checkout of convbn (default: this one)")
    parser.add_argument(
        "--write", type=Path, help="a document with the two marks that the section stands between"
    )
    parser.add_argument("--walk", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    root = options.root.resolve()
    if options.walk:
        print(json.dumps(walked(options.walk, root).steps))
        return 0
    text = page({kind: measured(kind, root) for kind in KINDS})
    if options.write is None:
        print(text)
        return 0
    before, _, rest = options.write.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    options.write.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
