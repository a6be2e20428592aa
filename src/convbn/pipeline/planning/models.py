"""The models of a plan: files found, named after their place, and hashed with all that is read beside them."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from convbn.errors import FileAccessError
from convbn.export.checkpoints.hub import HUB, fetch_weights
from convbn.export.loading.remote import fetched, is_url, shown
from convbn.pipeline.planning.files import CHECKPOINTS, ONNX, PROGRAMS, files_of
from convbn.pipeline.planning.hashes import Hashes
from convbn.pipeline.planning.plan import Plan, PlanError, words

__all__ = ["Model", "digest", "found", "models_of", "versions"]


@dataclass(frozen=True, slots=True)
class Model:
    """A model of a plan.

    Attributes:
        name: its path below what is fixed of its entry, without the suffix; what is made of it lies there.
        path: of its file, its URL, or its name on a hub.
        arguments: of the command line, that say how to read it.
        torch: whether it is a module or program, not an ONNX file.
        bytes: what its files take.
        digest: the hash of its bytes and of how it is read.
        reads: its files, each with its hash; of what lies at URLs, one hash of each.
        calibration: path of its calibration data, and the hash of that.
    """

    name: str
    path: str
    arguments: tuple[str, ...]
    torch: bool
    bytes: int
    digest: str
    reads: tuple[tuple[str, str], ...]
    calibration: tuple[str, str] | None = None


def digest(*parts: object) -> str:
    """The hash of some texts in their order, 64 hexadecimal digits."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Versions of packages, as far as they are installed."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def found(pattern: str, *, torch: bool = False, made: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Files that a path, folder or glob stands for, with names that mirror the tree below what is fixed of it.

    Args:
        pattern: a file; a folder, whose models are taken at any depth; or a glob with ``*`` and ``**``.
        torch: of a folder, take checkpoints and not ONNX files.
        made: folders that results lie in. Those that are among the models are not looked into.

    Returns:
        Name and path of each, sorted; nothing where there is none.
    """
    files = files_of(pattern, (*CHECKPOINTS, *PROGRAMS) if torch else (*ONNX, *PROGRAMS))
    return [
        (Path(name).with_suffix("").as_posix(), path)
        for name, path in files.items()
        if not any(_below(folder, path.removesuffix(name)) and _below(path, folder) for folder in made)
    ]


def _below(path: str, folder: str) -> bool:
    if is_url(path) or is_url(folder):
        return shown(path).startswith(f"{shown(folder).rstrip('/')}/")
    path, folder = os.path.realpath(path), os.path.realpath(folder)
    return path != folder and Path(path).is_relative_to(folder)


def models_of(plan: Plan, hashes: Hashes) -> list[Model]:
    """Find and hash every model of a plan.

    Raises:
        PlanError: a path stands for nothing, or two models have one name.
        FileAccessError: a file cannot be read.
    """
    listed = [(entry, *one) for entry in plan.given["models"] for one in _listed(plan, entry)]
    hashes.prepare(path for _, _, path in listed if not path.startswith(HUB))
    shared: dict[int, _Reading] = {}
    models: dict[str, Model] = {}
    for entry, name, path in listed:
        reading = shared.get(id(entry)) or shared.setdefault(id(entry), _reading(plan, entry, hashes))
        model = _model(name, path, reading, hashes)
        if name in models:
            cause = f"two models are called {name}: {shown(models[name].path)} and {shown(path)}"
            raise PlanError(cause, source=plan.path, hint="give one of them a name, or a folder of its own")
        models[name] = model
    return list(models.values())


def _listed(plan: Plan, entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and path of each model of one entry."""
    several: list[tuple[str, str]] = []
    for text in words(entry["path"]):
        if text.startswith(HUB):
            several.append((text.removeprefix(HUB).partition("@")[0], text))
            continue
        here = found(plan.place(text), torch="arch" in entry, made=(plan.output, plan.store))
        if not here:
            raise PlanError(
                f"no file is {shown(text)}", source=plan.path, hint="paths are relative to the plan"
            )
        several += here
    if "name" in entry and len(several) > 1:
        cause = f"{entry['name']} is the name of {len(several)} models"
        raise PlanError(cause, source=plan.path, hint="name entries of one model each")
    for name, path in several:
        yield entry.get("name", name), path


@dataclass(frozen=True, slots=True)
class _Reading:
    """How the models of one entry are read: the hash of it covers the files that it names."""

    torch: bool
    arguments: tuple[str, ...]
    digest: str
    calibration: tuple[str, str] | None
    reads: tuple[tuple[str, str], ...]


def _reading(plan: Plan, entry: Mapping[str, Any], hashes: Hashes) -> _Reading:
    arguments: list[str] = []
    for key, option in (("arch", "--arch"), ("checkpoint_key", "--checkpoint-key")):
        arguments += [option, entry[key]] if key in entry else []
    for key, option in (("arch_args", "--arch-arg"), ("input_shapes", "--input-shape")):
        for word in words(entry.get(key)):
            arguments += [option, word]
    arguments += ["--trust-checkpoint"] if entry.get("trust_checkpoint") else []
    facts: list[object] = [*arguments, _code(entry.get("arch"), hashes)]
    named = {key: plan.place(entry[key]) for key in ("inputs", "calibration") if key in entry}
    reads = [(place, fetched(place, hashed=hashes.of)) for place in named.values() if is_url(place)]
    local = {place: copy for place, (copy, _) in reads}
    trees = {key: _tree(local.get(place, Path(place)), hashes) for key, place in named.items()}
    if "inputs" in named:
        arguments += ["--inputs", named["inputs"]]
        facts.append(trees["inputs"])
    calibration = (named["calibration"], trees["calibration"]) if "calibration" in named else None
    told = tuple((place, sha256) for place, (_, sha256) in reads)
    return _Reading("arch" in entry, tuple(arguments), digest(*facts), calibration, told)


def _code(arch: str | None, hashes: Hashes) -> str:
    """What is known of the code that builds an architecture: the version of its library, or the file's hash."""
    library, _, _ = (arch or "").partition(":")
    if library in ("torchvision", "timm"):
        return str(versions(library))
    with suppress(ImportError, ValueError, FileAccessError):
        spec = importlib.util.find_spec(library) if library else None
        if spec is not None and spec.origin is not None:
            return hashes.of(spec.origin)
    return ""


def _tree(path: Path, hashes: Hashes) -> str:
    """The hash of a file, or of all files of a folder."""
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    hashes.prepare(files)
    return digest(*(fact for one in files for fact in (os.path.relpath(one, path), hashes.of(one))))


def _model(name: str, path: str, reading: _Reading, hashes: Hashes) -> Model:
    reads, file = list(reading.reads), path
    if path.startswith(HUB):
        file = str(fetch_weights(path.removeprefix(HUB)))
    elif is_url(path):
        copy, sha256 = fetched(path, hashed=hashes.of)
        reads.append((path, sha256))
        file = str(copy)
    torch = reading.torch or path.startswith(HUB) or not file.lower().endswith(ONNX)
    files = [file, *([] if torch else hashes.external(file))]
    # A file of weights that is missing is said by the fold.
    known = [(one, hashes.of(one)) for one in files if one is file or os.path.exists(one)]
    if not is_url(path):
        reads += known
    size = sum(os.path.getsize(one) for one, _ in known)
    hub = path if path.startswith(HUB) else ""
    whole = digest(hub, reading.digest, *(sha256 for _, sha256 in known))
    return Model(name, path, reading.arguments, torch, size, whole, tuple(reads), reading.calibration)
