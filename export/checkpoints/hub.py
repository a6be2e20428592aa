"""Files of a Hugging Face repository, from the local cache or else over the network; nothing of them is run.

``HF_HUB_OFFLINE=1`` keeps it to the cache; ``HF_HOME`` says where that is.
"""

from __future__ import annotations

from pathlib import Path

from convbn.common.exclusive import quiet
from convbn.common.text import root_cause
from convbn.errors import ConvBNError, FileAccessError, NotSupportedError, UsageError

__all__ = ["HUB", "fetch", "fetch_weights"]

HUB = "hf-hub:"
# In this order: the first cannot hold code.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def fetch(repository: str, name: str) -> Path:
    """The path of one file of a repository.

    Args:
        repository: ``org/name``, with ``@revision`` if a certain one is meant.
        name: of the file.

    Raises:
        UsageError: that is no name of a repository.
        FileAccessError: the file is not in the cache and cannot be fetched, or does not exist.
        NotSupportedError: huggingface_hub is not installed.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ModuleNotFoundError as error:
        raise NotSupportedError(
            "huggingface_hub is not installed", source=HUB + repository, hint="pip install huggingface_hub"
        ) from error
    repo, _, revision = repository.partition("@")
    try:
        with quiet():  # it reports every attempt
            try:
                found = huggingface_hub.hf_hub_download(
                    repo, name, revision=revision or None, local_files_only=True
                )
            except LocalEntryNotFoundError:
                found = huggingface_hub.hf_hub_download(repo, name, revision=revision or None)
    except HFValidationError as error:
        raise UsageError(f"{repository!r} is not ORG/NAME", source=HUB + repository) from error
    except Exception as error:  # its own errors, and those of whichever library speaks HTTP for it
        raise _failed(repository, name, error) from error
    return Path(found)


def fetch_weights(repository: str) -> Path:
    """The path of a repository's weights, safetensors before a pickle.

    Raises:
        ConvBNError: see :func:`fetch`.
    """
    for name in _WEIGHTS[:-1]:
        try:
            return fetch(repository, name)
        except FileAccessError as error:
            if not _is_absent(error.__cause__):
                raise
    return fetch(repository, _WEIGHTS[-1])


def _is_absent(error: BaseException | None) -> bool:
    """Whether a file is known not to be there, not merely out of reach."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        return bool(constants.HF_HUB_OFFLINE)
    return isinstance(error, errors.EntryNotFoundError)


def _failed(repository: str, name: str, error: Exception) -> ConvBNError:
    from huggingface_hub import errors

    hint = None
    if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
        what = "there is no such repository or revision, or it is not public"
    elif isinstance(error, errors.EntryNotFoundError) and not isinstance(
        error, errors.LocalEntryNotFoundError
    ):
        what = f"the repository has no {name}"
    else:
        what = f"{name} is not in the cache and cannot be fetched ({root_cause(error)})"
        hint = "fetch it where there is a network, and set HF_HOME to a copy of that cache"
    return FileAccessError(what, source=HUB + repository, hint=hint)
