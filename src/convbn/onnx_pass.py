"""``convbn fuse`` from ONNX file to ONNX file, weights streamed one at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convbn.common.progress import Progress
    from convbn.export.onnx_io.read import OpenModel
    from convbn.export.onnx_io.write import ExternalData, Staged
    from convbn.fuse.fold import Folding
    from convbn.fuse.options import FuseOptions
    from convbn.fuse.report import Report

__all__ = ["Written", "fold_opened", "fuse_file", "staged_fold"]


@dataclass(frozen=True, slots=True)
class Written:
    """Where the folded model goes, and how.

    Attributes:
        path: the target.
        overwrite: whether an existing file may be replaced.
        external_data: see :func:`convbn.export.onnx_io.write.staged_model`.
    """

    path: str | os.PathLike[str]
    overwrite: bool = False
    external_data: ExternalData = "auto"


def fuse_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    options: FuseOptions | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    inputs: Any | None = None,
    external_data: ExternalData = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Fold an ONNX file into another one, as ``convbn fuse`` does, without holding its weights.

    Weights that no fold changes are copied from file to file in pieces, folded ones are computed one after the
    other. Without verification the memory that takes follows from the largest weight that is folded, not
    from the size of the model; to be verified, both files are opened by the runtime, one after the other.

    Args:
        source: an ONNX file; weights in files beside it are found by its own references.
        target: the file to write; with ``overwrite`` it may be the source.
        options: rules to use, and whether to verify.
        input_shapes: full shapes by input name, for models with open dimensions.
        inputs: what to verify with, as for :func:`convbn.verify`.
        external_data: ``always`` puts weights of 1 KiB and more into ``<name>.<hash>.data`` beside the target,
            ``never`` puts all into the target, ``auto`` does as the source does, and the first for a model
            beyond the 2 GiB that an ONNX file can have.
        overwrite: whether an existing file may be replaced.
        progress: is told by the proof: a phase, the steps that are done, and the steps in all.

    Returns:
        The report of the fold.

    Raises:
        CheckFailedError: the outputs differ, or the comparison proves nothing; nothing is written then.
        BadInputError: the source is no ONNX model, or its external data is not in order.
        FileAccessError: a file cannot be read or written.
    """
    from convbn.export.files.atomic import check_target
    from convbn.export.onnx_io.read import open_model
    from convbn.fuse.options import FuseOptions
    from convbn.fuse.report import Before
    from convbn.proof import verified

    options = options or FuseOptions()
    check_target(target, overwrite=overwrite)
    opened = open_model(source)
    path = os.fspath(source)
    with opened.files:
        folding = fold_opened(opened, options, input_shapes=input_shapes)
        report = replace(folding.report, path=path, sha256=opened.sha256)
        with staged_fold(opened, folding, Written(target, overwrite, external_data)) as staged:
            if options.verify:
                report = verified(
                    report, path, staged.path, input_shapes=input_shapes, inputs=inputs, progress=progress
                )
    return replace(report, size=Before(opened.stored, staged.size))


def fold_opened(
    opened: OpenModel,
    options: FuseOptions | None = None,
    *,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Folding:
    """Fold an opened model. Its ModelProto is changed; its folded weights are not computed yet."""
    from convbn.fuse.fold import fold

    return fold(opened.model, options=options, owned=True, read=opened.files.read, input_shapes=input_shapes)


@contextmanager
def staged_fold(opened: OpenModel, folding: Folding, target: Written) -> Iterator[Staged]:
    """Write what :func:`fold_opened` gave, computing each folded weight when its turn comes.

    Yields:
        The complete model; it gets the target's name when the block ends, and does not stay if the block
        raises.
    """
    from convbn.export.onnx_io.external_data import StoredWeights
    from convbn.export.onnx_io.write import staged_model

    with staged_model(
        folding.model,
        target.path,
        overwrite=target.overwrite,
        external_data=target.external_data,
        weights=StoredWeights(opened.files, folding.computed),
        was_external=opened.external,
    ) as staged:
        # All is written, and Windows replaces no file that is open: the target may be the source.
        opened.files.close()
        yield staged
