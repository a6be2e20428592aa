"""Modules by name: ``torchvision:resnet18``, ``timm:resnet18``, ``hf-hub:org/name``, ``package.module:callable``.

The weights are random and never downloaded. Naming ``package.module:callable`` runs that code, as an import
does: it is consent for that module, and for nothing that a checkpoint may name. ``hf-hub:org/name`` fetches
the description of an architecture (``config.json``, which names one of timm's) through timm, from its
cache where it has it; ``local-dir:FOLDER`` reads one that lies on the disk.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from convbn.common.text import did_you_mean, named_line
from convbn.errors import BadInputError, ConvBNError, FileAccessError, NotSupportedError, UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["build_module", "parse_arguments", "parse_spec"]

_FORMS = "write torchvision:NAME, timm:NAME, hf-hub:ORG/NAME or package.module:callable"
_LIBRARIES = ("torchvision", "timm", "hf-hub", "local-dir")
_DOWNLOADS = ("pretrained", "weights", "weights_backbone", "checkpoint_path")


def parse_arguments(texts: Iterable[str]) -> dict[str, object]:
    """Parse ``key=value`` options.

    Args:
        texts: each value is a Python literal (``3``, ``True``, ``[1, 2]``) or, failing that, a string.

    Raises:
        UsageError: there is no ``=``, the key is no identifier, or it comes twice.
    """
    result: dict[str, object] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"{text!r} is not KEY=VALUE")
        if key in result:
            raise UsageError(f"argument {key!r} is given twice")
        try:
            result[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            result[key] = value
    return result


def parse_spec(spec: str) -> tuple[str, str]:
    """The library and the name in it that a spec of :func:`build_module` is made of; nothing is imported.

    Raises:
        UsageError: the spec has another form.
    """
    library, colon, name = spec.partition(":")
    if not colon or not library or not name:
        raise UsageError(f"{spec!r} names no architecture", hint=_FORMS)
    dotted = (*library.split("."), *name.split("."))
    if library not in _LIBRARIES and not all(part.isidentifier() for part in dotted):
        raise UsageError(f"{spec!r} is not a dotted Python name", hint=_FORMS)
    return library, name


def build_module(
    spec: str, arguments: Mapping[str, object] | None = None, *, allow_cwd: bool = False
) -> torch.nn.Module:
    """Build a module with random weights.

    Args:
        spec: ``torchvision:NAME``, ``timm:NAME``, ``hf-hub:ORG/NAME``, ``local-dir:FOLDER`` or
            ``package.module:callable``, where the callable may be a class, a function, or a ready module.
        arguments: keyword arguments for it.
        allow_cwd: append the current folder to ``sys.path``, for good, so that a package in it can be
            named. Without it the folder counts only if it is on the path already.

    Returns:
        The module, in whatever mode its builder leaves it.

    Raises:
        UsageError: the spec has another form, or an argument asks for downloaded weights.
        BadInputError: the name is unknown, the code fails, or the result is no module.
        NotSupportedError: the library is missing or its installation is broken.
        FileAccessError: the description of a ``hf-hub:`` name cannot be fetched.
    """
    library, name = parse_spec(spec)
    given = dict(arguments or {})
    if library == "torchvision":
        return _checked(spec, _torchvision(spec, name, given))
    if library == "timm":
        return _checked(spec, _timm(spec, name, given))
    if library in ("hf-hub", "local-dir"):
        return _checked(spec, _described(spec, library, name, given))
    if allow_cwd and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return _checked(spec, _imported(spec, library, name, given))


def _torchvision(spec: str, name: str, given: dict[str, object]) -> object:
    _refuse_downloads(spec, given)
    models = _library(spec, "torchvision.models", "torchvision")
    known = list(models.list_models())
    if name not in known:
        raise _unknown(spec, name, known)
    # A detection or segmentation builder fetches its backbone unless told otherwise.
    for option in ("weights", "weights_backbone"):
        if option in inspect.signature(models.get_model_builder(name)).parameters:
            given[option] = None
    return _call(spec, lambda: models.get_model(name, **given))


def _timm(spec: str, name: str, given: dict[str, object]) -> object:
    _refuse_downloads(spec, given)
    # timm imports torchvision, so a broken torchvision breaks it too.
    timm = _library(spec, "timm", "timm")
    known = timm.list_models()
    # A tag of weights, `resnet18.a1_in1k`, names the same architecture. Any other form could reach a hub.
    if name.partition(".")[0] not in known:
        raise _unknown(spec, name, known)
    return _call(spec, lambda: timm.create_model(name, pretrained=False, **given))


def _described(spec: str, library: str, name: str, given: dict[str, object]) -> object:
    """What the ``config.json`` of a hub's repository or of a folder names; its weights are not looked at."""
    _refuse_downloads(spec, given)
    timm = _library(spec, "timm", "timm")
    if library == "hf-hub":
        from convbn.export.checkpoints.hub import fetch

        # From its folder in the cache: by the name of the repository, timm would ask the network again.
        name = os.fspath(fetch(name, "config.json").parent)
    elif not os.path.isfile(os.path.join(name, "config.json")):
        raise FileAccessError("has no config.json", source=spec, hint="give a folder as timm saves it")
    return _call(spec, lambda: timm.create_model(f"local-dir:{name}", pretrained=False, **given))


def _imported(spec: str, package: str, name: str, given: dict[str, object]) -> object:
    import torch

    try:
        found: Any = importlib.import_module(package)
    except ModuleNotFoundError as error:
        hint = did_you_mean(package, _LIBRARIES) or "install it, or put its folder on PYTHONPATH"
        if error.name is not None and _lies_here(error.name):
            hint = "it lies in the current folder, which --allow-cwd lets it be imported from"
        raise BadInputError(f"there is no module {error.name!r}", source=spec, hint=hint) from error
    except Exception as error:
        raise BadInputError(f"its import fails: {named_line(error)}", source=spec) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise _unknown(spec, part, [entry for entry in dir(found) if not entry.startswith("_")])
        found = getattr(found, part)
    if isinstance(found, torch.nn.Module):
        if given:
            raise UsageError(f"{spec} is a module already and takes no arguments")
        return found
    if not callable(found):
        raise BadInputError(f"is a {type(found).__name__}, neither callable nor a module", source=spec)
    return _call(spec, lambda: found(**given))


def _lies_here(module: str) -> bool:
    return any(os.path.exists(module.partition(".")[0] + ending) for ending in (".py", "/__init__.py"))


def _library(spec: str, module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise NotSupportedError(f"{package} does not import: {error}", source=spec) from error
        hint = f"pip install {package}"
        raise NotSupportedError(f"{package} is not installed", source=spec, hint=hint) from error
    except Exception as error:
        # Its compiled operators were built for another torch: the usual case is a CPU torch beside a
        # CUDA torchvision.
        cause = f"{package} does not import: {named_line(error)}"
        hint = None
        if "torchvision::" in str(error) or "torchvision" in str(getattr(error, "name", "")):
            cause = f"the installed torchvision was built for another torch ({named_line(error)})"
            hint = f"pip install --force-reinstall --no-deps torchvision --index-url {_wheel_index()}"
        raise NotSupportedError(cause, source=spec, hint=hint) from error


def _wheel_index() -> str:
    """Where torch's own build of torchvision lies."""
    import torch

    local = torch.__version__.partition("+")[2] or "cpu"
    return f"https://download.pytorch.org/whl/{local}"


def _refuse_downloads(spec: str, given: Mapping[str, object]) -> None:
    for option in _DOWNLOADS:
        if given.get(option):
            hint = "give the weights as a checkpoint file"
            raise UsageError(f"argument {option!r} would fetch weights", source=spec, hint=hint)


def _call(spec: str, build: Callable[[], object]) -> object:
    try:
        return build()
    except ConvBNError:
        raise
    except Exception as error:  # the builder is foreign code, and its arguments are the user's
        raise BadInputError(f"cannot be built: {named_line(error)}", source=spec) from error


def _checked(spec: str, result: object) -> torch.nn.Module:
    import torch

    if not isinstance(result, torch.nn.Module):
        raise BadInputError(f"gives a {type(result).__name__}, not a torch.nn.Module", source=spec)
    return result


def _unknown(spec: str, name: str, known: list[str]) -> BadInputError:
    close = ", ".join(difflib.get_close_matches(name, known, n=4, cutoff=0.5))
    return BadInputError(f"knows no {name!r}", source=spec, hint=f"did you mean {close}" if close else None)
