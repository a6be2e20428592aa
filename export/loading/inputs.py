"""Inputs that a user brings for a model: arrays in files, by the names of the inputs or in their order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convbn.errors import BadInputError, FileAccessError
from convbn.export.loading.source_model import SourceModel

if TYPE_CHECKING:
    from convbn.export.precision.int8.images import Preprocess

__all__ = ["with_inputs"]

#: Samples that are used, at most: what is compared is run on each of them, more than once.
_SAMPLES = 4


def with_inputs(source: SourceModel, path: str, preprocess: Preprocess | None = None) -> SourceModel:
    """The model with the inputs that lie at a path.

    Args:
        source: an ONNX model, whose inputs are found by their names
            (:func:`convbn.export.precision.int8.calibration.read_calibration`), or a module or program, which takes
            the arrays of a file in their order.
        path: an ``.npz`` or ``.npy`` file, or a folder of them or, for ONNX models, of images.
        preprocess: what is done to images.

    Raises:
        BadInputError: there are none, or they do not fit the model.
        FileAccessError: they cannot be read.
    """
    if source.onnx is not None:
        from convbn.export.precision.int8.calibration import read_calibration

        data = read_calibration(path, source.onnx, preprocess=preprocess).limited(_SAMPLES)
        return replace(source, inputs=list(data.samples()))
    samples = [_arrays(file) for file in _files(Path(path))[:_SAMPLES]]
    if not samples:
        raise BadInputError("holds no .npz or .npy file", source=path)
    import torch

    examples = tuple(torch.from_numpy(array) for array in samples[0].values())
    return replace(source, inputs=samples, example_inputs=examples)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix.lower() in (".npz", ".npy"))


def _arrays(path: Path) -> dict[str, Any]:
    import numpy as np

    try:
        loaded = np.load(path, allow_pickle=False)
    except OSError as error:
        raise FileAccessError(error.strerror or "cannot be read", source=path) from error
    except ValueError as error:
        raise BadInputError("holds no arrays", source=path) from error
    if isinstance(loaded, np.ndarray):
        return {"input_0": loaded}
    with loaded:
        return {name: loaded[name] for name in loaded.files}
