"""What convbn asks of TensorRT, run as a whole against a :class:`support.bindings.Bindings`."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from onnx import helper

from convbn.export.engines.backends.backend import Backend
from convbn.export.engines.backends.caches import CacheFile
from convbn.export.engines.build.builder import Plan, Request, build_plan
from convbn.export.engines.build.options import EngineOptions
from convbn.export.engines.build.source import read_source
from convbn.export.engines.run import load as loading
from convbn.export.engines.run import runner
from convbn.export.shapes import ShapeRange
from support.bindings import Bindings

RANGE = {"x": ShapeRange((1, 2), (2, 2), (4, 2))}


def tiny_model() -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    graph = helper.make_graph(nodes, "g", [value("x", 1, ["n", 2])], [value("y", 1, ["n", 2])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def network_script(real: ModuleType, plan: bytes = b"plan") -> dict[str, Any]:
    """Answers that describe the network of :func:`tiny_model`."""
    flags: set[Any] = {real.BuilderFlag.TF32}
    pools: dict[Any, int] = {}

    def build(builder: Any, network: Any, config: Any) -> Any:
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 2)
        for step in range(2):
            if not monitor.step_complete("Building engine", step):
                return None
        monitor.phase_finish("Building engine")
        return builder._bindings.make("IHostMemory")

    return {
        "IHostMemory": plan,
        "INetworkDefinition.num_layers": 1,
        "INetworkDefinition.num_inputs": 1,
        "INetworkDefinition.num_outputs": 1,
        "ILayer.type": real.LayerType.SCALE,
        "ITensor.name": "x",
        "ITensor.dtype": real.DataType.FLOAT,
        "ITensor.shape": (-1, 2),
        "ITensor.is_shape_tensor": False,
        "IBuilderConfig.set_flag": lambda config, flag: flags.add(flag),
        "IBuilderConfig.clear_flag": lambda config, flag: flags.discard(flag),
        "IBuilderConfig.get_flag": lambda config, flag: flag in flags,
        "IBuilderConfig.set_memory_pool_limit": lambda config, pool, size: pools.update({pool: size}),
        "IBuilderConfig.get_memory_pool_limit": lambda config, pool: pools[pool],
        "Builder.build_serialized_network": build,
    }


CLASSIC_OPTIONS = EngineOptions(
    workspace=1 << 30,
    optimization_level=4,
    hardware_compatibility="ampere+",
    version_compatible=True,
    strip_weights=True,
    refit=True,
)


def build(
    bindings: Bindings, folder: Path, options: EngineOptions = CLASSIC_OPTIONS, *, cached: bool = True
) -> Plan:
    """Every step of a build: parse, profiles, options, timing cache, monitor, build, layer counts."""
    source = read_source(tiny_model())
    cache = CacheFile(folder / "timing.cache") if cached else None
    if cache is not None:
        cache.update(lambda old: b"earlier timings")
    request = Request(source, "tensorrt", False, (RANGE, RANGE), options, cache)
    return build_plan(bindings, request)


def parse_failure_script() -> dict[str, Any]:
    """Answers of a parser that refuses a node."""
    return {
        "OnnxParser.parse": False,
        "OnnxParser.num_errors": 1,
        # The docstring has the name of the C++ class.
        "OnnxParser.get_error": lambda parser, index: parser._bindings.make("ParserError"),
        "ParserError.desc": "Plugin not found",
        "ParserError.node": 3,
        "ParserError.node_name": "the_node",
        "ParserError.node_operator": "FooBar",
    }


class HostDevice:
    """Host memory in the place of a GPU's: the runner's copies are real, only the addresses are the host's."""

    stream = 7

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}
        self.launched = 0
        self.closed = False

    def enter(self) -> None: ...

    def allocate(self, size: int) -> int:
        block = ctypes.create_string_buffer(max(size, 1))
        self.blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def free(self, address: int) -> None:
        del self.blocks[address]

    def upload(self, address: int, array: np.ndarray[Any, Any]) -> None:
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, array: np.ndarray[Any, Any], address: int) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def synchronize(self) -> None: ...

    def capture(self, work: Any) -> int:
        self.work = work
        return 1

    def launch(self, graph: int) -> None:
        self.launched += 1
        self.work()

    def drop(self, graph: int) -> None: ...

    def close(self) -> None:
        self.closed = True


def engine_script(real: ModuleType) -> dict[str, Any]:
    """Answers of an engine whose work is y = 2x on float32 of shape nx2, n from 1 to 4."""
    state: dict[str, Any] = {}

    def set_shape(context: Any, name: str, shape: Any) -> bool:
        state["shape"] = tuple(shape)
        return len(shape) == 2 and 1 <= shape[0] <= 4 and shape[1] == 2

    def set_address(context: Any, name: str, address: int) -> bool:
        state[name] = address
        return True

    def execute(context: Any, stream: int) -> bool:
        count = state["shape"][0] * 2
        source = (ctypes.c_float * count).from_address(state["x"])
        target = (ctypes.c_float * count).from_address(state["y"])
        for index in range(count):
            target[index] = 2 * source[index]
        return True

    return {
        "ICudaEngine.num_io_tensors": 2,
        "ICudaEngine.num_optimization_profiles": 2,
        "ICudaEngine.get_tensor_name": lambda engine, index: "xy"[index],
        "ICudaEngine.get_tensor_dtype": real.DataType.FLOAT,
        "ICudaEngine.get_tensor_shape": (-1, 2),
        "ICudaEngine.get_tensor_mode": lambda engine, name: (
            real.TensorIOMode.INPUT if name == "x" else real.TensorIOMode.OUTPUT
        ),
        "ICudaEngine.get_tensor_profile_shape": lambda engine, name, profile: [(1, 2), (2, 2), (4, 2)],
        "IExecutionContext.set_input_shape": set_shape,
        "IExecutionContext.get_tensor_shape": lambda context, name: state["shape"],
        "IExecutionContext.set_tensor_address": set_address,
        "IExecutionContext.execute_async_v3": execute,
        "EngineInspector.get_engine_information": '{"Layers": ["relu"], "Bindings": ["x", "y"]}',
        "Runtime.get_engine_validity": lambda runtime, data: (
            real.EngineValidity.VALID,
            0,
        ),
    }  # fmt: skip


def refit_script() -> dict[str, Any]:
    """Answers of an engine that takes new weights."""
    return {
        "ICudaEngine.refittable": True,
        "OnnxParserRefitter.refit_from_bytes": True,
        "Refitter.get_missing_weights": lambda refitter: [],
        "Refitter.refit_cuda_engine": True,
        "ISerializationConfig.set_flag": True,
        "ICudaEngine.serialize_with_config": lambda engine, config: engine._bindings.make("IHostMemory"),
        "IHostMemory": b"refitted",
    }


def stand_in(monkeypatch: Any, bindings: Bindings, name: str = "tensorrt", device: type = HostDevice) -> None:
    """Let engines be loaded through the bindings, on host memory."""
    backend = Backend(name, (name,), "pip install x", True, lambda gpu: True, "trtexec")
    monkeypatch.setattr(Backend, "load", lambda self: bindings)
    monkeypatch.setattr(loading, "backend_named", lambda wanted: backend)
    monkeypatch.setattr(loading, "require_gpu", lambda **kwargs: None)
    monkeypatch.setattr(runner, "CudaDevice", device)


def engine_file(folder: Path, magic: bytes = b"ftrt") -> Path:
    """A file that begins as an engine does."""
    path = folder / "m.engine"
    path.write_bytes(magic + bytes(20) + bytes([11, 4, 0, 106]) + bytes(36))
    return path
