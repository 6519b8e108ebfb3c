"""Arrays on disk: plain Zarr v3, every piece with a checksum, written past the page cache."""

import errno
import json
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import numpy as np

PAGE = mmap.PAGESIZE


def write_array(path: Path, array: np.ndarray, chunk_shape: Sequence[int]) -> None:
    """Write a new array.

    TensorStore could do it too, but goes by way of fresh memory and the page cache, which costs the processors several
    times as much.

    Args:
        path: Directory of the array, which must not exist.
        array: The array; little-endian.
        chunk_shape: Shape of the part that one file holds; must divide the array's.

    Raises:
        OSError: If the disk is full, or fails.
        ValueError: If the parts do not divide the array.
    """
    if any(n % step for n, step in zip(array.shape, chunk_shape, strict=True)):
        raise ValueError(f"parts of shape {tuple(chunk_shape)} do not divide an array of shape {array.shape}")
    endian = {} if array.itemsize == 1 else {"configuration": {"endian": "little"}}
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": array.shape,
        "data_type": array.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": tuple(chunk_shape)}},
        "chunk_key_encoding": {"name": "default"},
        "fill_value": 0,
        "codecs": [{"name": "bytes", **endian}, {"name": "crc32c"}],
    }
    path.mkdir(parents=True)
    (path / "zarr.json").write_text(json.dumps(metadata, indent=2))
    size = int(np.prod(chunk_shape)) * array.itemsize
    memory = mmap.mmap(-1, -(-(size + 4) // PAGE) * PAGE)  # whole pages, as direct output asks for
    values = np.frombuffer(memory, array.dtype, size // array.itemsize).reshape(chunk_shape)
    for index in np.ndindex(*(n // step for n, step in zip(array.shape, chunk_shape, strict=True))):
        part = tuple(slice(k * step, (k + 1) * step) for k, step in zip(index, chunk_shape, strict=True))
        np.copyto(values, array[part])
        memory[size : size + 4] = google_crc32c.value(values.reshape(-1).view(np.uint8)).to_bytes(4, "little")
        file = path.joinpath("c", *map(str, index))
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, memory, size + 4)


def _write(file: Path, memory: mmap.mmap, size: int) -> None:
    """Write the beginning of some memory to a new file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        fd = os.open(file, flags | getattr(os, "O_DIRECT", 0), 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system without direct output
            raise
        file.unlink(missing_ok=True)
        fd = os.open(file, flags, 0o666)
    try:
        with memoryview(memory) as view:
            done = 0
            while done < len(view):
                done += os.write(fd, view[done:])
        os.ftruncate(fd, size)
        os.fsync(fd)
    finally:
        os.close(fd)
