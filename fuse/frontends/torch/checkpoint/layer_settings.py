"""What layers compute with beside their tensors: two architectures of equal names and shapes may differ in it.

Only what torch's own layers declare in ``__constants__`` is compared, and only where both sides have it:
a renamed class or a new option of a library's next version is no difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convbn.errors import BadInputError

if TYPE_CHECKING:
    import torch

__all__ = ["check_settings", "settings_of"]

# Told by the shapes of tensors, or without effect on a result in eval mode.
_LEFT_OUT = frozenset(
    {
        *("in_channels", "out_channels", "in_features", "out_features", "num_features", "num_embeddings"),
        *("embedding_dim", "inplace", "momentum", "p", "training", "affine", "track_running_stats"),
    }
)
_KIND = "layer"


def settings_of(module: torch.nn.Module) -> dict[str, dict[str, str]]:
    """The settings of every layer by path; those without any are left out."""
    found = {path: _settings(part) for path, part in module.named_modules(remove_duplicate=False)}
    return {path: settings for path, settings in found.items() if settings}


def check_settings(module: torch.nn.Module, expected: Mapping[str, Mapping[str, str]]) -> None:
    """Hold a module against recorded settings.

    Raises:
        BadInputError: a layer is missing, or computes with something else.
    """
    own = {path: _settings(part) for path, part in module.named_modules(remove_duplicate=False)}
    hint = "name the architecture that was folded, with its arguments"
    for path, settings in expected.items():
        if path not in own:
            raise BadInputError(f"the architecture has no module '{path}'", hint=hint)
        for name, value in settings.items():
            found = own[path].get(name, value)
            if found != value:
                raise BadInputError(
                    f"the architecture is another one: '{path}' has {name} {found}, the folded one {value}",
                    hint=hint,
                )


def _settings(part: torch.nn.Module) -> dict[str, str]:
    from torch.nn.modules.batchnorm import _BatchNorm

    kind = type(part)
    settings: dict[str, str] = {}
    if kind.__module__.startswith("torch.nn.modules.") and not isinstance(part, _BatchNorm):
        # A dropout is an identity in eval mode, and libraries leave it out where its rate is 0.
        settings[_KIND] = "Identity" if "Dropout" in kind.__name__ else kind.__name__
    for name in sorted({*getattr(kind, "__constants__", ())} - _LEFT_OUT):
        text = _text(vars(part).get(name))
        if text is not None:
            settings[name] = text
    return settings


def _text(value: Any) -> str | None:
    if isinstance(value, list):
        value = tuple(value)
    plain = (bool, int, float, str)
    if type(value) in plain or (type(value) is tuple and all(type(entry) in plain for entry in value)):
        return repr(value)
    return None
