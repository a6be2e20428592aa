"""From what a checkpoint holds to the state dict in it, and from its names to those of a module.

Training scripts wrap a state dict (``{"model": …, "epoch": 3}``) and wrappers of modules prefix its names
(``module.conv1.weight``). What was done about it is said in sentences.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from convbn.errors import BadInputError, UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["WRAPPERS", "find_state", "fitted", "some"]

WRAPPERS = ("state_dict", "model", "model_state_dict", "model_ema", "ema", "state_dict_ema")
"""The first of these that is there is taken: trained weights before their moving average."""

_DEEPEST = 4
_SHOWN = 4
_PREFIXES = {"module.": "DataParallel", "_orig_mod.": "torch.compile", "model.": "a module around the model"}
_SAVE_STATE = "save torch.save(model.state_dict(), FILE) and name the architecture"


def find_state(
    loaded: object, notes: list[str], *, key: str | None, source: str | os.PathLike[str]
) -> dict[str, torch.Tensor]:
    """The state dict in what a checkpoint holds.

    Args:
        loaded: a state dict, a mapping around one, or (from a trusted file) a module.
        notes: gets a sentence for each thing that was done.
        key: where the weights lie; by default the first of :data:`WRAPPERS` that is there.
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
        wrappers = _wrappers(current)
        if not wrappers:
            break
        others = f", not {some(wrappers[1:])}" if wrappers[1:] else ""
        notes.append(f"Took the weights under {wrappers[0]!r}{others}.")
        current = current[wrappers[0]]
    if not isinstance(current, Mapping):
        raise BadInputError(
            f"holds a {type(current).__name__}, not a state dict", source=source, hint=_SAVE_STATE
        )
    tensors = {str(name): value for name, value in current.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        keys = some(map(str, current)) or "nothing"
        nested = [str(name) for name, value in current.items() if isinstance(value, Mapping)]
        hint = f"name the key with --checkpoint-key, such as {nested[0]}" if nested else _SAVE_STATE
        raise BadInputError(f"holds no weights, only {keys}", source=source, hint=hint)
    dropped = [str(name) for name in current if str(name) not in tensors]
    if dropped:
        notes.append(f"Left out what is no tensor: {some(dropped)}.")
    return tensors


def fitted(
    tensors: Mapping[str, torch.Tensor], own: Collection[str], notes: list[str]
) -> dict[str, torch.Tensor]:
    """The tensors under the names that a module has for them.

    A prefix goes if every name in the file has it and no name in the module does.

    Args:
        tensors: by the names in the file.
        own: the module's names.
        notes: gets a sentence for each prefix.
    """
    result = dict(tensors)
    averaged = result.keys() - {name for name in result if name.startswith("module.")}
    if averaged == {"n_averaged"} and "n_averaged" not in own:
        del result["n_averaged"]
        notes.append("Left out the counter 'n_averaged' of AveragedModel.")
    while result:
        for prefix, origin in _PREFIXES.items():
            all_have_it = all(name.startswith(prefix) and name != prefix for name in result)
            if all_have_it and not any(name.startswith(prefix) for name in own):
                notes.append(f"Removed the prefix {prefix!r} of {origin} from every name.")
                result = {name.removeprefix(prefix): tensor for name, tensor in result.items()}
                break
        else:
            break
    return result


def some(names: Iterable[str]) -> str:
    """The first few of some names, for a sentence."""
    listed = list(names)
    rest = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _wrappers(value: object) -> list[str]:
    import torch

    if not isinstance(value, Mapping):
        return []
    return [name for name in WRAPPERS if isinstance(value.get(name), Mapping | torch.nn.Module)]


def _under(value: object, key: str, source: str | os.PathLike[str]) -> Any:
    if isinstance(value, Mapping) and key in value:
        return value[key]
    keys = some(map(str, value)) if isinstance(value, Mapping) else f"no keys, it is a {type(value).__name__}"
    raise UsageError(f"has no key {key!r}", source=source, hint=f"it has {keys}")
