"""Writes PyTorch modules as ONNX, ``.pt2`` or ``.safetensors``.

The module is exported as it is. torch's own ONNX exporter folds BatchNorm when it optimises, which would
make a fused and an unfused export the same; here its optimiser is off.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convbn.common.text import first_line
from convbn.errors import BadInputError, NotSupportedError, UsageError
from convbn.export.files.atomic import check_target, write_atomically
from convbn.export.onnx_io.validate import iterate_messages
from convbn.export.torch.tracing import (
    arguments_of,
    as_eval,
    dynamic_batch_of,
    untraceable,
)
from convbn.fuse.frontends.onnx.model.graphs import delete
from convbn.fuse.frontends.torch.modules.isolation import exclusive_capture

if TYPE_CHECKING:
    import onnx
    import torch
    from torch.export import ExportedProgram

    from convbn.export.torch.tracing import Examples

__all__ = ["export_onnx", "export_program", "save_program", "save_tensors"]

_OTHER_KIND = "safetensors holds plain tensors only; write a .pt2 or .onnx file instead"


def export_onnx(
    module_or_program: torch.nn.Module | ExportedProgram,
    example_inputs: Examples,
    *,
    input_names: Sequence[str] | None = None,
    dynamic_batch: bool = False,
    opset: int | None = None,
) -> onnx.ModelProto:
    """Export to ONNX without any optimisation but the evaluation of constants.

    Args:
        module_or_program: a module, exported in eval mode and left as it was, or an exported program,
            taken as it is.
        example_inputs: one tensor, the positional ones, or keyword ones by name.
        input_names: names of the graph's inputs; by default those of the module's arguments.
        dynamic_batch: leave dimension 0 of every input free, as ``batch``.
        opset: version of the default operator set, 18 or later; by default the exporter's own choice.

    Returns:
        The model with its weights embedded and without the exporter's notes (source paths, traces).

    Raises:
        UsageError: the inputs make no sense together with the options.
        NotSupportedError: the module cannot be traced, or an operator has no ONNX form.
    """
    import torch

    args, kwargs = arguments_of(example_inputs)
    shapes: dict[str, Any] = {}
    if dynamic_batch:
        if not isinstance(module_or_program, torch.nn.Module):
            raise UsageError("an exported program's shapes are settled, its batch cannot be made dynamic")
        args, kwargs, shapes["dynamic_shapes"] = dynamic_batch_of(args, kwargs)
    with exclusive_capture(), as_eval(module_or_program) as subject:
        try:
            program = torch.onnx.export(
                subject,
                args,
                kwargs=kwargs,
                input_names=input_names,
                opset_version=opset,
                dynamo=True,
                optimize=False,
                verbose=False,
                **shapes,
            )
            if program is None:
                raise NotSupportedError("torch's exporter returned nothing")
            _settle_constants(program.model)
            model: onnx.ModelProto = program.model_proto
        except Exception as error:
            raise untraceable(error, "ONNX") from error
    found = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), opset)
    if opset is not None and found != opset:  # the exporter falls back with no more than a log line
        raise NotSupportedError(f"torch can export this module in opset {found}, not in {opset}")
    _strip_notes(model)
    _mend_biases(model)
    return model


def _settle_constants(model: Any) -> None:
    """Compute what depends on constants alone.

    Unoptimised, the exporter writes even the axes of a mean as nodes, which TensorRT's parser refuses.
    This pass evaluates such nodes and nothing else: the one that folds BatchNorm is a rewrite rule.
    """
    from onnxscript import optimizer

    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)


def _mend_biases(model: onnx.ModelProto) -> None:
    """Take away the bias that the exporter invents for a 3-D convolution without one.

    Unoptimised, onnxscript 0.7 writes zeros of shape ``[O, 2]``, which no runtime accepts.
    """
    from onnx import numpy_helper

    zeros = {
        tensor.name
        for tensor in model.graph.initializer
        if len(tensor.dims) == 2 and tensor.dims[1] == 2 and not numpy_helper.to_array(tensor).any()
    }
    for node in model.graph.node:
        if node.op_type == "Conv" and len(node.input) == 3 and node.input[2] in zeros:
            del node.input[2]
    used = {name for node in model.graph.node for name in node.input}
    delete(model.graph.initializer, zeros - used)


def export_program(
    module_or_program: torch.nn.Module | ExportedProgram, example_inputs: Examples
) -> ExportedProgram:
    """Capture a module as a program, in eval mode; the module is left as it was.

    Args:
        module_or_program: what to capture; a program is one already and returned as it is.
        example_inputs: see :func:`export_onnx`.

    Raises:
        NotSupportedError: the module cannot be captured.
    """
    import torch

    if not isinstance(module_or_program, torch.nn.Module):
        return module_or_program
    args, kwargs = arguments_of(example_inputs)
    with exclusive_capture(), as_eval(module_or_program) as subject:
        try:
            return torch.export.export(subject, args, kwargs, strict=False)
        except Exception as error:
            raise untraceable(error, "a torch.export program") from error


def save_program(
    module_or_program: torch.nn.Module | ExportedProgram,
    example_inputs: Examples,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> None:
    """Write a ``.pt2`` archive.

    Args:
        module_or_program: a module, exported in eval mode and left as it was, or a program.
        example_inputs: see :func:`export_onnx`; not looked at for a program.
        path: the target.
        overwrite: whether an existing file may be replaced.

    Raises:
        NotSupportedError: the module cannot be traced.
        FileAccessError: the target cannot be written.
    """
    import torch

    check_target(path, overwrite=overwrite)
    with exclusive_capture():
        program = export_program(module_or_program, example_inputs)
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
    write_atomically(path, buffer.getbuffer(), overwrite=overwrite)


def save_tensors(
    state: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> None:
    """Write a ``.safetensors`` file.

    Args:
        state: name to tensor. Tensors that share memory are written once per name, since the format
            knows no sharing.
        metadata: free text that goes into the header.
        path: the target.
        overwrite: whether an existing file may be replaced.

    Raises:
        BadInputError: a tensor has a type or layout that the format does not know.
        FileAccessError: the target cannot be written.
    """
    import safetensors.torch
    import torch

    check_target(path, overwrite=overwrite)
    seen: set[int] = set()
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise BadInputError(f"{name!r} in the state dict is no tensor", source=path, hint=_OTHER_KIND)
        plain = tensor.detach()
        if plain.layout is not torch.strided or plain.is_meta or plain.is_quantized:
            raise BadInputError(f"tensor {name!r} is not a plain dense tensor", source=path, hint=_OTHER_KIND)
        plain = plain.contiguous()
        storage = plain.untyped_storage().data_ptr()
        tensors[name] = plain.clone() if storage in seen else plain
        seen.add(storage)
    try:
        data = safetensors.torch.save(tensors, dict(metadata) or None)
    except (KeyError, ValueError, safetensors.SafetensorError) as error:
        raise BadInputError(f"cannot be stored as safetensors: {first_line(error)}", source=path) from error
    write_atomically(path, _in_order(data), overwrite=overwrite)


def _in_order(data: bytes) -> bytes:
    """The same file with its metadata sorted by name: safetensors keeps it in an order that changes by run.

    The header is an 8-byte length and as many bytes of JSON, padded with spaces to a multiple of 8.
    """
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(data)[8 + size :]))


def _strip_notes(model: onnx.ModelProto) -> None:
    """Remove what differs from machine to machine: stack traces with paths, and fx's own notes."""
    for message in iterate_messages(model):
        if message is not model and "metadata_props" in message.DESCRIPTOR.fields_by_name:
            message.ClearField("metadata_props")
