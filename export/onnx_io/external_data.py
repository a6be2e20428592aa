"""ONNX external data: weights in files beside the model.

The model names those files, so the names are untrusted, and so are the sizes: both are checked
before anything is read (see :mod:`convbn.export.files.contained` for the names).
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convbn.common.closing import Closing
from convbn.errors import BadInputError
from convbn.export.files.atomic import reason
from convbn.export.files.contained import open_inside
from convbn.export.onnx_io.encoding import Buffer, Weight
from convbn.export.onnx_io.validate import check_length, declared_bytes, iterate_tensors

if TYPE_CHECKING:
    import onnx

__all__ = ["DataFiles", "Range", "StoredWeights", "embed_external_data", "is_external", "location_of"]

PIECE = 1 << 20
"""Bytes that are read at a time where a tensor is only passed on."""

_EXTERNAL = 1  # TensorProto.DataLocation.EXTERNAL
# Tied weights may share bytes, but a small file read a thousand times over is an attack on memory and disk.
_KEYS = frozenset({"location", "offset", "length", "checksum", "basepath"})
"""What ONNX says of external data; runtimes refuse a file with other entries."""

_PREPACKED = "prepacked"
"""onnxruntime's own entries, for weights in the layout of its kernels."""

_MAX_REREADS = 4
# A model may have a file a tensor; a process may not have that many open.
_MAX_OPEN = 64


@dataclass(frozen=True, slots=True)
class Range:
    """Where the bytes of a tensor lie.

    Attributes:
        location: of the file, relative to the model's folder.
        offset: of the first byte.
        length: number of bytes.
    """

    location: str
    offset: int
    length: int


class _Identity(NamedTuple):
    device: int
    inode: int
    size: int
    changed: int


class DataFiles(Closing):
    """The data files of one model: checked as a whole, then read tensor by tensor or piece by piece.

    What was checked is what is read: a file that was replaced or changed since is refused.

    Args:
        folder: where the model file lies; data is read only from inside it.
        own: the open model file itself, if tensors may refer to bytes in it. It is closed with the rest.
        shown: what errors call the model.

    Attributes:
        own_location: the location by which such tensors name it. It is drawn by lot and no path, so that
            nothing that stands in a file passes for it.
    """

    def __init__(
        self, folder: Path, own: BufferedReader | None = None, shown: str | os.PathLike[str] | None = None
    ) -> None:
        self.own_location = f"\0{secrets.token_hex(16)}"
        self._folder = folder
        self._own = own
        self._shown = shown
        self._known: dict[str, _Identity] = {}
        self._open: dict[str, BufferedReader] = {}

    @property
    def beside(self) -> int:
        """Bytes of the files other than the model's own that it was held against."""
        return sum(known.size for name, known in self._known.items() if name != self.own_location)

    def check(self, model: onnx.ModelProto) -> int:
        """Hold every external tensor of a model against the files, reading none of their bytes.

        Returns:
            How many tensors lie in files other than the model's own.

        Raises:
            BadInputError: a location leads out of the folder, a file is missing or shorter than the
                model says, a length contradicts the tensor's shape, or tensors overlap. The message
                names the tensor.
        """
        found: dict[str, list[tuple[int, int, str]]] = {}
        count = 0
        for tensor in iterate_tensors(model):
            if is_external(tensor):
                place = self.range_of(tensor)
                if place.location != self.own_location:
                    found.setdefault(place.location, []).append((place.offset, place.length, tensor.name))
                    count += 1
        for location, ranges in found.items():
            _check_overlaps(location, ranges, self._known[location].size)
        return count

    def range_of(self, tensor: onnx.TensorProto) -> Range:
        """Where the bytes of an external tensor lie; its entries are checked.

        Raises:
            BadInputError: see :meth:`check`.
        """
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        needed = declared_bytes(tensor)
        shown = _shown(location, tensor)
        for key in entries:
            if key not in _KEYS and not key.startswith(_PREPACKED):
                raise BadInputError(f"{shown} has an entry '{key}', which ONNX does not know")
        if location not in self._known:
            self._stream(location, tensor)
        try:
            offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(needed)))
        except ValueError as error:
            raise BadInputError(f"{shown} has an offset or length that is no number") from error
        if location == self.own_location:
            check_length(tensor, length)
        if length != needed:
            raise BadInputError(f"{shown} has {length} bytes where its shape needs {needed}")
        size = self._known[location].size
        if offset < 0 or offset + needed > size:
            raise BadInputError(f"{shown} ends at byte {offset + needed}, but the file has {size} bytes")
        return Range(location, offset, needed)

    def read(self, tensor: onnx.TensorProto) -> bytes:
        """The bytes of one external tensor.

        Raises:
            BadInputError: see :meth:`check`; or the file changed in the meantime.
        """
        place = self.range_of(tensor)
        stream = self._stream(place.location, tensor)
        try:
            stream.seek(place.offset)
            data = stream.read(place.length)
        except OSError as error:
            raise self._unreadable(place, tensor, error) from error
        if len(data) != place.length:
            raise self._ends_early(place, tensor, len(data))
        return data

    def pieces(self, tensor: onnx.TensorProto) -> Iterator[memoryview]:
        """The bytes of one external tensor, piece by piece; each piece is overwritten by the next.

        Raises:
            BadInputError: see :meth:`read`.
        """
        place = self.range_of(tensor)
        buffer = memoryview(bytearray(min(PIECE, place.length)))
        done = 0
        while done < place.length:
            # Looked up each time: reading another tensor meanwhile may have closed or moved the stream.
            stream = self._stream(place.location, tensor)
            try:
                stream.seek(place.offset + done)
                size = stream.readinto(buffer[: place.length - done])
            except OSError as error:
                raise self._unreadable(place, tensor, error) from error
            if not size:
                raise self._ends_early(place, tensor, done)
            yield buffer[:size]
            done += size

    def close(self) -> None:
        """Close every file; the model's own can then be read no more."""
        if self._own is not None:
            self._own.close()
        self._close_others()

    def _close_others(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def _stream(self, location: str, tensor: onnx.TensorProto) -> BufferedReader:
        if location == self.own_location and self._own is not None:
            stream = self._own
        else:
            if location not in self._open:
                if len(self._open) >= _MAX_OPEN:
                    self._close_others()
                self._open[location] = open_inside(self._folder, location, tensor.name)
            stream = self._open[location]
        status = os.fstat(stream.fileno())
        identity = _Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if self._known.setdefault(location, identity) != identity:
            raise self._error(f"{_shown(location, tensor)} was changed while it was read")
        return stream

    def _unreadable(self, place: Range, tensor: onnx.TensorProto, error: OSError) -> BadInputError:
        return self._error(f"{_shown(place.location, tensor)} cannot be read: {reason(error)}")

    def _ends_early(self, place: Range, tensor: onnx.TensorProto, found: int) -> BadInputError:
        return self._error(
            f"{_shown(place.location, tensor)} ends early, after {found} of {place.length} bytes"
        )

    def _error(self, cause: str) -> BadInputError:
        return BadInputError(cause, source=self._shown)


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor's bytes lie in another file."""
    return tensor.data_location == _EXTERNAL


def location_of(tensor: onnx.TensorProto) -> str:
    """The file that an external tensor names; empty if it names none."""
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def embed_external_data(tensors: Iterable[onnx.TensorProto], files: DataFiles) -> None:
    """Read external tensors into themselves: they become ordinary ones with ``raw_data``.

    Args:
        tensors: of a model that was held against its files by :meth:`DataFiles.check`.
        files: the model's data files.

    Raises:
        BadInputError: see :meth:`DataFiles.read`.
    """
    for tensor in tensors:
        tensor.raw_data = files.read(tensor)
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")


def _check_overlaps(location: str, ranges: list[tuple[int, int, str]], size: int) -> None:
    """Tensors may share all of their bytes, as tied weights do, or none."""
    if sum(length for _, length, _ in ranges) > _MAX_REREADS * size:
        raise BadInputError(
            f"the tensors that share external data {location!r} overlap more than {_MAX_REREADS} times"
        )
    end, held, last = 0, (0, 0), ""
    for offset, length, name in sorted(ranges):
        if length and offset < end and (offset, length) != held:
            raise BadInputError(f"tensors {last!r} and {name!r} overlap in external data {location!r}")
        if length:
            end, held, last = offset + length, (offset, length), name


def _shown(location: str, tensor: onnx.TensorProto) -> str:
    if location.startswith("\0"):
        return f"tensor {tensor.name!r} of the model file"
    return f"external data {location!r} of tensor {tensor.name!r}"


class StoredWeights:
    """Finds the bytes of external tensors, one tensor at a time.

    Args:
        files: of the model that came in.
        computed: what computes a tensor's values, by the location that stands for them.
    """

    def __init__(
        self, files: DataFiles, computed: Mapping[str, Callable[[], NDArray[Any]]] | None = None
    ) -> None:
        self._files = files
        self._computed = computed or {}

    def of(self, tensor: onnx.TensorProto) -> Weight:
        """The raw bytes of an external tensor, little-endian.

        Raises:
            BadInputError: they do not lie where the tensor says, now or when they are read.
        """
        compute = self._computed.get(location_of(tensor))
        if compute is None:
            return Weight(self._files.range_of(tensor).length, lambda: self._files.pieces(tensor))
        import onnx

        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        return Weight(math.prod(tensor.dims) * dtype.itemsize, lambda: _bytes_of(compute()))

    def key(self, tensor: onnx.TensorProto) -> object:
        """What is equal for two tensors that share all of their bytes."""
        location = location_of(tensor)
        return location if location in self._computed else self._files.range_of(tensor)


def _bytes_of(values: NDArray[Any]) -> Iterator[Buffer]:
    little = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"), copy=False))
    # bfloat16 is no type that a memoryview knows; its bytes are.
    yield little.reshape(-1).view(np.uint8).data
