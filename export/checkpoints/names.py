"""From the names in a checkpoint to those of a module: prefixes, wrappers inside of names, and what nobody asks for.

One module around the network (``net.conv1.weight``), wrappers of parts (``stem._orig_mod.0.weight``) and counters
of tools (``total_ops``) are seen through where exactly one reading gives the module every tensor it asks for. What was
done is said in sentences; what two readings would fit, or none, is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convbn.errors import BadInputError, UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["AS_THEY_ARE", "Naming", "fitted"]

#: Parts of names that wrappers put in, and whose they are.
_WRAPPERS = {
    "module": "DataParallel",
    "_orig_mod": "torch.compile",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_fsdp_wrapped_module": "FSDP",
    "_forward_module": "Lightning Fabric",
}
_COUNTERS = {"total_ops": "thop", "total_params": "thop", "n_averaged": "AveragedModel"}
#: torch itself fills it in: files from before 2018 lack it.
_FILLED_IN = "num_batches_tracked"


@dataclass(frozen=True, slots=True)
class Naming:
    """What a user says about the names in a checkpoint.

    Attributes:
        strip: a prefix to take away; what has none and is not asked for is left out.
        drop: leave out what the module does not ask for.
    """

    strip: str | None = None
    drop: bool = False


AS_THEY_ARE = Naming()


def fitted(
    tensors: Mapping[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
    notes: list[str],
    naming: Naming = AS_THEY_ARE,
) -> dict[str, torch.Tensor]:
    """The tensors under the names that a module has for them.

    Args:
        tensors: by the names in the file.
        own: the module's own, by its names.
        notes: gets a sentence for each thing that was done.
        naming: what the user says about the names.

    Returns:
        What is to be loaded. Names that do not fit are left as they are, for the error that follows.

    Raises:
        BadInputError: several prefixes fit.
        UsageError: no name has the prefix that is to be taken away.
    """
    tensors = _without_counters(tensors, own, notes)
    bare, places = _without_wrappers(tensors, own, notes)
    prefix = _given(bare, naming.strip) if naming.strip is not None else _prefix(bare, tensors, own, places)
    if prefix:
        notes.append(f"Removed the prefix {prefix!r} from every name.")
    result: dict[str, torch.Tensor] = {}
    outside: list[str] = []
    for name, origin in bare.items():
        inner = name.removeprefix(prefix)
        if prefix and inner == name and (name not in places or prefix + name in bare):
            outside.append(origin)
        else:
            result[places.get(inner, inner)] = tensors[origin]
    if outside:
        notes.append(f"Left out what lies outside of {prefix!r}: {', '.join(outside)}.")
    dropped = [name for name in result if naming.drop and name not in own]
    if dropped:
        notes.append(f"Left out what the module does not ask for: {', '.join(dropped)}.")
    return {name: tensor for name, tensor in result.items() if name not in dropped}


def _without_counters(
    tensors: Mapping[str, torch.Tensor], own: Iterable[str], notes: list[str]
) -> Mapping[str, torch.Tensor]:
    asked = {name.rpartition(".")[2] for name in own}
    counters = {
        name: _COUNTERS[leaf]
        for name in tensors
        if (leaf := name.rpartition(".")[2]) in _COUNTERS and leaf not in asked
    }
    if counters:
        tools = " and ".join(sorted(set(counters.values())))
        notes.append(f"Left out counters of {tools}: {', '.join(counters)}.")
    return {name: tensor for name, tensor in tensors.items() if name not in counters}


def _without_wrappers(
    tensors: Iterable[str], own: Iterable[str], notes: list[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Both sides by names without what wrappers put in: in the file the name there, in the module its own.

    Names stay as they are where they fit so, or where two would become one.
    """
    given, asked = list(tensors), list(own)
    if set(asked) - set(given):
        bare, places = ({_bare(name): name for name in names} for names in (given, asked))
        found = dict.fromkeys(part for name in given for part in name.split(".")[:-1] if part in _WRAPPERS)
        kept = {part for name in asked for part in name.split(".")}
        if len(bare) == len(given) and len(places) == len(asked):
            for part in (part for part in found if part not in kept):
                notes.append(f"Removed '{part}.' of {_WRAPPERS[part]} from the names.")
            return bare, places
    return {name: name for name in given}, {name: name for name in asked}


def _bare(name: str) -> str:
    *path, leaf = name.split(".")
    return ".".join([*(part for part in path if part not in _WRAPPERS), leaf])


def _given(bare: Mapping[str, str], strip: str) -> str:
    prefix = strip if strip.endswith(".") else f"{strip}."
    if not any(name.startswith(prefix) for name in bare):
        tops = dict.fromkeys(name.partition(".")[0] for name in bare)
        raise UsageError(f"no name in it begins with {prefix!r}", hint=f"they begin with {', '.join(tops)}")
    return prefix


def _prefix(
    bare: Mapping[str, str],
    tensors: Mapping[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
    places: Mapping[str, str],
) -> str:
    """The only prefix under which the module finds all that it asks for; failing that, most of it."""
    asked = [name for name in places if name.rpartition(".")[2] != _FILLED_IN]
    if not asked or all(name in bare for name in asked):
        return ""

    def found(prefix: str, *, alike: bool = False) -> int:
        names = (name for name in asked if prefix + name in bare)
        if alike:
            return sum(tensors[bare[prefix + name]].shape == own[places[name]].shape for name in names)
        return sum(1 for _ in names)

    ends = {f".{name}" for name in asked[:1]} | {f".{name}" for name in asked[-1:]}
    tried = {name[: -len(end) + 1] for name in bare for end in ends if name.endswith(end)}
    fits = sorted(prefix for prefix in tried if found(prefix) == len(asked))
    if len(fits) > 1:
        fits = [prefix for prefix in fits if found(prefix, alike=True) == len(asked)] or fits
    if len(fits) > 1:
        raise BadInputError(
            f"the names fit under more than one prefix: {', '.join(fits)}",
            hint=f"say which one, such as --strip-prefix {fits[0]}",
        )
    best = fits[0] if fits else max(sorted(tried), key=found, default="")
    return best if found(best) > max(found(""), len(asked) // 2) else ""
