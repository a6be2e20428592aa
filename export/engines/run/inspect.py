"""What is known of an engine: always what the file and its sidecar prove, and layers where it can be loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from convbn.common.encoding import JsonReady
from convbn.errors import BadInputError, FileAccessError
from convbn.export.engines.backends.logs import collect
from convbn.export.engines.errors import EngineMismatchError, NoGpuError
from convbn.export.engines.run.layers import Inspection, LayerInfo, parse_inspection
from convbn.export.engines.run.load import EngineHeader, load_engine, read_header
from convbn.export.engines.sidecar import read_sidecar
from convbn.export.files.atomic import sha256_file

__all__ = ["EngineReport", "inspect_engine"]


@dataclass(frozen=True)
class EngineReport(JsonReady):
    """What is known of an engine file.

    Attributes:
        path: of the file.
        sha256: of the file.
        header: what its first bytes say.
        sidecar: the claims of the JSON file beside it; present only if it was written for exactly this file.
        no_sidecar: why `sidecar` is None.
        layers: of the engine, after TensorRT's fusions; None where it was not loaded.
        no_layers: why `layers` is None.
    """

    path: str
    sha256: str
    header: EngineHeader
    sidecar: Mapping[str, Any] | None
    no_sidecar: str | None = None
    layers: tuple[LayerInfo, ...] | None = None
    no_layers: str | None = None
    schema_version: str = field(default="1", init=False)


def inspect_engine(path: str | os.PathLike[str], *, trust: bool = False) -> EngineReport:
    """Say what can be said of an engine.

    Args:
        path: the engine.
        trust: load it, which runs its code, to list its layers; without it nothing of it is executed.

    Raises:
        BadInputError: it is no engine.
        FileAccessError: it cannot be read.
        EngineIncompatibleError: it was to be loaded, and does not load here.
        BackendNotInstalledError: it was to be loaded, and its TensorRT is not here.
    """
    header = read_header(path)
    sidecar, no_sidecar = None, None
    try:
        sidecar = read_sidecar(path)
    except (FileAccessError, BadInputError, EngineMismatchError) as error:
        no_sidecar = str(error)
    layers, no_layers = None, "loading an engine runs code in it, and it was not said that it is trusted"
    if trust:
        try:
            layers, no_layers = _inspect(path).layers, ""
        except NoGpuError as error:
            no_layers = error.cause
    return EngineReport(
        os.fspath(path), sha256_file(path), header, sidecar, no_sidecar, layers, no_layers or None
    )


def _inspect(path: str | os.PathLike[str]) -> Inspection:
    loaded = load_engine(path, trust=True)
    with collect(loaded.trt):
        inspector = loaded.engine.create_engine_inspector()
        text = inspector.get_engine_information(loaded.trt.LayerInformationFormat.JSON)
    return parse_inspection(text)
