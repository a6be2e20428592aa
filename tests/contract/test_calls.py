"""Every call that convbn makes of classic TensorRT, held against the real bindings of one version."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from support import tensorrt_calls
from support.bindings import Bindings

from convbn.export.engines.backends.backend import Backend
from convbn.export.engines.build.configuration import apply_options
from convbn.export.engines.build.options import EngineOptions
from convbn.export.engines.errors import (
    BackendNotInstalledError,
    BuildCancelledError,
    EngineIncompatibleError,
    UnsupportedOpError,
    UnsupportedOptionError,
)
from convbn.export.engines.refit import refit_engine
from convbn.export.engines.run.inspect import inspect_engine
from convbn.export.engines.run.runner import EngineRunner

# What a removed name may end in: never in a build that ignores what was asked for.
TOLD = (AttributeError, UnsupportedOptionError, BackendNotInstalledError, TypeError)


def _beside(engine: Path) -> str:
    sidecar = {"sha256": hashlib.sha256(engine.read_bytes()).hexdigest()}
    return json.dumps({"schema_version": "1", "engine": sidecar, "tf32": True})


def everything(real, folder, monkeypatch, removed=()) -> Bindings:
    """A build with every option, a refused model, a run with a CUDA graph, an inspection."""
    script = {**tensorrt_calls.network_script(real), **tensorrt_calls.engine_script(real)}
    script = {**script, **tensorrt_calls.refit_script()}
    bindings = Bindings(real, script, removed)
    tensorrt_calls.build(bindings, folder)
    failing = Bindings(real, {**script, **tensorrt_calls.parse_failure_script()}, removed)
    with pytest.raises(UnsupportedOpError, match=r"node 3 'the_node' \(FooBar\) is no operator"):
        tensorrt_calls.build(failing, folder)
    tensorrt_calls.stand_in(monkeypatch, bindings)
    engine = tensorrt_calls.engine_file(folder)
    with EngineRunner(engine, trust=True, profile=1) as run:
        for _ in range(2):
            value = np.arange(6, dtype=np.float32).reshape(3, 2)
            np.testing.assert_array_equal(run({"x": value})["y"], 2 * value)
    assert inspect_engine(engine, trust=True).layers[0].name == "relu"
    (folder / "m.engine.json").write_text(_beside(engine))
    refit_engine(
        engine, tensorrt_calls.tiny_model(), folder / "n.engine", trust=True, changes={}, overwrite=True
    )
    (folder / "m.engine.json").unlink()
    bindings.calls += failing.calls
    return bindings


def test_the_bindings_are_what_a_backend_needs(real, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", real)
    Backend("tensorrt", ("tensorrt",), "pip install x", True, lambda gpu: True, "trtexec").load()
    assert int(real.__version__.split(".")[0]) in (10, 11)


def test_every_call_is_one_that_the_bindings_have(real, tmp_path, monkeypatch):
    calls = set(everything(real, tmp_path, monkeypatch).calls)
    assert {
        "Builder.build_serialized_network",
        "IBuilderConfig.set_timing_cache",
        "ParserError.desc",
    } <= calls
    assert {"IExecutionContext.execute_async_v3", "EngineInspector.get_engine_information"} <= calls
    assert len(calls) > 50


def test_a_renamed_call_is_found(real, tmp_path, monkeypatch):
    """Each name in turn is pretended away; what convbn asks for by name is never silently left out."""
    calls = sorted({call.removesuffix("=") for call in everything(real, tmp_path, monkeypatch).calls})
    optional = {"ICudaEngine.create_runtime_config"}  # asked for first, and without it there is another way
    for call in calls:
        if call in optional:
            continue
        with pytest.raises(TOLD):
            everything(real, tmp_path, monkeypatch, removed=(call,))


def test_a_changed_signature_is_found(real, tmp_path):
    bindings = Bindings(real, tensorrt_calls.network_script(real))
    config = bindings.make("IBuilderConfig")
    with pytest.raises(TypeError, match="incompatible"):
        config.set_memory_pool_limit("WORKSPACE", 1)
    with pytest.raises(TypeError, match="incompatible"):
        config.set_timing_cache(bindings.make("ITimingCache"))
    with pytest.raises(TypeError, match="incompatible"):
        bindings.make("OnnxParser").parse("a path")
    with pytest.raises(AttributeError, match="to set"):
        config.workspace = 1


def test_the_progress_callback_cancels(real, tmp_path):
    from convbn.export.engines.build.builder import Request, build_plan
    from convbn.export.engines.build.source import read_source

    bindings = Bindings(real, tensorrt_calls.network_script(real))
    request = Request(read_source(tensorrt_calls.tiny_model()), "tensorrt", profiles=(tensorrt_calls.RANGE,))
    with pytest.raises(BuildCancelledError, match="was cancelled, nothing was written"):
        build_plan(bindings, request, lambda phase, done, steps: False)


def test_an_option_that_is_not_taken_is_refused(real):
    script = tensorrt_calls.network_script(real)
    script["IBuilderConfig.get_flag"] = False
    config = Bindings(real, script).make("IBuilderConfig")
    with pytest.raises(UnsupportedOptionError, match=r"option refit: version .* did not take it"):
        apply_options(real, config, EngineOptions(refit=True), "tensorrt")


def test_every_option_for_classic_is_known_to_this_version(real):
    bindings = Bindings(real, tensorrt_calls.network_script(real))
    for level in ("ampere+", "same-compute-capability"):
        apply_options(
            bindings, bindings.make("IBuilderConfig"), EngineOptions(hardware_compatibility=level), "tensorrt"
        )


def test_an_engine_that_does_not_load(real, tmp_path, monkeypatch):
    script = {**tensorrt_calls.engine_script(real), "Runtime.deserialize_cuda_engine": None}
    tensorrt_calls.stand_in(monkeypatch, Bindings(real, script))
    with pytest.raises(
        EngineIncompatibleError, match=r"does not load in tensorrt .*, built with 11\.4\.0\.106"
    ):
        EngineRunner(tensorrt_calls.engine_file(tmp_path), trust=True)


def test_there_is_no_runtime_cache(real, tmp_path, monkeypatch):
    tensorrt_calls.stand_in(monkeypatch, Bindings(real, tensorrt_calls.engine_script(real)))
    with pytest.raises(UnsupportedOptionError, match="does not honour option runtime-cache"):
        EngineRunner(tensorrt_calls.engine_file(tmp_path), trust=True, runtime_cache=tmp_path)
