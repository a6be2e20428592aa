"""The build itself, through the part of the API that both TensorRTs share."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from convbn.errors import FileAccessError
from convbn.export.engines.backends.caches import CacheFile
from convbn.export.engines.backends.logs import BuildLog, collect
from convbn.export.engines.build.configuration import apply_options
from convbn.export.engines.build.network import Network, layer_counts, parse_network, way_around
from convbn.export.engines.build.options import EngineOptions
from convbn.export.engines.build.profiles import network_inputs, network_outputs, settle_profiles
from convbn.export.engines.build.source import Source
from convbn.export.engines.errors import BuildCancelledError, BuildError
from convbn.export.shapes import Profile, ShapeRange

__all__ = [
    "Plan",
    "Progress",
    "Request",
    "TensorInfo",
    "build_plan",
    "keep_timings",
    "make_monitor",
    "use_timings",
]

# Called with the name of a phase, the steps that are done and the steps it has. False cancels.
Progress: TypeAlias = Callable[[str, int, int], object]

# How often the waiting thread looks for a Ctrl-C, seconds. Windows cannot interrupt a longer wait.
_POLL = 0.05


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of an engine; -1 is a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """What is to be built.

    Attributes:
        source: the model.
        backend: name of the backend, for messages.
        tf32: whether float32 convolutions may round their inputs to TF32.
        profiles: ranges of the dynamic inputs' shapes.
        options: further wishes.
        timings: the timing cache, if one is wanted.
    """

    source: Source
    backend: str
    tf32: bool = True
    profiles: tuple[Profile, ...] = ()
    options: EngineOptions = field(default_factory=EngineOptions)
    timings: CacheFile | None = None


@dataclass(frozen=True)
class Plan:
    """A serialised engine and what is known of it.

    Attributes:
        data: the plan's bytes.
        layers: type of layer to how many the parsed network had.
        inputs: of the network.
        outputs: of the network.
        profiles: the range of shapes of each dynamic input, by profile.
        flags: names of the flags that were set.
        warnings: TensorRT's, without repetition.
    """

    data: bytes
    layers: Counter[str]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    profiles: tuple[Mapping[str, ShapeRange], ...]
    flags: tuple[str, ...]
    warnings: tuple[str, ...]


def build_plan(trt: Any, request: Request, progress: Progress | None = None) -> Plan:
    """Build an engine in memory.

    The work is done in a thread of its own, in which `progress` is called too. So a Ctrl-C reaches the
    waiting thread, never one of TensorRT's callbacks, where it would be swallowed.

    Args:
        trt: the backend's module.
        request: what is wanted.
        progress: called with phase, steps done and steps in all; False cancels.

    Raises:
        OnnxParseError: the model is not accepted.
        UnsupportedOpError: an operator is not implemented.
        ShapeProfileError: the shapes do not fit the model.
        UnsupportedOptionError: the backend's version does not take an option.
        BuildError: TensorRT failed, in its own words.
        BuildCancelledError: `progress` answered False.
        KeyboardInterrupt: after the build was cancelled. What `progress` raises comes out likewise.
    """
    cancel, done = threading.Event(), threading.Event()
    outcome: list[Plan | BaseException] = []

    def work() -> None:
        try:
            outcome.append(_build(trt, request, progress, cancel))
        except BaseException as error:  # handed to the waiting thread, which raises it
            outcome.append(error)
        finally:
            done.set()

    # Not a daemon: Python must not end while TensorRT still works in it, that would abort the process.
    thread = threading.Thread(target=work, name="convbn-build")
    # Not Thread.join alone: in Python 3.11 a Ctrl-C in it marks a running thread as ended.
    try:
        thread.start()
        while not done.wait(_POLL):
            pass
    except RuntimeError:  # no thread could be started
        raise
    except BaseException:
        cancel.set()
        done.wait()
        thread.join()
        raise
    thread.join()
    result = outcome[0]
    if isinstance(result, BaseException):
        raise result
    return result


def _build(trt: Any, request: Request, progress: Progress | None, cancel: threading.Event) -> Plan:
    source = request.source
    with collect(trt) as log:
        network = parse_network(trt, source, log)
        profiles = settle_profiles(network.definition, request.profiles)
        monitor = make_monitor(trt, progress, cancel)
        config = _configure(trt, network, profiles, request, log)
        config.progress_monitor = monitor
        notes = [] if request.timings is None else use_timings(config, request.timings)
        serialised = None
        if not cancel.is_set():
            serialised = network.builder.build_serialized_network(network.definition, config)
        if monitor.error is not None:
            raise monitor.error
        if cancel.is_set():
            raise BuildCancelledError("the build was cancelled, nothing was written", source=source.shown)
        if serialised is None:
            told = log.first_error() or "it gives no reason"
            hint = way_around(told, source)
            raise BuildError(f"TensorRT cannot build this model: {told}", source=source.shown, hint=hint)
        if request.timings is not None:
            notes += keep_timings(config, request.timings)
        # By number: 10.x has a second name for one of them.
        names = {int(flag): name for name, flag in trt.BuilderFlag.__members__.items()}
        flags = [name for number, name in names.items() if config.get_flag(trt.BuilderFlag(number))]
        return Plan(
            data=bytes(serialised),
            layers=layer_counts(network),
            inputs=_infos(network_inputs(network.definition)),
            outputs=_infos(network_outputs(network.definition)),
            profiles=profiles,
            flags=("STRONGLY_TYPED", *flags),
            warnings=(*notes, *log.warnings()),
        )


def _configure(
    trt: Any,
    network: Network,
    profiles: tuple[Mapping[str, ShapeRange], ...],
    request: Request,
    log: BuildLog,
) -> Any:
    config = network.builder.create_builder_config()
    apply_options(trt, config, request.options, request.backend)
    if not request.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # layer names in the plan, at little cost
    for profile in profiles:
        wanted = network.builder.create_optimization_profile()
        for name, shape in profile.items():
            wanted.set_shape(name, shape.min, shape.opt, shape.max)
        if config.add_optimization_profile(wanted) < 0:
            told = log.first_error() or "it gives no reason"
            raise BuildError(f"TensorRT refuses the shapes: {told}", source=request.source.shown)
    return config


def _infos(tensors: list[Any]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(tensor.name, tensor.dtype.name, tuple(tensor.shape)) for tensor in tensors)


def make_monitor(trt: Any, progress: Progress | None, cancel: threading.Event) -> Any:
    """A progress monitor that never loses an exception.

    TensorRT prints and drops what a monitor raises. Here the first exception is kept in ``error``, sets
    `cancel`, and the build ends at its next step.

    Args:
        trt: the backend's module.
        progress: the callback, if any; called from the thread that builds.
        cancel: set it from any thread to end the build.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # a class of a module known at run time only
        def __init__(self) -> None:
            super().__init__()
            self.error: BaseException | None = None
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self._report(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._report(phase_name, step + 1)
            return not cancel.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._report(phase_name, self.steps.get(phase_name, 0))

        def _report(self, phase: str, step: int) -> None:
            if progress is None or cancel.is_set():
                return
            try:
                if progress(phase, step, self.steps.get(phase, 0)) is False:
                    cancel.set()
            except BaseException as error:  # re-raised by the caller of the build
                self.error = error
                cancel.set()

    return Monitor()


def use_timings(config: Any, cache: CacheFile) -> list[str]:
    """Give a configuration the timings that are known, or an empty cache where they do not fit.

    Args:
        config: an ``IBuilderConfig``.
        cache: the file.

    Returns:
        Warnings.
    """
    try:
        data = cache.read()
    except FileAccessError as error:
        return [f"The timing cache was not used: {error}."]
    if data is not None and _use(config, data):
        return []
    # TensorRT holds a cache against the device and its own version; what it refuses is of no use here.
    warnings = [] if data is None else [f"The timing cache {cache.path} does not fit and was not used."]
    return warnings if _use(config, b"") else [*warnings, "TensorRT took no timing cache."]


def keep_timings(config: Any, cache: CacheFile) -> list[str]:
    """Merge the timings of a build into the file; a file that cannot be written is a warning.

    Args:
        config: of a build that is done.
        cache: the file.

    Returns:
        Warnings.
    """
    own = config.get_timing_cache()
    if own is None:
        return ["TensorRT kept no timings."]

    def merge(data: bytes | None) -> bytes:
        if data is not None:
            merged = config.create_timing_cache(data)
            if merged is not None and merged.combine(own, False):
                return bytes(merged.serialize())
        return bytes(own.serialize())

    try:
        cache.update(merge)
    except FileAccessError as error:
        return [f"The timing cache was not written: {error}."]
    return []


def _use(config: Any, data: bytes) -> bool:
    timings = config.create_timing_cache(data)
    return timings is not None and bool(config.set_timing_cache(timings, False))
