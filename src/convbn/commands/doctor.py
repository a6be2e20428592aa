"""``convbn doctor``: what is here, whether it works, and the command that brings what is missing."""

from __future__ import annotations

import argparse
import importlib
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from convbn.commands.steps.console import Console
from convbn.commands.steps.shared import write_json
from convbn.common.document.model import Column, Items, Mark, Row, Table, Text
from convbn.common.text import one_line
from convbn.errors import ConvBNError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from convbn.bench.runtimes.base import Variant

__all__ = ["Part", "run"]

# Import name, distribution, whether convbn is nothing without it, what needs it, how to get it.
_PACKAGES = (
    ("numpy", "numpy", True, "the arithmetic", "pip install numpy"),
    ("onnx", "onnx", True, "ONNX models", "pip install onnx"),
    ("onnx_graphsurgeon", "onnx-graphsurgeon", True, "ONNX models", "pip install onnx-graphsurgeon"),
    ("onnxruntime", "onnxruntime", True, "verifying and measuring ONNX", "pip install onnxruntime"),
    ("filelock", "filelock", True, "measuring and many models", "pip install filelock"),
    ("jsonschema", "jsonschema", True, "stored results of bench", "pip install jsonschema"),
    ("torch", "torch", False, "PyTorch modules and checkpoints", "pip install 'convbn[torch]'"),
    ("onnxscript", "onnxscript", False, "exporting PyTorch to ONNX", "pip install 'convbn[torch]'"),
    ("safetensors", "safetensors", False, ".safetensors checkpoints", "pip install 'convbn[torch]'"),
    ("torchvision", "torchvision", False, "--arch torchvision:NAME", "pip install torchvision"),
    ("timm", "timm", False, "--arch timm:NAME", "pip install timm"),
    ("huggingface_hub", "huggingface_hub", False, "hf-hub:ORG/NAME", "pip install huggingface_hub"),
    ("PIL", "pillow", False, "images as calibration data", "pip install 'convbn[images]'"),
    ("fsspec", "fsspec", False, "files at URLs", "pip install 'convbn[remote]'"),
    ("shtab", "shtab", False, "--print-completion", "pip install 'convbn[completion]'"),
    ("pynvml", "nvidia-ml-py", False, "clocks and temperature of a GPU", "pip install 'convbn[gpu]'"),
    ("ray", "ray", False, "convbn run --ray", "pip install 'convbn[ray]'"),
    ("polygraphy", "polygraphy", False, "convbn.integrations", "pip install 'convbn[integrations]'"),
    ("olive", "olive-ai", False, "convbn.integrations.olive", "pip install 'convbn[integrations]'"),
)


@dataclass(frozen=True, slots=True)
class Part:
    """One thing convbn can use.

    Attributes:
        name: of the package, backend or runtime.
        version: if it has one.
        works: whether it was seen to work just now.
        required: whether convbn is nothing without it.
        detail: what it is for, or what is wrong with it.
        hint: the command that mends it, if it does not work.
    """

    name: str
    version: str | None
    works: bool
    required: bool
    detail: str
    hint: str | None = None


def run(options: argparse.Namespace) -> int:
    """Try every part; exit code 1 if one that convbn cannot do without does not work."""
    console = Console(json_on_stdout=options.json == "-", quiet=options.quiet)
    parts = []
    with console.phase("trying") as progress:
        for part in _parts():
            progress(f"after {part.name}", 0, 0)
            parts.append(part)
    console.say(f"convbn {version('convbn')}, Python {platform.python_version()}, {platform.platform()}")
    console.say(sys.prefix)
    console.say()
    rows = [Row((Mark("ok", "good"), one.name, one.version or "-", one.detail)) for one in parts if one.works]
    console.show(Table("Parts", (Column(""), Column(""), Column(""), Column("")), rows))
    lacking = [part for part in parts if not part.works]
    for hint in dict.fromkeys(part.hint for part in lacking):
        console.say()
        for part in lacking:
            if part.hint == hint:
                state = Mark("missing " if part.version is None else "broken ", "bad")
                version_text = f" {part.version}" if part.version else ""
                console.show(Text((state, Mark(part.name, "strong"), f"{version_text}: {part.detail}")))
        if hint:
            console.show(Items([f"→ {hint}"]))
    write_json(options.json, {"schema_version": "1", "parts": [asdict(part) for part in parts]})
    return 0 if all(part.works for part in parts if part.required) else 1


def _parts() -> Iterator[Part]:
    for module, distribution, required, purpose, hint in _PACKAGES:
        yield _package(module, distribution, required, purpose, hint)
    from convbn.export.engines.backends.registry import available_backends

    for backend in available_backends():
        detail = "builds TensorRT engines" if backend.usable else backend.reason or "cannot be used"
        yield Part(backend.name, backend.version, backend.usable, False, detail, backend.hint)
    yield from _packages()
    yield from _runtimes()


def _packages() -> Iterator[Part]:
    """The packages of other runtimes that ``convbn export`` writes, by the suffix of OUT."""
    from convbn.export.formats import packaged

    for row in packaged():
        name = f"OUT{row.suffixes[0]}"
        try:
            row.packager().require()
        except ConvBNError as error:
            yield Part(name, None, False, False, f"{row.name}: {error.cause}", error.hint)
        except Exception as error:  # a broken package raises whatever its parts raise
            yield Part(name, None, False, False, f"{row.name}: {one_line(error, 160)}")
        else:
            yield Part(name, None, True, False, f"{row.name}, written by convbn export")


def _package(module: str, distribution: str, required: bool, purpose: str, hint: str) -> Part:
    try:
        installed: str | None = version(distribution)
    except PackageNotFoundError:
        return Part(distribution, None, False, required, f"not installed; needed for {purpose}", hint)
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken package raises whatever its parts raise
        cause = f"does not import: {one_line(error, 160)}"
        return Part(distribution, installed, False, required, cause, _mend(module, hint))
    return Part(distribution, installed, True, required, purpose)


def _mend(module: str, hint: str) -> str:
    """How to mend what is installed and does not import."""
    if module in ("torchvision", "timm"):
        return (
            "install the torchvision that was built for this torch: pytorch.org/get-started lists the pairs"
        )
    return hint.replace("pip install", "pip install --force-reinstall")


def _runtimes() -> Iterator[Part]:
    """Each runtime, tried on the smallest model there is."""
    try:
        from convbn.bench.runtimes.registry import form_of, load_library, open_session, runtime_names

        variant, feed = _smallest()
    except ImportError as error:
        yield Part(
            "runtimes", None, False, True, f"cannot be tried without {error.name}", "pip install convbn"
        )
        return
    for runtime in runtime_names():
        # The backends that build engines bear the same names.
        name = f"{runtime} engines" if form_of(runtime) == "engine" else runtime
        if variant.module is None and form_of(runtime) == "torch":
            yield Part(
                name, None, False, False, "torch does not work here, see above", "pip install 'convbn[torch]'"
            )
            continue
        try:
            load_library(runtime)
            if name != runtime:
                yield Part(name, None, True, False, "runs engines built for this machine")
                continue
            with open_session(runtime, variant) as session:
                session.run(feed)
        except ConvBNError as error:
            yield Part(name, None, False, False, error.cause, error.hint)
        except Exception as error:  # a runtime that is there and does not run is what doctor is for
            yield Part(name, None, False, False, f"does not run: {one_line(error, 160)}")
        else:
            yield Part(name, None, True, False, "measures and verifies")


def _smallest() -> tuple[Variant, dict[str, NDArray[np.float32]]]:
    """A model of one node in both forms, and an input for it."""
    import numpy as np
    from onnx import TensorProto, helper

    from convbn.bench.runtimes.base import Variant

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "smallest", [value], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    feed = {"x": np.zeros(1, np.float32)}
    try:
        import torch
    except Exception:  # its own line says what is wrong with it
        return Variant("smallest", onnx=model), feed
    return Variant("smallest", onnx=model, module=torch.nn.ReLU(), example_inputs=(torch.zeros(1),)), feed
