"""A plan as steps: fold → prove → convert → build → measure for every model, each with the key of its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from convbn.export.precision.precisions import AS_IS, PRECISIONS
from convbn.pipeline.planning.models import Model, digest, versions
from convbn.pipeline.planning.parts import Part, check, parts_of, rules_of
from convbn.pipeline.planning.plan import Plan
from convbn.pipeline.step import BASE_MEMORY, Step, peak_memory

__all__ = ["Expansion", "expand"]

_WORKS = "convbn.pipeline.stages:"
_CORE = ("convbn", "numpy", "onnx")
_TORCH = (*_CORE, "torch", "onnxscript")
_RUN = (*_TORCH, "onnxruntime")
_BUILD = (*_CORE, "tensorrt", "tensorrt-rtx-cu13")
_MEASURE = (*_RUN, "openvino", "tensorrt", "tensorrt-rtx-cu13")
_TORCH_MEMORY = 900 << 20
_BUILD_MEMORY = 1400 << 20


@dataclass(frozen=True, slots=True)
class Expansion:
    """The steps of a plan, and what decides over their keys beside the models.

    Attributes:
        steps: those that others need come first.
        parts: of each part of the plan, the hash of what it asks for.
        versions: of packages that a result depends on.
    """

    steps: list[Step]
    parts: Mapping[str, str]
    versions: Mapping[str, str]


def expand(
    plan: Plan,
    models: Sequence[Model],
    *,
    machine: str = "",
    replaceable: Callable[[str], bool] | None = lambda _: False,
) -> Expansion:
    """The steps of a plan.

    Args:
        plan: by the schema.
        models: found and hashed.
        machine: what measures, as far as figures depend on it.
        replaceable: whether a file that lies where one is to be delivered may be replaced; None: any may.

    Raises:
        PlanError: the plan asks for what cannot be, or a word of an option is none.
    """
    rules, parts = rules_of(plan), parts_of(plan)
    check(plan, parts, rules, models)
    known = {kind: str(versions(*names)) for kind, names in _VERSIONS.items()}
    builder = _Builder(plan, rules, parts, known, machine, replaceable)
    steps = [step for model in models for step in builder.steps_of(model)]
    told = {part.name: digest(part.precision, *part.conversion, *part.arguments) for part in parts}
    return Expansion(steps, {"fold": digest(*rules)} | told, versions(*_MEASURE))


_VERSIONS = {
    "fold": _CORE,
    "fold-torch": _TORCH,
    "prove": (*_CORE, "onnxruntime"),
    "prove-torch": _RUN,
    "convert": (*_CORE, "onnxruntime"),
    "program": _RUN,
    "build": _BUILD,
    "measure": _MEASURE,
}


class _Builder:
    """Makes the steps of one model after the other."""

    def __init__(
        self,
        plan: Plan,
        rules: tuple[str, ...],
        parts: Sequence[Part],
        known: Mapping[str, str],
        machine: str,
        replaceable: Callable[[str], bool] | None,
    ) -> None:
        self._plan = plan
        self._rules = rules
        self._parts = parts
        self._known = known
        self._machine = machine
        self._replaceable = replaceable

    def steps_of(self, model: Model) -> Iterator[Step]:
        wanted = [part for part in self._parts if part.wants(model)]
        stem = PurePath(model.name).name
        folder = PurePath(model.name).parent.as_posix()
        target = self._plan.output if folder == "." else f"{self._plan.output}/{folder}"
        arguments = (*model.arguments, *self._rules)
        form = "-torch" if model.torch else ""
        base = _TORCH_MEMORY if model.torch else BASE_MEMORY

        def step(kind: str, part: str, work: str, key: str, needs: tuple[Step, ...], **facts: Any) -> Step:
            name = f"{model.name}/{kind}" if part == "fold" else f"{model.name}/{part}/{kind}"
            files = facts.pop("files", ())
            if facts.get("delivers"):
                ours = self._replaceable
                replaces = None if ours is None else tuple(one for one in files if ours(f"{target}/{one}"))
                facts |= {"target": target, "replaces": replaces}
            return Step(
                name,
                kind,
                model.name,
                _WORKS + work,
                needs=needs,
                key=key,
                reads=model.reads,
                part=part,
                **facts,
            )

        def peak(times: float, base: int = base) -> int:
            return peak_memory(model.bytes, times=times, base=base)

        reading = {"source": model.path, "arguments": arguments, "stem": stem}
        fold_key = digest("fold", model.digest, stem, self._known[f"fold{form}"], *self._rules)
        fold = step("fold", "fold", "fold", fold_key, (), options=reading, memory=peak(4))
        prove_key = digest("prove", fold_key, self._known[f"prove{form}"])
        as_it_is = any(part.kind == "onnx" and part.precision == AS_IS for part in wanted)
        prove = step(
            "prove",
            "fold",
            "prove",
            prove_key,
            (fold,),
            options=reading,
            memory=peak(8),
            delivers=("fold",) if as_it_is else (),
            files=(f"{stem}.onnx",),
        )
        if any(part.kind != "pt2" for part in wanted) or not wanted:
            yield fold
            yield prove
        converted: dict[tuple[str, ...], Step] = {}
        for part in wanted:
            if part.kind == "bench":
                name = f"{stem}.{part.name}"
                key = digest(
                    "measure", prove_key, name, self._known["measure"], self._machine, *part.arguments
                )
                options = {
                    "source": model.path,
                    "arguments": (*model.arguments, *part.arguments),
                    "name": name,
                }
                facts = {"options": options, "memory": peak(10, _BUILD_MEMORY), "place": part.place}
                delivers = ("measure",)
                yield step(
                    "measure",
                    part.name,
                    "measure",
                    key,
                    (prove,),
                    delivers=delivers,
                    files=(f"{name}.json", f"{name}.html"),
                    **facts,
                )
            elif part.kind == "pt2":
                name = f"{stem}.{part.name}.pt2" if part.name != "pt2" else f"{stem}.pt2"
                key = digest(
                    "program", model.digest, name, self._known["program"], *self._rules, *part.arguments
                )
                options = {"source": model.path, "arguments": (*arguments, *part.arguments), "name": name}
                facts = {"options": options, "memory": peak(8), "place": part.place, "files": (name,)}
                yield step("convert", part.name, "program", key, (), delivers=("convert",), **facts)
            elif part.precision != AS_IS:
                yield from self._converted(model, part, converted, step, (fold, prove), peak)
            if part.kind == "engine":
                yield self._engine(model, part, converted, step, (fold, prove), peak)

    def _converted(
        self,
        model: Model,
        part: Part,
        converted: dict[tuple[str, ...], Step],
        step: Callable[..., Step],
        proven: tuple[Step, Step],
        peak: Callable[..., int],
    ) -> Iterator[Step]:
        """The model in another precision, once for all engines that are made of it alike."""
        which = self._conversion(model, part)
        if which in converted:
            return
        stem = PurePath(model.name).name
        fold, prove = proven
        name = f"{stem}.{part.name if part.kind == 'onnx' and part.name != 'onnx' else part.precision}.onnx"
        data = model.calibration[1] if model.calibration is not None else ""
        key = digest("convert", prove.key, name, data, self._known["convert"], *which)
        options = {"arguments": which, "stem": stem, "name": name}
        delivers = ("convert",) if part.kind == "onnx" else ()
        facts = {"options": options, "memory": peak(8), "delivers": delivers, "files": (name,)}
        converted[which] = step("convert", part.name, "convert", key, (fold, prove), **facts)
        yield converted[which]

    def _conversion(self, model: Model, part: Part) -> tuple[str, ...]:
        """Arguments that convert, which for an engine are not those that build."""
        found = ["--precision", part.precision, "--seed", str(self._plan.given.get("seed", 0))]
        if model.calibration is not None and PRECISIONS[part.precision].calibration != "none":
            found += ["--calibration", model.calibration[0]]
        return (*found, *part.conversion, *(part.arguments if part.kind == "onnx" else ()))

    def _engine(
        self,
        model: Model,
        part: Part,
        converted: Mapping[tuple[str, ...], Step],
        step: Callable[..., Step],
        proven: tuple[Step, Step],
        peak: Callable[..., int],
    ) -> Step:
        stem = PurePath(model.name).name
        needs: tuple[Step, ...] = proven
        source = None
        precision: tuple[str, ...] = ()
        if part.precision != AS_IS:
            conversion = converted[self._conversion(model, part)]
            needs, source = (*proven, conversion), conversion.options["name"]
            precision = ("--precision", part.precision)
        name = f"{stem}.engine" if part.name == "engine" else f"{stem}.{part.name}.engine"
        arguments = (*precision, *part.arguments)
        key = digest("build", needs[-1].key, name, self._known["build"], *arguments)
        options = {
            "arguments": arguments,
            "stem": stem,
            "converted": source,
            "name": name,
            "unfused": None if model.torch else model.path,
        }
        files = (name, f"{name}.json")
        facts = {"options": options, "memory": peak(10, _BUILD_MEMORY), "place": part.place, "files": files}
        return step("build", part.name, "build", key, needs, delivers=("build",), **facts)
