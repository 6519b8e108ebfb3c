"""Arrays on disk: plain Zarr v3, in pieces that each have a checksum, past the page cache.

TensorStore could do it too, and tests compare what both read. But it goes by way of the page cache and of fresh
memory, which for gigabytes costs the processors several times as much.
"""

import errno
import json
import math
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np

PAGE = mmap.PAGESIZE
CHECKSUM = 4
DIRECT = getattr(os, "O_DIRECT", 0)


def write_array(path: Path, array: np.ndarray, rows: int | None = None, place: str = "") -> None:
    """Write a new array, its description last.

    Args:
        path: Directory of the array, which must not exist.
        array: The array; little-endian.
        rows: How many rows of the second axis one file holds; must divide it. All of them by default.
        place: Where it belongs; it reads there only.

    Raises:
        OSError: If the disk is full, or fails.
        ValueError: If `rows` does not divide the second axis.
    """
    chunk = array.shape if rows is None else (array.shape[0], rows, *array.shape[2:])
    if rows is not None and array.shape[1] % rows:
        raise ValueError(f"{rows} rows do not divide the second axis of an array of shape {array.shape}")
    checksums = []
    size = math.prod(chunk) * array.itemsize
    memory = mmap.mmap(-1, _pages(size + CHECKSUM))
    values = np.frombuffer(memory, array.dtype, size // array.itemsize).reshape(chunk)
    for k in range(1 if rows is None else array.shape[1] // rows):
        np.copyto(values, array if rows is None else array[:, k * rows : (k + 1) * rows])
        checksums.append(_checksum(values))
        memory[size : size + CHECKSUM] = checksums[-1]
        file = _file(path, k, array.ndim)
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, memory, size + CHECKSUM)
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": array.shape,
        "data_type": array.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default"},
        "fill_value": 0,
        "codecs": _codecs(array.dtype),
        "attributes": {"checksums": [checksum.hex() for checksum in checksums]},
    }
    metadata["attributes"]["seal"] = _seal(metadata, place)
    (path / "zarr.json").write_text(json.dumps(metadata))


class StoredArray:
    """An array on disk.

    Args:
        path: Directory of the array.
        place: Where it belongs, as when it was written.

    Attributes:
        shape: Shape of the array.
        dtype: Type of its elements.
        rows: How many rows of its second axis a piece holds.

    Raises:
        OSError: If it is not there.
        ValueError: If it is not as `write_array` writes it, leads out of its directory, or belongs elsewhere.
    """

    def __init__(self, path: Path, place: str = "") -> None:
        self._path = path
        metadata = json.loads(read_whole(path / "zarr.json"))
        try:
            if metadata["attributes"]["seal"] != _seal(metadata, place):
                raise ValueError("it was changed, or is that of another array")
            self._checksums: list[str] = metadata["attributes"]["checksums"]
            self.shape = tuple(metadata["shape"])
            self.dtype = np.dtype(metadata["data_type"])
            self._chunk = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
            if not all(type(n) is int and n > 0 for n in (*self.shape, *self._chunk)):
                raise ValueError("its lengths are not positive whole numbers")
            self.rows: int = (*self._chunk, 1, 1)[1]
            whole = (*self.shape[:1], self.rows, *self.shape[2:])[: len(self.shape)]
            fits = self._chunk == whole and not any(n % self.rows for n in self.shape[1:2])
            if not fits or self.dtype.kind not in "fiu" or metadata["codecs"] != _codecs(self.dtype):
                raise ValueError("its type, chunks or codecs are others")
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"zarr.json is not what was written: {error}") from error

    def piece(self, k: int) -> np.ndarray:
        """Read one piece.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it is not as long as it should be, or was changed since it was written.
        """
        size = math.prod(self._chunk) * self.dtype.itemsize
        file = _file(self._path, k, len(self.shape))
        memory = _read(file, size + CHECKSUM)
        values = memory[:size].view(self.dtype).reshape(self._chunk)
        checksum = _checksum(values)
        if memory[size:].tobytes() != checksum or checksum.hex() != self._checksums[k]:
            raise ValueError(f"{file.relative_to(self._path)} was changed after it was written: its checksum differs")
        return values

    def read(self) -> np.ndarray:
        """Read the whole array."""
        pieces = list(self._pieces())
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)

    def row(self, t: int) -> np.ndarray:
        """Read one row of the second axis."""
        return self.piece(t // self.rows)[:, t % self.rows]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Read the rows of the second axis one after the other, each piece once."""
        for piece in self._pieces():
            yield from np.moveaxis(piece, 1, 0)

    def _pieces(self) -> Iterator[np.ndarray]:
        return map(self.piece, range(self.shape[1] // self.rows if len(self.shape) > 1 else 1))


def _codecs(dtype: np.dtype) -> list[dict]:
    endian = {} if dtype.itemsize == 1 else {"configuration": {"endian": "little"}}
    return [{"name": "bytes", **endian}, {"name": "crc32c"}]


def _seal(metadata: dict, place: str) -> str:
    """Sum up a description and where it belongs."""
    attributes = {name: value for name, value in metadata["attributes"].items() if name != "seal"}
    text = json.dumps({**metadata, "attributes": attributes, "place": place}, sort_keys=True, separators=(",", ":"))
    return google_crc32c.value(text.encode()).to_bytes(CHECKSUM, "big").hex()


def _checksum(values: np.ndarray) -> bytes:
    return google_crc32c.value(values.reshape(-1).view(np.uint8)).to_bytes(CHECKSUM, "little")


def _file(path: Path, k: int, ndim: int) -> Path:
    return path.joinpath("c", *(str(k if axis == 1 else 0) for axis in range(ndim)))


def _pages(size: int) -> int:
    """Round up to whole pages, which direct access asks for."""
    return -(-size // PAGE) * PAGE


def _open(file: Path, flags: int) -> int:
    """Open a file for direct access, or for buffered where the file system has no other."""
    try:
        return os.open(file, flags | DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(file, flags, 0o666)


def _write(file: Path, memory: mmap.mmap, size: int) -> None:
    """Write the beginning of some memory to a new file."""
    fd = _open(file, os.O_WRONLY | os.O_CREAT)
    try:
        with memoryview(memory) as view:
            done = 0
            while done < len(view):
                done += os.write(fd, view[done:])
        os.ftruncate(fd, size)
        os.fsync(fd)
    finally:
        os.close(fd)


def read_whole(file: Path) -> bytes:
    """Read a small file.

    Raises:
        OSError: If it cannot be read.
        ValueError: If a link on the way leads elsewhere.
    """
    _check_place(file)
    return file.read_bytes()


def _check_place(file: Path) -> None:
    """Refuse links, through which a recording could show what is not part of it."""
    if os.path.realpath(file) != str(file):
        raise ValueError(f"{file.name} is reached through a link, and a recording has none")


def _short(file: Path) -> str:
    """Name a file as its array knows it."""
    return "/".join(file.parts[len(file.parts) - file.parts[::-1].index("c") - 1 :])


def _read(file: Path, size: int) -> np.ndarray:
    """Read a file of known size."""
    _check_place(file)
    fd = _open(file, os.O_RDONLY)
    try:
        if (found := os.fstat(fd).st_size) != size:
            raise ValueError(f"{_short(file)} has {found} bytes and not {size}")
        room = np.empty(_pages(size) + PAGE, np.uint8)
        begin = -room.ctypes.data % PAGE
        memory, done = room[begin : begin + _pages(size)], 0
        while done < size:
            read = os.preadv(fd, [memory[done:]], done)
            if not read:
                raise ValueError(f"{_short(file)} ends after {done} of {size} bytes")
            done += read
        return memory[:size]
    finally:
        os.close(fd)
