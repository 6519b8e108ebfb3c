"""Stores arrays as plain Zarr v3, one file each, in pieces with checksums, bypassing the page cache.

TensorStore could do this too, and tests check that both read the same. But TensorStore uses the page cache and newly
allocated memory, which for gigabytes costs several times as much processor time.
"""

import contextlib
import errno
import json
import math
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

from train_dynamics.recording.remote import AnyPath, RemoteFile, Url

PAGE = 4096  # where pieces begin, on every machine
CHECKSUM = 4
INDEX_ENTRY = 16  # bytes that tell where a piece is
DIRECT = getattr(os, "O_DIRECT", 0)


def write_array(path: Path, array: np.ndarray, rows: int | None = None, place: str = "") -> None:
    """Write a new array into one file, and then its description.

    Args:
        path: Directory of the array. It must not exist yet.
        array: The array, in little-endian byte order.
        rows: Number of rows of the second axis in a piece, which can be read alone. It must divide the length of that
            axis. Default: all rows.
        place: Name of the place that it belongs to. Reading requires the same name.

    Raises:
        OSError: If the disk is full or fails.
        ValueError: If `rows` does not divide the second axis.
    """
    chunk = array.shape if rows is None else (array.shape[0], rows, *array.shape[2:])
    if rows is not None and array.shape[1] % rows:
        raise ValueError(f"{rows} rows do not divide the second axis of an array of shape {array.shape}")
    num_pieces, size = 1 if rows is None else array.shape[1] // rows, math.prod(chunk) * array.itemsize
    index, checksums = _index(num_pieces, size), []
    memory = mmap.mmap(-1, _pages(size + CHECKSUM))
    values = np.frombuffer(memory, array.dtype, size // array.itemsize).reshape(chunk)
    file = _file(path, array.ndim)
    file.parent.mkdir(parents=True, exist_ok=True)
    with _opened(file, os.O_WRONLY | os.O_CREAT) as fd:
        for k in range(num_pieces):
            np.copyto(values, array if rows is None else array[:, k * rows : (k + 1) * rows])
            checksums.append(_checksum(values))
            memory[size : size + CHECKSUM] = checksums[-1]
            _write(fd, memory)
        memory = mmap.mmap(-1, _pages(len(index)))
        memory[: len(index)] = index
        _write(fd, memory)
        os.ftruncate(fd, _length(num_pieces, size))
        os.fsync(fd)
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": array.shape,
        "data_type": array.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": array.shape}},
        "chunk_key_encoding": {"name": "default"},
        "fill_value": 0,
        "codecs": _codecs(array.dtype, chunk),
        "attributes": {"checksums": [checksum.hex() for checksum in checksums]},
    }
    metadata["attributes"]["seal"] = _seal(metadata, place)
    (path / "zarr.json").write_text(json.dumps(metadata))


class StoredArray:
    """An array on disk or on remote storage.

    Args:
        path: Directory of the array.
        place: Name of the place that it belongs to, as when it was written.
        direct: Whether to bypass the page cache. That suits data that is read once. Small pieces that are read again
            and again come from the cache in a fraction of the time.

    Attributes:
        shape: Shape of the array.
        dtype: Type of its elements.
        rows: Number of rows of its second axis in a piece.

    Raises:
        OSError: If it does not exist.
        ValueError: If it is not as `write_array` writes it, leads out of its directory, or belongs elsewhere.
    """

    def __init__(self, path: AnyPath, place: str = "", direct: bool = True) -> None:
        self._path = path
        self._direct = direct
        metadata = json.loads(read_whole(path / "zarr.json"))
        try:
            if metadata["attributes"]["seal"] != _seal(metadata, place):
                raise ValueError("it was changed, or is that of another array")
            self._checksums: list[str] = metadata["attributes"]["checksums"]
            self.shape = tuple(metadata["shape"])
            self.dtype = np.dtype(metadata["data_type"])
            self._chunk = tuple(metadata["codecs"][0]["configuration"]["chunk_shape"])
            if not all(type(n) is int and n > 0 for n in (*self.shape, *self._chunk)):
                raise ValueError("its lengths are not positive whole numbers")
            self.rows: int = (*self._chunk, 1, 1)[1]
            whole = (*self.shape[:1], self.rows, *self.shape[2:])[: len(self.shape)]
            fits = self._chunk == whole and not any(n % self.rows for n in self.shape[1:2])
            if not fits or self.dtype.kind not in "fiu" or metadata["codecs"] != _codecs(self.dtype, self._chunk):
                raise ValueError("its type, chunks or codecs are others")
            if len(self._checksums) != math.prod(self.shape) // math.prod(self._chunk):
                raise ValueError("it has not one checksum for each piece")
            self._size = math.prod(self._chunk) * self.dtype.itemsize
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"zarr.json is not what was written: {error}") from error

    def read(self) -> np.ndarray:
        """Read the whole array.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it has the wrong length, or was changed after it was written.
        """
        pieces = list(self._all())
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)

    def row(self, t: int) -> np.ndarray:
        """Read one row of the second axis. Raises as `read` does."""
        with self._file() as file:
            return self._piece(file, t // self.rows)[:, t % self.rows]

    def take(self, rows: Sequence[int]) -> Iterator[np.ndarray]:
        """Read some rows of the second axis, ascending, and each needed piece only once. Raises as `read` does."""
        last, piece = -1, None
        with self._file() as file:
            for t in rows:
                if t // self.rows != last:
                    last = t // self.rows
                    piece = self._piece(file, last)
                yield piece[:, t % self.rows]

    def columns(self, start: int, stop: int) -> np.ndarray:
        """Read only a range of the third axis, `[s, t, stop - start, ...]`.

        No checksum is compared, because checksums cover whole pieces. The caller must have other checksums.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it has the wrong length.
        """
        _, rows, columns, *rest = self._chunk
        each = math.prod(rest) * self.dtype.itemsize
        found = np.empty((self.shape[0], self.shape[1], stop - start, *rest), self.dtype)
        begins = []
        for s, t in np.ndindex(*self.shape[:2]):
            piece, row = divmod(t, rows)
            begins.append(piece * _pages(self._size + CHECKSUM) + ((s * rows + row) * columns + start) * each)
        with self._file() as file:
            file.fill(found.reshape(len(begins), -1), begins)
        return found

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the rows of the second axis, reading each piece once. Raises as `read` does."""
        for piece in self._all():
            yield from np.moveaxis(piece, 1, 0)

    def _all(self) -> Iterator[np.ndarray]:
        index = _index(len(self._checksums), self._size)
        with self._file() as file:
            for k in range(len(self._checksums)):
                yield self._piece(file, k)
            if file.read(len(self._checksums) * _pages(self._size + CHECKSUM), len(index)).tobytes() != index:
                raise ValueError("its index was changed after it was written")

    @contextlib.contextmanager
    def _file(self) -> "Iterator[_LocalFile | RemoteFile]":
        """Open the file, and check its length; on remote storage not, since asking takes as long as reading."""
        file = _file(self._path, len(self.shape))
        if isinstance(file, Url):
            yield RemoteFile(file)
            return
        _check_place(file)
        with _opened(file, os.O_RDONLY, self._direct) as fd:
            expected = _length(len(self._checksums), self._size)
            if (found := os.fstat(fd).st_size) != expected:
                raise ValueError(f"{file.relative_to(self._path)} has {found} bytes and not {expected}")
            yield _LocalFile(fd)

    def _piece(self, file: "_LocalFile | RemoteFile", k: int) -> np.ndarray:
        memory = file.read(k * _pages(self._size + CHECKSUM), self._size + CHECKSUM)
        values = memory[: self._size].view(self.dtype).reshape(self._chunk)
        checksum = _checksum(values)
        if memory[self._size :].tobytes() != checksum or checksum.hex() != self._checksums[k]:
            raise ValueError(f"piece {k} was changed after it was written: its checksum differs")
        return values


def _codecs(dtype: np.dtype, chunk: tuple[int, ...]) -> list[dict]:
    """Describe the file: pieces with a checksum each, and where they are (Zarr's sharding codec)."""
    endian = {} if dtype.itemsize == 1 else {"configuration": {"endian": "little"}}
    checked = {"name": "crc32c"}
    sharding = {
        "chunk_shape": list(chunk),
        "codecs": [{"name": "bytes", **endian}, checked],
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, checked],
        "index_location": "end",
    }
    return [{"name": "sharding_indexed", "configuration": sharding}]


def _index(num_pieces: int, size: int) -> bytes:
    """Make the end of a file: start and length of each piece, which starts on a page, and a checksum of these."""
    begins = np.arange(num_pieces) * _pages(size + CHECKSUM)
    index = np.stack([begins, np.full(num_pieces, size + CHECKSUM)], axis=1).astype("<u8")
    return index.tobytes() + _checksum(index)


def _length(num_pieces: int, size: int) -> int:
    """Return the length of a whole file, in bytes."""
    return num_pieces * (_pages(size + CHECKSUM) + INDEX_ENTRY) + CHECKSUM


def _seal(metadata: dict, place: str) -> str:
    """Compute a checksum of a description and the place it belongs to."""
    attributes = {name: value for name, value in metadata["attributes"].items() if name != "seal"}
    text = json.dumps({**metadata, "attributes": attributes, "place": place}, sort_keys=True, separators=(",", ":"))
    return google_crc32c.value(text.encode()).to_bytes(CHECKSUM, "big").hex()


def _checksum(values: np.ndarray) -> bytes:
    return google_crc32c.value(values.reshape(-1).view(np.uint8)).to_bytes(CHECKSUM, "little")


def _file(path: AnyPath, ndim: int) -> AnyPath:
    return path.joinpath("c", *("0" for _ in range(ndim)))


def _pages(size: int) -> int:
    """Round up to whole pages, as direct access requires."""
    return -(-size // PAGE) * PAGE


@contextlib.contextmanager
def _opened(file: Path, flags: int, direct: bool = True) -> Iterator[int]:
    """Open a file for direct access; or buffered, if asked for or if the file system has no direct access."""
    try:
        fd = os.open(file, flags | DIRECT * direct, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fd = os.open(file, flags, 0o666)
    try:
        yield fd
    finally:
        os.close(fd)


def _write(fd: int, memory: mmap.mmap) -> None:
    """Write all of a piece of memory."""
    with memoryview(memory) as view:
        done = 0
        while done < len(view):
            done += os.write(fd, view[done:])


def read_whole(file: AnyPath) -> bytes:
    """Read a small file.

    Raises:
        OSError: If it cannot be read.
        ValueError: If a link on its path leads elsewhere.
    """
    if not isinstance(file, Url):
        _check_place(file)
    return file.read_bytes()


def _check_place(file: Path) -> None:
    """Refuse links, which could make a recording show files that are not part of it."""
    if os.path.realpath(file) != str(file):
        raise ValueError(f"{file.name} is reached through a link, and a recording has none")


class _LocalFile(NamedTuple):
    """The opened file of a local array. Reads like `RemoteFile`.

    Attributes:
        fd: Its file descriptor.
    """

    fd: int

    def read(self, begin: int, size: int) -> np.ndarray:
        """Read this many bytes, starting at a page."""
        room = np.empty(_pages(size) + PAGE, np.uint8)
        first = -room.ctypes.data % PAGE
        memory, done = room[first : first + _pages(size)], 0
        while done < size:
            read = os.preadv(self.fd, [memory[done:]], begin + done)
            if not read:
                raise ValueError(f"the file ends at byte {begin + done}, before it should")
            done += read
        return memory[:size]

    def fill(self, stretches: np.ndarray, begins: Sequence[int]) -> None:
        """Fill each of some arrays with bytes from the file."""
        for stretch, begin in zip(stretches.view(np.uint8), begins, strict=True):
            if os.preadv(self.fd, [memoryview(stretch)], begin) != len(stretch):
                raise ValueError(f"the file ends at byte {begin}, before it should")
