"""Options into a builder configuration: each is set, read back, or refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from convbn.errors import UsageError
from convbn.export.engines.backends.backend import Backend
from convbn.export.engines.build.options import EngineOptions
from convbn.export.engines.errors import UnsupportedOptionError

__all__ = ["APPLIED_ELSEWHERE", "SETTERS", "apply_options", "require_honoured"]

# The timing cache is a file and a merge, not a setting: see builder.py.
APPLIED_ELSEWHERE = ("timing_cache",)
_LEVELS = {"ampere+": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}
_CODE = re.compile(r"SM(\d+)(\d)")


def require_honoured(backend: Backend, options: EngineOptions, *, gpu: bool) -> None:
    """Refuse what the backend would ignore, before any work is done.

    Args:
        backend: the one that builds.
        options: what is wanted.
        gpu: whether there is a GPU here.

    Raises:
        UnsupportedOptionError: an option that is given has no effect, or cannot have it here.
    """
    for name in options.given():
        if name in backend.unhonoured:
            raise _refusal(backend.name, name, backend.unhonoured[name])
        if name in backend.gpu_only and not gpu:
            raise _refusal(backend.name, name, "it needs a GPU for it, and there is none")


def apply_options(trt: Any, config: Any, options: EngineOptions, backend: str) -> None:
    """Set every option that is given on a builder configuration and read it back.

    Args:
        trt: the backend's module.
        config: an ``IBuilderConfig``.
        options: what is wanted.
        backend: its name, for messages.

    Raises:
        UnsupportedOptionError: this version has no such option, or did not take it.
        UsageError: a compute capability that this version does not build for.
    """
    for name in options.given():
        if name in APPLIED_ELSEWHERE:
            continue
        try:
            taken = SETTERS[name](trt, config, getattr(options, name))
        except AttributeError as error:
            raise _refusal(backend, name, f"version {trt.__version__} has no {error.name}") from error
        if not taken:
            raise _refusal(backend, name, f"version {trt.__version__} did not take it")


def _workspace(trt: Any, config: Any, size: int) -> bool:
    pool = trt.MemoryPoolType.WORKSPACE
    config.set_memory_pool_limit(pool, size)
    return bool(config.get_memory_pool_limit(pool) == size)


def _level(trt: Any, config: Any, level: int) -> bool:
    config.builder_optimization_level = level
    return bool(config.builder_optimization_level == level)


def _capabilities(trt: Any, config: Any, wanted: tuple[str, ...]) -> bool:
    known = trt.ComputeCapability.__members__
    texts = {_text(name): member for name, member in known.items() if name != "NONE"}
    unknown = [name for name in wanted if name not in texts]
    if unknown:
        raise UsageError(
            f"version {trt.__version__} does not build for compute capability {unknown[0]}",
            source="option compute-capability",
            hint=f"it knows {', '.join(texts)}",
        )
    members = [member for text, member in texts.items() if text in wanted]
    config.num_compute_capabilities = len(members)
    return all(config.set_compute_capability(member, index) for index, member in enumerate(members))


def _hardware(trt: Any, config: Any, level: str) -> bool:
    wanted = getattr(trt.HardwareCompatibilityLevel, _LEVELS[level])
    config.hardware_compatibility_level = wanted
    return bool(config.hardware_compatibility_level == wanted)


def _flag(name: str) -> Callable[[Any, Any, bool], bool]:
    def set_flag(trt: Any, config: Any, value: bool) -> bool:
        flag = getattr(trt.BuilderFlag, name)
        config.set_flag(flag)
        return bool(config.get_flag(flag))

    return set_flag


SETTERS: dict[str, Callable[[Any, Any, Any], bool]] = {
    "workspace": _workspace,
    "optimization_level": _level,
    "compute_capabilities": _capabilities,
    "hardware_compatibility": _hardware,
    "version_compatible": _flag("VERSION_COMPATIBLE"),
    "strip_weights": _flag("STRIP_PLAN"),
    "refit": _flag("REFIT"),
}


def _text(name: str) -> str:
    match = _CODE.fullmatch(name)
    return f"{match[1]}.{match[2]}" if match else name.lower()


def _refusal(backend: str, option: str, why: str) -> UnsupportedOptionError:
    shown = option.replace("_", "-")
    return UnsupportedOptionError(f"does not honour option {shown}: {why}", source=backend)
