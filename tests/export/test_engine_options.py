"""Options of a build: honoured, or refused in one line; never ignored."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from convbn.errors import UsageError
from convbn.export.engines.backends import registry
from convbn.export.engines.build.build import build_engine
from convbn.export.engines.build.configuration import APPLIED_ELSEWHERE, SETTERS, apply_options
from convbn.export.engines.build.options import EngineOptions, parse_size
from convbn.export.engines.errors import BuildError, ShapeProfileError, UnsupportedOptionError
from convbn.export.shapes import parse_profiles

trt = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)

RTX = "tensorrt-rtx"
H100 = "NVIDIA H100 80GB HBM3, 9.0, 570.1"


@pytest.fixture
def config():
    from convbn.export.engines.backends.logs import collect, logger_of

    with collect(trt):
        builder = trt.Builder(logger_of(trt))
        yield builder.create_builder_config()


def test_every_option_is_set_by_somebody():
    names = {field.name for field in dataclasses.fields(EngineOptions)}
    assert names == set(SETTERS) | set(APPLIED_ELSEWHERE)
    for name in registry._BACKENDS:
        backend = registry.backend_named(name)
        assert set(backend.unhonoured) | backend.gpu_only <= names


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"workspace": 0}, "option workspace: a workspace of 0 bytes is none"),
        ({"workspace": -5}, "option workspace: a workspace of -5 bytes is none"),
        ({"optimization_level": 6}, "option optimization-level: 6 is not 0 to 5"),
        ({"optimization_level": -1}, "option optimization-level: -1 is not 0 to 5"),
        (
            {"hardware_compatibility": "all"},
            "option hardware-compatibility: there is no 'all'; choose ampere+ or same-compute-capability",
        ),
        (
            {"compute_capabilities": ("sm86",)},
            "option compute-capability: 'sm86' is no compute capability; write it like 8.6, or current",
        ),
        ({"compute_capabilities": ("8.6", "8.6")}, "option compute-capability: one is named twice"),
        ({"compute_capabilities": ("8.6", "current")}, "option compute-capability: current stands alone"),
    ],
)
def test_nonsense(options, told):
    with pytest.raises(UsageError) as error:
        EngineOptions(**options)
    assert str(error.value) == told


def test_sizes():
    assert [parse_size(text) for text in ("7", "2k", "512MiB", "4G", "4gib")] == [
        7, 2048, 512 << 20, 4 << 30, 4 << 30
    ]  # fmt: skip
    for text in ("", "MiB", "1.5G", "-1", "1 G", "1TiB", "٣"):
        with pytest.raises(UsageError, match="is not a size"):
            parse_size(text)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"optimization_level": 3}, "option optimization-level: every level gives the same engine"),
        ({"hardware_compatibility": "ampere+"}, "option hardware-compatibility: name the GPUs with"),
        ({"version_compatible": True}, "option version-compatible: it comes without the lean runtime"),
        ({"timing_cache": "auto"}, "option timing-cache: it times no kernels while it builds"),
        ({"refit": True}, "option refit: it needs a GPU for it, and there is none"),
        ({"strip_weights": True}, "option strip-weights: it needs a GPU for it, and there is none"),
    ],
)
def test_what_rtx_would_ignore_is_refused(driver, saved, tmp_path, names, options, told):
    driver(code=9)
    with pytest.raises(UnsupportedOptionError) as error:
        build_engine(saved, tmp_path / "a", backend=RTX, options=EngineOptions(**options))
    assert f"tensorrt-rtx: does not honour {told}" in str(error.value)
    assert error.value.exit_code == 4
    assert names(tmp_path) == ["tiny.onnx"]


def test_rtx_really_ignores_what_is_refused_for_it(config):
    # The day one of these has an effect, the refusal is wrong.
    with pytest.raises(UnsupportedOptionError, match="did not take it"):
        apply_options(trt, config, EngineOptions(hardware_compatibility="ampere+"), RTX)


def test_optimisation_levels_give_one_engine(tiny):
    from convbn.export.engines.build.builder import Request, build_plan
    from convbn.export.engines.build.source import read_source

    source = read_source(tiny.conv_bn(folded=True))
    plans = {
        build_plan(trt, Request(source, RTX, options=EngineOptions(optimization_level=level))).data
        for level in (0, 5)
    }
    assert len(plans) == 1


@pytest.mark.parametrize("name", ["refit", "strip_weights", "version_compatible"])
def test_rtx_fails_to_build_what_is_refused_for_it(saved, name):
    from convbn.export.engines.backends.gpus import list_gpus
    from convbn.export.engines.build.builder import Request, build_plan
    from convbn.export.engines.build.source import read_source

    if list_gpus():
        pytest.skip("these are refused where there is no GPU")
    with pytest.raises(BuildError):
        build_plan(trt, Request(read_source(saved), RTX, options=EngineOptions(**{name: True})))


def test_classic_refuses_what_only_rtx_has(driver, classic, saved, tmp_path):
    driver(H100)
    with pytest.raises(UnsupportedOptionError) as error:
        build_engine(saved, tmp_path / "a", options=EngineOptions(compute_capabilities=("8.6",)))
    assert str(error.value).startswith("tensorrt: does not honour option compute-capabilities: it builds for")


def test_classic_needs_a_gpu_by_name_for_its_cache(driver, classic, saved, tmp_path):
    driver(code=9)
    options = EngineOptions(timing_cache=tmp_path)
    with pytest.raises(UnsupportedOptionError, match="option timing-cache: it needs a GPU for it"):
        build_engine(saved, tmp_path / "a", backend="tensorrt", options=options)


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_a_timing_cache_is_written_and_named_in_the_trtexec_line(driver, classic, saved, tmp_path):
    """RTX's module stands in for classic TensorRT; its caches are empty, but caches."""
    driver(H100)
    options = EngineOptions(timing_cache=tmp_path / "c")
    for name in ("a", "b"):
        sidecar = build_engine(saved, tmp_path / name, options=options).sidecar
        (cache,) = (tmp_path / "c").glob("*.cache")
        assert cache.name.startswith(f"timing-{trt.__version__}-sm90-NVIDIA_H100")
        assert f"--timingCacheFile={cache}" in sidecar["command"]
        assert sidecar["options"] == {"timing_cache": str(tmp_path / "c")}


def test_a_version_without_an_option_says_so(config, monkeypatch):
    class Old:
        __version__ = "10.12"
        BuilderFlag = type("BuilderFlag", (), {})

    with pytest.raises(UnsupportedOptionError) as error:
        apply_options(Old, config, EngineOptions(strip_weights=True), "tensorrt")
    assert str(error.value) == (
        "tensorrt: does not honour option strip-weights: version 10.12 has no STRIP_PLAN"
    )


def test_compute_capabilities_are_built_for(saved, tmp_path):
    """For real: the engine differs by GPU and not by the order in which they are named."""
    jsonschema = pytest.importorskip("jsonschema")
    wanted = {"a": (), "b": ("8.9", "12.0"), "c": ("12.0", "8.9"), "d": ("7.5",), "e": ("8.9",)}
    built = {
        name: build_engine(
            saved, tmp_path / name, backend=RTX, options=EngineOptions(compute_capabilities=capabilities)
        )
        for name, capabilities in wanted.items()
    }
    digests = {name: artifact.sha256 for name, artifact in built.items()}
    assert digests["b"] == digests["c"]
    assert len(set(digests.values())) == 4
    sidecar = built["b"].sidecar
    assert sidecar["options"] == {"compute_capabilities": ["8.9", "12.0"]}
    assert "--computeCapabilities=89,120" in sidecar["command"]
    import convbn.export

    schema = json.loads((Path(convbn.export.__file__).parent / "engine-sidecar.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(json.loads((tmp_path / "b.json").read_text()))


@pytest.mark.parametrize("capability", ["9.0", "10.0", "6.1"])
def test_rtx_builds_for_no_gpu_that_it_does_not_serve(saved, tmp_path, capability):
    options = EngineOptions(compute_capabilities=(capability,))
    with pytest.raises(UsageError) as error:
        build_engine(saved, tmp_path / "a", backend=RTX, options=options)
    assert f"does not build for compute capability {capability}; it knows current, 7.5, 8.0, 8.6" in str(
        error.value
    )


def test_the_current_gpu_needs_one(driver, saved, tmp_path):
    driver(code=9)
    with pytest.raises(BuildError) as error:
        build_engine(
            saved, tmp_path / "a", backend=RTX, options=EngineOptions(compute_capabilities=("current",))
        )
    assert "\n" not in str(error.value)


def test_workspace_is_obeyed(saved, tmp_path):
    built = build_engine(saved, tmp_path / "a", backend=RTX, options=EngineOptions(workspace=1 << 30))
    assert built.sidecar["options"] == {"workspace": 1 << 30}
    assert "--memPoolSize=workspace:1073741824B" in built.sidecar["command"]
    with pytest.raises(BuildError, match="within workspace limit") as error:
        build_engine(saved, tmp_path / "b", backend=RTX, options=EngineOptions(workspace=1 << 20))
    assert "\n" not in str(error.value)


def test_several_profiles(tiny, tmp_path):
    model = tiny.conv_bn(folded=True, batch="n")
    profiles = parse_profiles(["x=1x3x8x8:4x3x8x8:8x3x8x8;x:16x3x8x8"])
    sidecar = build_engine(model, tmp_path / "a", backend=RTX, shapes=profiles).sidecar
    assert [profile["x"]["max"] for profile in json.loads((tmp_path / "a.json").read_text())["profiles"]] == [
        [8, 3, 8, 8],
        [16, 3, 8, 8],
    ]
    assert "--profile=0 --minShapes=x:1x3x8x8" in sidecar["command"]
    assert "--profile=1 --minShapes=x:16x3x8x8" in sidecar["command"]
    with pytest.raises(ShapeProfileError, match="no input 'q'"):
        build_engine(
            model, tmp_path / "b", backend=RTX, shapes=parse_profiles(["x:1x3x8x8;q:1x3x8x8", "x:2x3x8x8"])
        )


def test_all_classic_options_reach_the_trtexec_line(tmp_path):
    from convbn.export.engines.sidecar import _OPTIONS

    def texts(options):
        return [_OPTIONS[name](getattr(options, name)) for name in options.given()]

    options = EngineOptions(
        workspace=1 << 20,
        optimization_level=5,
        hardware_compatibility="same-compute-capability",
        version_compatible=True,
        strip_weights=True,
        refit=True,
    )
    assert texts(options) == [
        "--memPoolSize=workspace:1048576B",
        "--builderOptimizationLevel=5",
        "--hardwareCompatibilityLevel=sameComputeCapability",
        "--versionCompatible",
        "--stripWeights",
        "--refit",
    ]
    assert texts(EngineOptions(compute_capabilities=("current",))) == ["--useGpu"]
