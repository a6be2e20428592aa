"""The parts of a plan: each file to make of every model, each measurement, checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from fnmatch import fnmatchcase
from io import StringIO
from itertools import product
from typing import Any

from convbn.export.precision.precisions import AS_IS, PRECISIONS
from convbn.pipeline.planning.models import Model
from convbn.pipeline.planning.plan import Plan, PlanError, words
from convbn.pipeline.step import ANYWHERE, Place

__all__ = ["Part", "check", "parts_of", "rules_of"]

_CONVERTS = (
    "--keep-fp32",
    "--tolerance",
    "--preprocess",
    "--calibration-samples",
    "--calibration-method",
    "--percentile",
    "--quantize",
    "--rest",
    "--half-io",
)
"""Options of ``convbn export`` that say how a precision is reached, not how an engine is built."""


@dataclass(frozen=True, slots=True)
class Part:
    """One file to make of each model, or one measurement of it.

    Attributes:
        name: unique in the plan.
        kind: ``onnx``, ``engine``, ``pt2`` or ``bench``.
        models: patterns of the models it is for.
        precision: of the file.
        conversion: words of the command line that say how the precision is reached.
        arguments: its other words.
        place: where its last step may run.
    """

    name: str
    kind: str
    models: tuple[str, ...]
    precision: str
    conversion: tuple[str, ...]
    arguments: tuple[str, ...]
    place: Place

    def wants(self, model: Model) -> bool:
        """Whether it is for a model."""
        return not self.models or any(fnmatchcase(model.name, pattern) for pattern in self.models)


def parts_of(plan: Plan) -> list[Part]:
    """Every file and measurement that a plan asks for.

    Raises:
        PlanError: what it asks for makes no sense together.
    """
    return [*_targets(plan), *_benches(plan)]


def rules_of(plan: Plan) -> tuple[str, ...]:
    """Words of the command line that say how every model is folded."""
    fold = plan.section("fold")
    found = [word for key in ("only", "skip") for rule in words(fold.get(key)) for word in (f"--{key}", rule)]
    found += [f"--{key}" for key in ("freeze", "strict") if fold.get(key)]
    return (*found, "--seed", str(plan.given.get("seed", 0)))


def _targets(plan: Plan) -> Iterator[Part]:
    """One part for each combination of what a target lists."""
    for target in plan.given.get("targets", ()):
        kind = target["kind"]
        lists = {
            "precision": words(target.get("precision")) or (AS_IS,),
            "--backend": words(target.get("backend")),
            "--shapes": words(target.get("profiles")),
            "--compute-capability": words(target.get("compute_capability")),
        }
        if kind != "engine" and any(lists[key] for key in lists if key.startswith("--")):
            cause = "backend, profiles and compute_capability are for engines"
            raise PlanError(f"target {target.get('name', kind)}: {cause}", source=plan.path)
        conversion, further = _divided(words(target.get("options")))
        several = [key for key, values in lists.items() if len(values) > 1]
        choices = [[(key, value) for value in values] for key, values in lists.items() if values]
        for chosen in product(*choices):
            suffix = [_short(key, value, lists[key]) for key, value in chosen if key in several]
            name = "-".join([target.get("name", kind), *suffix])
            arguments = tuple(word for key, value in chosen if key != "precision" for word in (key, value))
            precision, place = dict(chosen)["precision"], _place(target)
            models = words(target.get("models"))
            yield Part(name, kind, models, precision, conversion, (*arguments, *further), place)


def _divided(options: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Words that say how a precision is reached, and the others."""
    divided: tuple[list[str], list[str]] = ([], [])
    to = divided[1]
    for word in options:
        if word.startswith("--"):
            to = divided[0 if word.partition("=")[0] in _CONVERTS else 1]
        to.append(word)
    return tuple(divided[0]), tuple(divided[1])


def _short(key: str, value: str, values: Sequence[str]) -> str:
    """A value as part of a name."""
    if key == "--shapes":
        return f"profile{values.index(value) + 1}"
    return f"sm{value.replace('.', '').replace(',', '-')}" if key == "--compute-capability" else value


def _benches(plan: Plan) -> Iterator[Part]:
    gates = plan.section("gates")
    judged = [word for gate in words(gates.get("fail_if")) for word in ("--fail-if", gate)]
    judged += ["--allow-not-measured"] if gates.get("allow_not_measured") else []
    for bench in plan.given.get("benches", ()):
        arguments: list[str] = []
        for key, option in (
            ("runtimes", "--runtime"),
            ("batches", "--batch"),
            ("precisions", "--precision"),
            ("threads", "--threads"),
        ):
            value = bench.get(key)
            listed = words(value) if isinstance(value, str) else value
            arguments += [option, ",".join(map(str, listed))] if listed else []
        arguments += ["--budget", str(bench["budget"])] if "budget" in bench else []
        place = _place(bench, alone=True)
        words_of_it = (*arguments, *judged, *words(bench.get("options")))
        name = bench.get("name", "bench")
        yield Part(name, "bench", words(bench.get("models")), AS_IS, (), words_of_it, place)


def _place(given: Mapping[str, Any], *, alone: bool = False) -> Place:
    place = Place(alone, given.get("gpus", 0.0), given.get("accelerator"), given.get("resources", {}))
    return ANYWHERE if place == ANYWHERE else place


def check(plan: Plan, parts: Sequence[Part], rules: Sequence[str], models: Sequence[Model]) -> None:
    """Refuse before anything starts what a step would refuse.

    Raises:
        PlanError: a part cannot be made of a model that it is for, or a word of an option is none.
    """
    names = [part.name for part in parts]
    for part in parts:
        if names.count(part.name) > 1 or part.name in ("fold", "prove"):
            hint = "give each target and bench a name of its own"
            raise PlanError(f"two parts are called {part.name}", source=plan.path, hint=hint)
        wanted = [model for model in models if part.wants(model)]
        if not wanted:
            patterns = ", ".join(part.models)
            raise PlanError(f"{part.name} is for models {patterns}, and there are none", source=plan.path)
        onnx = next((model for model in wanted if not model.torch), None)
        if part.kind == "pt2" and onnx is not None:
            cause = f"{part.name}: {onnx.path} is ONNX, which cannot become a PyTorch program"
            raise PlanError(cause, source=plan.path, hint="say with models = [...] which ones it is for")
        row = PRECISIONS.get(part.precision)
        bare = next((model for model in wanted if model.calibration is None), None)
        if row is not None and row.calibration == "required" and bare is not None:
            hint = "give its entry calibration = PATH"
            raise PlanError(f"{part.name}: {bare.name} has no calibration data", source=plan.path, hint=hint)
        _check_words(plan, part, rules)


def _check_words(plan: Plan, part: Part, rules: Sequence[str]) -> None:
    from convbn.cli import parser

    suffix = {"engine": "engine", "pt2": "pt2"}.get(part.kind, "onnx")
    verb = ["bench", "x"] if part.kind == "bench" else ["export", "x", "-o", f"x.{suffix}", *rules]
    precision = [] if part.precision == AS_IS else ["--precision", part.precision]
    errors = StringIO()
    try:
        with redirect_stderr(errors):
            parser(verb[0]).parse_args([*verb, *precision, *part.conversion, *part.arguments])
    except SystemExit as error:
        said = errors.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise PlanError(f"{part.name}: {said}", source=plan.path) from error
