"""Models in the layout of a Triton Inference Server repository.

``DIR/NAME/config.pbtxt`` describes the model and ``DIR/NAME/1/`` holds it. The format is the text form of
Triton's ``ModelConfig`` message (model_config.proto).
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbn.errors import FileAccessError, NotSupportedError, UsageError
from convbn.export.dtypes import triton_of_onnx, triton_of_tensorrt
from convbn.export.files.atomic import file_access, write_atomically

if TYPE_CHECKING:
    import onnx

__all__ = [
    "TritonModel",
    "TritonTensor",
    "check_repository",
    "copy_to",
    "from_sidecar",
    "onnx_model",
    "require_served",
    "write_repository",
]


@dataclass(frozen=True)
class TritonTensor:
    """An input or output: name, Triton's type without ``TYPE_``, whole shape with -1 for what is dynamic."""

    name: str
    data_type: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TritonModel:
    """What ``config.pbtxt`` says.

    Attributes:
        platform: ``onnxruntime_onnx`` or ``tensorrt_plan``.
        inputs: of the model.
        outputs: of the model.
        max_batch: the largest batch that Triton may form of requests; 0 if dimension 0 is not its to fill.
        profiles: how many optimisation profiles an engine has.
    """

    platform: str
    inputs: tuple[TritonTensor, ...]
    outputs: tuple[TritonTensor, ...]
    max_batch: int = 0
    profiles: int = 1

    @property
    def file_name(self) -> str:
        """The name that Triton looks for in a version's folder."""
        return "model.plan" if self.platform == "tensorrt_plan" else "model.onnx"

    def config(self, name: str) -> str:
        """The text of ``config.pbtxt`` for a model of that name."""
        lines = [
            f"name: {_quoted(name)}",
            f"platform: {_quoted(self.platform)}",
            f"max_batch_size: {self.max_batch}",
        ]
        for kind, tensors in (("input", self.inputs), ("output", self.outputs)):
            for tensor in tensors:
                shape = tensor.shape[1:] if self.max_batch else tensor.shape
                lines += [
                    f"{kind} {{",
                    f"  name: {_quoted(tensor.name)}",
                    f"  data_type: TYPE_{tensor.data_type}",
                    # Triton knows no tensor without dimensions but through a reshape.
                    f"  dims: [ {', '.join(map(str, shape or (1,)))} ]",
                    *([] if shape else ["  reshape { shape: [ ] }"]),
                    "}",
                ]
        if self.max_batch > 1:
            lines.append("dynamic_batching { }")
        if self.profiles > 1:
            names = ", ".join(_quoted(str(index)) for index in range(self.profiles))
            lines += ["instance_group {", "  kind: KIND_GPU", f"  profile: [ {names} ]", "}"]
        return "\n".join(lines) + "\n"


def require_served(backend: str) -> None:
    """Refuse early an engine that Triton would not load.

    Raises:
        NotSupportedError: it loads engines of classic TensorRT only.
    """
    if backend != "tensorrt":
        hint = "build with backend tensorrt, or write .onnx"
        raise NotSupportedError("Triton loads engines of classic TensorRT only", source=backend, hint=hint)


def from_sidecar(sidecar: Mapping[str, Any]) -> TritonModel:
    """Describe an engine by what its sidecar says.

    Triton may form batches where dimension 0 of every input and output is dynamic and a profile begins at
    a batch of 1.

    Raises:
        NotSupportedError: the engine is of a backend, or has a type, that Triton does not serve.
    """
    require_served(sidecar["backend"]["name"])
    inputs = tuple(_tensor(info) for info in sidecar["inputs"])
    outputs = tuple(_tensor(info) for info in sidecar["outputs"])
    profiles = sidecar["profiles"]
    batches = [(shapes["min"][0], shapes["max"][0]) for profile in profiles for shapes in profile.values()]
    free = all(tensor.shape[:1] == (-1,) for tensor in (*inputs, *outputs))
    serves = free and any(low == 1 for low, _ in batches)
    return TritonModel(
        "tensorrt_plan",
        inputs,
        outputs,
        max_batch=max(high for _, high in batches) if serves else 0,
        profiles=len(profiles) or 1,
    )


def onnx_model(model: onnx.ModelProto, *, max_batch: int = 0) -> TritonModel:
    """Describe an ONNX model.

    Args:
        model: the model.
        max_batch: the largest batch that Triton may form; 0 leaves dimension 0 to the clients.

    Raises:
        UsageError: a batch is wanted and dimension 0 is not dynamic everywhere.
        NotSupportedError: an input or output is no tensor, or of a type that Triton does not know.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_value(value) for value in model.graph.input if value.name not in stored)
    outputs = tuple(_value(value) for value in model.graph.output)
    for tensor in (*inputs, *outputs):
        if max_batch and tensor.shape[:1] != (-1,):
            cause = f"dimension 0 of {tensor.name!r} is not dynamic, so Triton can form no batches"
            raise UsageError(cause, hint="export with --dynamic-batch, or without --shapes")
    return TritonModel("onnxruntime_onnx", inputs, outputs, max_batch=max_batch)


def copy_to(source: Path, overwrite: bool) -> Callable[[Path], None]:
    """What :func:`write_repository` calls to copy a file that is written already."""

    def write(path: Path) -> None:
        with file_access(source), source.open("rb") as file:
            write_atomically(path, lambda to: shutil.copyfileobj(file, to), overwrite=overwrite)

    return write


def check_repository(folder: str | os.PathLike[str], name: str, *, overwrite: bool) -> None:
    """Refuse early what :func:`write_repository` would refuse late.

    Raises:
        UsageError: the name is none for a folder.
        FileAccessError: the model exists and `overwrite` is false.
    """
    if not name or name in (".", "..") or any(c in '/\\:*?"<>|\0' for c in name):
        raise UsageError(f"{name!r} is no name for a model", source=folder)
    if not overwrite and (Path(folder) / name).exists():
        raise FileAccessError("already exists", source=Path(folder) / name, hint="use --force to replace it")


def write_repository(
    folder: str | os.PathLike[str],
    name: str,
    model: TritonModel,
    write_model: Callable[[Path], None],
    *,
    overwrite: bool = False,
) -> Path:
    """Put a model into a repository, as version 1.

    A new model appears in the repository complete or not at all. An existing one is replaced file by file.

    Args:
        folder: the repository; made if it is missing.
        name: of the model in it.
        model: its description.
        write_model: writes the model to a path in the version's folder.
        overwrite: whether an existing model may be replaced.

    Returns:
        The model's folder.

    Raises:
        UsageError: the name is none for a folder.
        FileAccessError: the model exists and `overwrite` is false, or something cannot be written.
    """
    check_repository(folder, name, overwrite=overwrite)
    target = Path(folder) / name
    config = model.config(name).encode()
    if target.exists():
        _fill(target, model, config, write_model)
        return target
    temporary = Path(folder) / f".{name[:48]}.{secrets.token_hex(6)}.tmp"
    try:
        _fill(temporary, model, config, write_model)
        with file_access(target, "written"):
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _fill(target: Path, model: TritonModel, config: bytes, write_model: Callable[[Path], None]) -> None:
    with file_access(target, "made"):
        (target / "1").mkdir(parents=True, exist_ok=True)
    write_model(target / "1" / model.file_name)
    write_atomically(target / "config.pbtxt", config, overwrite=True)


def _tensor(info: Mapping[str, Any]) -> TritonTensor:
    name, dtype = info["name"], info["dtype"]
    known = triton_of_tensorrt(dtype)
    if known is None:
        raise NotSupportedError(f"tensor {name!r} is of type {dtype}, which Triton does not know")
    return TritonTensor(name, known, tuple(info["shape"]))


def _value(value: onnx.ValueInfoProto) -> TritonTensor:
    kind = value.type.WhichOneof("value")
    known = triton_of_onnx(value.type.tensor_type.elem_type)
    if kind != "tensor_type" or known is None:
        raise NotSupportedError(f"{value.name!r} is of a type that Triton does not know")
    if not value.type.tensor_type.HasField("shape"):
        raise NotSupportedError(
            f"the rank of {value.name!r} is not known, and Triton asks for it",
            hint="run onnx.shape_inference on the model first",
        )
    dims = value.type.tensor_type.shape.dim
    return TritonTensor(value.name, known, tuple(dim.dim_value if dim.dim_value > 0 else -1 for dim in dims))


def _quoted(text: str) -> str:
    """A string literal of protobuf's text format."""
    from google.protobuf.text_encoding import CEscape

    return f'"{CEscape(text.encode("utf-8", "surrogatepass"), as_utf8=False)}"'
