"""Each error that an engine can end in, and the line that a user sees."""

from __future__ import annotations

import json

import pytest
from support import tensorrt_calls
from support.bindings import Bindings

from convbn.errors import ConvBNError
from convbn.export.engines import errors
from convbn.export.engines.backends.registry import choose_backend
from convbn.export.engines.build.build import build_engine
from convbn.export.engines.build.options import EngineOptions
from convbn.export.engines.run import cuda
from convbn.export.engines.run.runner import EngineRunner
from convbn.export.engines.sidecar import read_sidecar

real = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)

RTX = "tensorrt-rtx"


class Scene:
    """What a case needs to go wrong in."""

    def __init__(self, tiny, tmp_path, monkeypatch, driver):
        self.tiny, self.folder, self.monkeypatch, self.driver = tiny, tmp_path, monkeypatch, driver
        self.model = tiny.conv_bn(folded=True)

    def build(self, model=None, name="a", **kwargs):
        return build_engine(model or self.model, self.folder / name, **{"backend": RTX, **kwargs})

    def run(self, **script):
        answers = {**tensorrt_calls.engine_script(real), **script}
        tensorrt_calls.stand_in(self.monkeypatch, Bindings(real, answers), RTX)
        return EngineRunner(tensorrt_calls.engine_file(self.folder, b"vtrt"), trust=True)


def missing_backend(scene):
    scene.monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    choose_backend("tensorrt")


def wrong_gpu(scene):
    scene.driver("NVIDIA H100, 9.0, 570.1")
    scene.monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    choose_backend()


def untrusted(scene):
    EngineRunner(scene.build().path)


def mismatch(scene):
    path = scene.build().path
    sidecar = json.loads(path.with_name("a.json").read_text())
    sidecar["engine"]["sha256"] = "0" * 64
    path.with_name("a.json").write_text(json.dumps(sidecar))
    read_sidecar(path)


def uncapturable(scene):
    def failing():
        raise errors.BuildError("TensorRT cannot run this engine")

    device = object.__new__(cuda.CudaDevice)
    device._stream = device._context = None
    device._call = lambda *args: None
    device._cuda = type("Driver", (), {"cuStreamEndCapture": staticmethod(lambda *args: 0)})
    device.capture(failing)


CASES = {
    "BackendNotInstalledError": (
        missing_backend,
        4,
        "tensorrt: is not installed; pip install 'convbn[tensorrt]'",
    ),
    "BuildCancelledError": (
        lambda scene: scene.build(progress=lambda *event: False),
        130,
        "the model: the build was cancelled, nothing was written",
    ),
    "BuildError": (
        lambda scene: scene.build(options=EngineOptions(workspace=1)),
        4,
        "the model: TensorRT cannot build this model: ",
    ),
    "CaptureError": (
        uncapturable,
        4,
        "the engine's work fits no CUDA graph: TensorRT cannot run this engine; "
        "run it without one: cuda_graph=False, or @enqueue in a benchmark",
    ),
    "EngineIncompatibleError": (
        lambda scene: scene.run(**{"Runtime.deserialize_cuda_engine": None}),
        4,
        "{folder}/m.engine: does not load in tensorrt-rtx {version}, built with 11.4.0.106: "
        "TensorRT gives no reason; build it again here",
    ),
    "EngineMismatchError": (
        mismatch,
        3,
        "{folder}/a: is not the engine that a.json describes; build it again",
    ),
    "NoGpuError": (
        wrong_gpu,
        4,
        "TensorRT-RTX engines do not run on this GPU, NVIDIA H100 (compute capability 9.0); "
        "pip install 'convbn[tensorrt]', or name the backend to build for another GPU",
    ),
    "OnnxParseError": (
        lambda scene: scene.build(scene.tiny.single("Add", (1, 10))),
        3,
        "the model: TensorRT does not accept node 0 'the_node' (Add): ",
    ),
    "PrecisionError": (
        lambda scene: scene.build(scene.tiny.single("Relu", (10,)), precision="fp32"),
        4,
        "the model: precision fp32 was asked for, but the model carries fp16; "
        "use precision as-is or export it in float32",
    ),
    "ShapeProfileError": (
        lambda scene: scene.build(scene.tiny.conv_bn(folded=True, batch="n")),
        2,
        "the model has dynamic inputs without shapes: x (?x3x8x8); give each a range, like --shapes x=MIN:OPT:MAX",
    ),
    "UnsupportedOpError": (
        lambda scene: scene.build(scene.tiny.single("FooBar", domain="my")),
        4,
        "the model: node 0 'the_node' (FooBar) is no operator that TensorRT knows",
    ),
    "UnsupportedOptionError": (
        lambda scene: scene.build(options=EngineOptions(optimization_level=1)),
        4,
        "tensorrt-rtx: does not honour option optimization-level: every level gives the same engine",
    ),
    "UntrustedEngineError": (
        untrusted,
        2,
        "{folder}/a: an engine is a program; say trust=True, or --trust-engine, if you trust where it comes from",
    ),
}


def test_no_error_is_left_out():
    assert set(CASES) == set(errors.__all__)


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_line_that_is_shown(name, tiny, tmp_path, monkeypatch, driver):
    cause, code, line = CASES[name]
    with pytest.raises(ConvBNError) as error:
        cause(Scene(tiny, tmp_path, monkeypatch, driver))
    assert type(error.value) is getattr(errors, name)
    assert error.value.exit_code == code
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(line.format(folder=tmp_path, version=real.__version__))
