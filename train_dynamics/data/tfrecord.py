"""Reads TFRecord files without TensorFlow."""

import os
import struct
from collections.abc import Iterator, Sequence

import google_crc32c
import numpy as np
from jaxtyping import Int

HEADER, CHECKSUM = struct.Struct("<QI"), struct.Struct("<I")


def read_tfrecords(files: Sequence[os.PathLike], lengths: Sequence[int], indices: Int[np.ndarray, " k"]) -> list[bytes]:
    """Read some records from the files of a split.

    Args:
        files: The files, in order.
        lengths: Number of records of each.
        indices: Which records to read, ascending, counted through all files.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If a file is damaged.
    """
    found: list[bytes] = []
    first = 0
    for file, length in zip(files, lengths, strict=True):
        wanted = indices[(indices >= first) & (indices < first + length)] - first
        if len(wanted):
            found += _records(file, set(wanted.tolist()))
        first += length
    if len(found) != len(indices):
        raise ValueError(f"{len(indices) - len(found)} records are missing")
    return found


def _records(file: os.PathLike, wanted: set[int]) -> Iterator[bytes]:
    """Read records: each is a length of 8 bytes with its checksum, then the data with its checksum."""
    with open(file, "rb") as stream:
        for k in range(max(wanted) + 1):
            header = stream.read(HEADER.size)
            if len(header) < HEADER.size or _checksum(header[:8]) != HEADER.unpack(header)[1]:
                raise ValueError(f"{file} is damaged or cut off")
            length = HEADER.unpack(header)[0]
            if k not in wanted:
                stream.seek(length + CHECKSUM.size, os.SEEK_CUR)
                continue
            record, checksum = stream.read(length), stream.read(CHECKSUM.size)
            if len(checksum) < CHECKSUM.size or _checksum(record) != CHECKSUM.unpack(checksum)[0]:
                raise ValueError(f"{file} is damaged or cut off")
            yield record


def _checksum(content: bytes) -> int:
    """Compute the masked CRC-32C of the TFRecord format."""
    value = google_crc32c.value(content)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF
