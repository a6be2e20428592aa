"""From ONNX bytes to a TensorRT network."""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbn.export.engines.backends.logs import BuildLog, clean, collect, logger_of
from convbn.export.engines.backends.registry import choose_backend
from convbn.export.engines.build.source import Source, read_source
from convbn.export.engines.errors import OnnxParseError, UnsupportedOpError
from convbn.export.onnx_io.read import save_model

if TYPE_CHECKING:
    import onnx

__all__ = ["Network", "layer_counts", "network_summary", "parse_network", "way_around"]


# How TensorRT names the 16-bit types where it has no kernel for one of them.
_LOW = re.compile(r"current type = (BF16|HALF|FP16)\b|\b(bf16|f16)\[", re.IGNORECASE)


@dataclass(frozen=True)
class Network:
    """A parsed network together with the objects that must outlive it."""

    builder: Any
    definition: Any
    parser: Any


def network_summary(model: onnx.ModelProto | str | os.PathLike[str], backend: str = "auto") -> Counter[str]:
    """Count the layers that TensorRT's parser makes of a model.

    A BatchNormalization with constant parameters becomes exactly one ``SCALE`` layer. Nothing is built.

    Args:
        model: a model or the path of one.
        backend: see :func:`convbn.export.engines.backends.registry.choose_backend`.

    Returns:
        Type of layer, as TensorRT names it (``CONVOLUTION``, ``SCALE``, ...), to how many there are.

    Raises:
        OnnxParseError: TensorRT does not accept the model.
        UnsupportedOpError: it does not implement an operator of it.
    """
    chosen = choose_backend(backend)
    trt, source = chosen.load(), read_source(model)
    with collect(trt) as log:
        return layer_counts(parse_network(trt, source, log))


def layer_counts(network: Network) -> Counter[str]:
    """Type of layer to how many of it a parsed network has."""
    definition = network.definition
    return Counter(definition.get_layer(index).type.name for index in range(definition.num_layers))


def way_around(told: str, source: Source) -> str | None:
    """What to do where TensorRT has an operator in float32 and not in a 16-bit type; None where that is not the cause.

    The message names one node. The others of its operator would be refused after it.
    """
    if not _LOW.search(told):
        return None
    nodes = [node for node in source.model.graph.node if node.name]
    named = {n.op_type for n in nodes if re.search(rf"(?<![\w./]){re.escape(n.name)}(?![\w./])", told)}
    names = [node.name for node in nodes if node.op_type in named]
    return f"leave it in float32: --keep-fp32 {shlex.join(names)}" if names else None


def parse_network(trt: Any, source: Source, log: BuildLog) -> Network:
    """Parse a model into a strongly typed network: the model alone decides the precision.

    Args:
        trt: the backend's module.
        source: the model.
        log: collects while this runs.

    Raises:
        OnnxParseError: TensorRT does not accept the model.
        UnsupportedOpError: it does not implement an operator of it.
    """
    logger = logger_of(trt)
    builder = trt.Builder(logger)
    definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(definition, logger)
    if source.data is not None:
        parsed = parser.parse(source.data)
    elif source.has_file:
        parsed = parser.parse_from_file(str(Path(source.shown).absolute()))
    else:
        parsed = _parse_large(parser, source)
    if not parsed:
        raise _parse_error(parser, source, log)
    return Network(builder, definition, parser)


def _parse_large(parser: Any, source: Source) -> bool:
    """Through a file: the only way into every parser for what one protobuf message cannot hold."""
    # The parser may still have the file mapped, which Windows does not let go of.
    with tempfile.TemporaryDirectory(prefix="convbn-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        save_model(source.model, path, external_data="always")
        return bool(parser.parse_from_file(str(path)))


def _parse_error(parser: Any, source: Source, log: BuildLog) -> OnnxParseError | UnsupportedOpError:
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        told = clean(error.desc())
        operator = error.node_operator()
        node = f"node {error.node()} {error.node_name()!r} ({operator})" if operator else "the model"
        unknown = "Plugin not found" in told
        if unknown or error.code().name.startswith("UNSUPPORTED"):
            why = "is no operator that TensorRT knows" if unknown or not told else f"is not supported: {told}"
            return UnsupportedOpError(
                f"{node} {why}", source=source.shown, hint=way_around(f"{node}: {told}", source)
            )
        if told:
            return OnnxParseError(f"TensorRT does not accept {node}: {told}", source=source.shown)
    told = log.first_error() or "it gives no reason"
    return OnnxParseError(f"TensorRT does not accept the model: {told}", source=source.shown)
