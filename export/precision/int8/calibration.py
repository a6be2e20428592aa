"""Inputs that stand for those a network will meet: from arrays on disk, from images, from Python."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from convbn.errors import UsageError
from convbn.export.files.atomic import file_access
from convbn.export.precision.errors import CalibrationError
from convbn.export.precision.int8.images import IMAGE_SUFFIXES, Preprocess, load_image
from convbn.export.precision.int8.samples import (
    OPEN_BATCH,
    Array,
    Calibration,
    Feeds,
    InputSpec,
    cut,
    inputs_of,
    only_input,
)

if TYPE_CHECKING:
    import onnx

__all__ = ["Calibration", "calibration_files", "calibration_from", "read_calibration"]

_ARRAY_SUFFIXES = (".npz", ".npy")
_NOTHING = "holds no calibration data"
_FORMS = f"give samples, {', '.join(_ARRAY_SUFFIXES)} files or images ({', '.join(IMAGE_SUFFIXES)})"
_DAMAGED = (ValueError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError)


def calibration_from(
    data: Calibration | Iterable[Feeds | Array] | str | Path,
    model: onnx.ModelProto,
    *,
    preprocess: Preprocess | None = None,
    limit: int | None = None,
) -> Calibration:
    """Calibration data in whatever form a user has it.

    Args:
        data: a path, see :func:`read_calibration`; or an iterable of samples: mappings from input names to
            arrays, or arrays for a model's only input. An iterable is read once and kept.
        model: whose inputs they are for.
        preprocess: for images.
        limit: use at most so many samples.

    Raises:
        CalibrationError: there is none, or it does not fit the model.
        FileAccessError: a file cannot be read.
        UsageError: images come without a preprocessing, or the limit is below 1.
    """
    if isinstance(data, Calibration):
        return data.limited(limit)
    if isinstance(data, str | Path):
        return read_calibration(data, model, preprocess=preprocess).limited(limit)
    specs = inputs_of(model)
    makers: list[Callable[[], Feeds]] = []
    for number, sample in enumerate(data, start=1):
        source = f"calibration sample {number}"
        named = sample if isinstance(sample, Mapping) else only_input(specs, np.asarray(sample), source)
        makers += cut({name: np.asarray(array) for name, array in named.items()}, specs, source)
    return _filled(Calibration("Python", makers)).limited(limit)


def read_calibration(
    path: str | Path, model: onnx.ModelProto, *, preprocess: Preprocess | None = None
) -> Calibration:
    """Read calibration data.

    An ``.npz`` file holds an array for each input by name, an ``.npy`` file one for the only input. Arrays are
    cut along their first axis into the model's batches; the last one is filled up from the start. An array
    without a batch axis is one sample. A folder holds such files or images, in the order of their names.

    Args:
        path: of a file or folder.
        model: whose inputs they are for.
        preprocess: what is done to images.

    Raises:
        CalibrationError: there is none, or it does not fit the model.
        FileAccessError: a file cannot be read.
        UsageError: images come without a preprocessing.
    """
    specs = inputs_of(model)
    arrays, images = calibration_files(path)
    if images:
        return _filled(Calibration(str(path), _image_makers(images, specs, preprocess, path)))
    makers: list[Callable[[], Feeds]] = []
    for file in arrays:
        makers += cut(_arrays(file, specs), specs, str(file))
    return _filled(Calibration(str(path), makers))


def calibration_files(path: str | Path) -> tuple[list[Path], list[Path]]:
    """The files of arrays and the images at a path, one list of them empty.

    Raises:
        CalibrationError: there are none, or files of both kinds.
        FileAccessError: the path cannot be read.
    """
    files = _files(Path(path))
    arrays = [file for file in files if file.suffix.lower() in _ARRAY_SUFFIXES]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if arrays and images:
        raise CalibrationError("holds arrays and images, use one kind", source=path)
    if not arrays and not images:
        raise CalibrationError(_NOTHING, source=path, hint=_FORMS)
    return arrays, images


def _files(root: Path) -> list[Path]:
    with file_access(root):
        if root.is_dir():
            return sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith("."))
        root.stat()
    return [root]


def _filled(calibration: Calibration) -> Calibration:
    if not calibration.makers:
        raise CalibrationError(_NOTHING, source=calibration.origin, hint=_FORMS)
    return calibration


def _arrays(file: Path, specs: tuple[InputSpec, ...]) -> dict[str, Array]:
    try:
        with file_access(file):
            # Never pickles: those run code.
            one = file.suffix.lower() == ".npy"
            loaded = np.load(file, mmap_mode="r" if one else None, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return only_input(specs, loaded, str(file))
            with loaded:
                return {name: loaded[name] for name in loaded.files}
    except _DAMAGED as error:
        hint = "write it with numpy.save or numpy.savez, without objects"
        raise CalibrationError("is not a NumPy file of plain arrays", source=file, hint=hint) from error


def _image_makers(
    files: list[Path], specs: tuple[InputSpec, ...], preprocess: Preprocess | None, path: str | Path
) -> list[Callable[[], Feeds]]:
    if len(specs) != 1 or specs[0].dtype != np.float32 or specs[0].shape is None or len(specs[0].shape) != 4:
        shown = ", ".join(map(str, specs))
        raise CalibrationError(
            f"images need a model with one float32 input of rank 4, not {shown}",
            source=path,
            hint="give .npz files, which hold an array for every input by its name",
        )
    if preprocess is None:
        hint = "give --preprocess, for example imagenet or size=32,mean=0.5,std=0.5"
        raise UsageError("images need a preprocessing, which no default can guess", source=path, hint=hint)
    spec, step = specs[0], preprocess.settled(specs[0].shape)
    size = spec.shape[0] if spec.shape and spec.shape[0] else min(OPEN_BATCH, len(files))

    def maker(start: int) -> Callable[[], Feeds]:
        rows = [files[index % len(files)] for index in range(start, start + size)]
        return lambda: {spec.name: np.stack([load_image(file, step) for file in rows])}

    return [maker(start) for start in range(0, len(files), size)]
