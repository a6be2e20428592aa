"""From what a checkpoint holds to the state dict in it.

Training scripts wrap a state dict (``{"model": …, "epoch": 3}``). What was done about it is said in sentences; that of
several sets of weights one was taken is a warning. How its names become those of a module:
:mod:`convbn.export.checkpoints.names`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from convbn.errors import BadInputError, Concern, UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["WRAPPERS", "find_state", "some", "taken"]

WRAPPERS = (
    *("state_dict", "model", "model_state_dict", "model_state", "net", "network", "params", "weights"),
    *("module", "G", "teacher", "model_ema", "ema", "state_dict_ema", "params_ema", "G_ema"),
)
"""The first of these that is there is taken: trained weights before their moving average."""

_DEEPEST = 4
_SHOWN = 4
_SAVE_STATE = "save torch.save(model.state_dict(), FILE) and name the architecture"


def find_state(
    loaded: object, notes: list[str], *, key: str | None, source: str | os.PathLike[str]
) -> dict[str, torch.Tensor]:
    """The state dict in what a checkpoint holds.

    Args:
        loaded: a state dict, a mapping around one, or (from a trusted file) a module.
        notes: gets a sentence for each thing that was done.
        key: where the weights lie, ``outer.inner`` for a mapping in another; by default the first of
            :data:`WRAPPERS` that is there, and where there is none the only entry that holds tensors.
        source: the file, for errors.

    Raises:
        UsageError: there is no such key.
        BadInputError: there are no weights.
    """
    import torch

    current: Any = loaded
    if key is not None:
        current = _under(current, key, source)
        notes.append(f"Took the weights under {key!r}.")
    for _ in range(_DEEPEST):
        if isinstance(current, torch.nn.Module):
            notes.append(f"Took the weights of the pickled {type(current).__name__}.")
            current = current.state_dict()
        home = _home(current, guess=key is None)
        if home is None:
            break
        notes.append(taken("weights", home, current))
        current = current[home]
    if not isinstance(current, Mapping):
        raise BadInputError(
            f"holds a {type(current).__name__}, not a state dict", source=source, hint=_SAVE_STATE
        )
    tensors = {str(name): value for name, value in current.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        keys = ", ".join(map(str, current)) or "nothing"
        raise BadInputError(
            f"holds no weights, only {keys}", source=source, hint=_where_they_may_lie(current)
        )
    dropped = [str(name) for name in current if str(name) not in tensors]
    if dropped:
        notes.append(f"Left out what is no tensor: {some(dropped)}.")
    return tensors


def taken(what: str, home: str, mapping: Mapping[Any, Any]) -> str:
    """What was taken from a checkpoint; a warning, if there was more of the kind to choose from."""
    text = f"Took the {what} under {home!r}"
    others = [str(name) for name, value in mapping.items() if name != home and _holds_weights(value)]
    if not others:
        return f"{text}."
    return Concern(f"{text}, not {', '.join(others)} (--checkpoint-key {others[0]} would take that).")


def some(names: Iterable[str]) -> str:
    """The first few of some names, for a sentence."""
    listed = list(names)
    rest = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _home(value: object, *, guess: bool) -> str | None:
    """Where in a mapping the weights lie; None if they are its own entries, or nothing tells."""
    import torch

    known = _known(value)
    if known or not guess or not isinstance(value, Mapping):
        return known[0] if known else None
    if any(isinstance(entry, torch.Tensor) for entry in value.values()):
        return None
    likely = [name for name, entry in value.items() if _holds_weights(entry)]
    return likely[0] if len(likely) == 1 else None


def _known(value: object) -> list[str]:
    import torch

    if not isinstance(value, Mapping):
        return []
    return [name for name in WRAPPERS if isinstance(value.get(name), Mapping | torch.nn.Module)]


def _holds_weights(value: object, depth: int = _DEEPEST) -> bool:
    """Whether something is a module, a state dict, or a known wrapper around one."""
    import torch

    if isinstance(value, torch.nn.Module):
        return True
    if not isinstance(value, Mapping) or not depth:
        return False
    if any(isinstance(name, str) and isinstance(entry, torch.Tensor) for name, entry in value.items()):
        return True
    return any(_holds_weights(value[name], depth - 1) for name in _known(value))


def _where_they_may_lie(value: Mapping[Any, Any]) -> str:
    nested = [str(name) for name, entry in value.items() if isinstance(entry, Mapping)]
    likely = [name for name in nested if _holds_weights(value.get(name))] or nested
    if not likely:
        return f"{_SAVE_STATE}; weights are looked for under {', '.join(WRAPPERS)}"
    return f"name the key with --checkpoint-key, such as {', '.join(likely)}"


def _under(value: object, key: str, source: str | os.PathLike[str]) -> Any:
    if isinstance(value, Mapping) and key in value:
        return value[key]
    outer, dot, inner = key.partition(".")
    if dot and isinstance(value, Mapping) and isinstance(value.get(outer), Mapping):
        return _under(value[outer], inner, source)
    keys = (
        ", ".join(map(str, value))
        if isinstance(value, Mapping)
        else f"no keys, it is a {type(value).__name__}"
    )
    raise UsageError(f"has no key {key!r}", source=source, hint=f"it has {keys}")
