"""How much a checkpoint may ask for before it is looked at: caps that its user can raise."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from dataclasses import dataclass

from convbn.errors import BadInputError, UsageError

__all__ = ["ZIP_DAMAGE", "Limits", "check_archive"]

_MIB = 1 << 20

#: What zipfile lets out where an archive is damaged.
ZIP_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, EOFError, ValueError, LookupError),
)


@dataclass(frozen=True)
class Limits:
    """Caps on what a file may make its reader hold.

    Attributes:
        pickle_mib: of one pickle, in MiB. It holds names and sizes, not weights: about 100 bytes a tensor.
        unpacked_mib: what an archive may unpack to beyond its own size, in MiB. What torch stores
            unpacked takes no part.
    """

    pickle_mib: int = 8
    unpacked_mib: int = 256

    def __post_init__(self) -> None:
        if self.pickle_mib < 0 or self.unpacked_mib < 0:
            raise UsageError("a cap on sizes cannot be negative")


def check_archive(path: str | os.PathLike[str], limits: Limits) -> bool:
    """Hold the declared sizes of a zip archive against a cap, before anything is unpacked.

    Returns:
        Whether some member is compressed. Where none is, each lies in the file as it is.

    Raises:
        BadInputError: the archive is damaged, or would unpack to more than the cap allows.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except ZIP_DAMAGE as error:
        raise BadInputError(f"is a damaged zip archive: {error}", source=path) from error
    packed = [info.filename for info in members if info.compress_type != zipfile.ZIP_STORED]
    excess = sum(info.file_size for info in members) - os.path.getsize(path)
    if excess > limits.unpacked_mib * _MIB:
        what = "compressed members" if packed else "members that overlap"
        raise BadInputError(
            f"has {what} and would unpack to {excess // _MIB} MiB more than it takes on disk",
            source=path,
            hint=f"if that is right, allow it with --max-unpacked-mib {excess // _MIB + 1}",
        )
    return bool(packed)
