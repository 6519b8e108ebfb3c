"""What is written reads back by TensorStore alone, and what is damaged does not read at all."""

import errno
import math
import os
import shutil

import numpy as np
import pytest
import tensorstore as ts

from tests.conftest import SMALL, blocks_of, silent
from train_dynamics.recording import storage
from train_dynamics.recording.format import RecordingError
from train_dynamics.recording.reader import Recording
from train_dynamics.recording.storage import StoredArray, write_array
from train_dynamics.training import sweep


def read(path):
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}, "fill_missing_data_reads": False}
    return ts.open(spec, read=True).result().read().result()


@pytest.mark.parametrize(
    ("shape", "rows", "dtype"),
    [
        ((3, 4, 5), 1, np.float32),
        ((3, 4, 5), 2, np.float32),
        ((2, 6), None, np.uint8),
        ((7,), None, np.int32),
        ((2, 3, 700, 9), 1, np.float32),  # many pages, the last not full
        ((1, 1024), None, np.float32),  # one page, and the checksum beyond it
    ],
)
def test_arrays_read_back(tmp_path, rng, shape, rows, dtype):
    array = (rng.normal(size=shape) * 100).astype(dtype)
    write_array(tmp_path / "a", array, rows)
    ours = StoredArray(tmp_path / "a")
    for found in (read(tmp_path / "a"), ours.read()):
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, array)
    pieces = 1 if rows is None else shape[1] // rows
    (file,) = (file for file in (tmp_path / "a" / "c").rglob("*") if file.is_file())
    whole_pages = math.ceil((array.nbytes // pieces + 4) / storage.PAGE) * storage.PAGE
    assert file.stat().st_size == pieces * (whole_pages + 16) + 4
    if array.ndim > 1:
        np.testing.assert_array_equal(ours.row(shape[1] - 1), array[:, -1])
        np.testing.assert_array_equal(list(ours), array.swapaxes(0, 1))


def test_arrays_that_are_views_are_written_as_they_look(tmp_path, rng):
    array = rng.random((4, 6, 5)).astype(np.float32)
    write_array(tmp_path / "a", array[:, :3], 1)
    np.testing.assert_array_equal(read(tmp_path / "a"), array[:, :3])


def test_pieces_must_fit(tmp_path):
    with pytest.raises(ValueError, match="do not divide"):
        write_array(tmp_path / "a", np.zeros((4, 5)), 2)
    assert not (tmp_path / "a").exists()


def test_any_bit_that_flips_is_found_or_changes_nothing(tmp_path, rng):
    array = rng.random((2, 2, 30)).astype(np.float32)
    write_array(tmp_path / "a", array, 1)
    file = tmp_path / "a" / "c" / "0" / "0" / "0"
    whole, used = file.read_bytes(), 2 * 30 * 4 + 4
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        if place < 2 * storage.PAGE and place % storage.PAGE >= used:  # the rest of a piece's page
            np.testing.assert_array_equal(read(tmp_path / "a"), array)
            np.testing.assert_array_equal(StoredArray(tmp_path / "a").read(), array)
            continue
        with pytest.raises(ValueError):
            read(tmp_path / "a")
        with pytest.raises(ValueError, match=f"{'piece' if place < 2 * storage.PAGE else 'index'}.* was changed"):
            StoredArray(tmp_path / "a").read()


@pytest.mark.parametrize("change", [lambda whole: whole[:-1], lambda whole: whole + b"0", lambda whole: b""])
def test_other_lengths_are_found(tmp_path, rng, change):
    write_array(tmp_path / "a", rng.random((2, 30)))
    file = tmp_path / "a" / "c" / "0" / "0"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match="bytes and not 4116"):
        StoredArray(tmp_path / "a").read()


@pytest.mark.parametrize("rows", [1, None])
def test_any_bit_that_flips_in_the_description_is_found_or_changes_nothing(tmp_path, rng, rows):
    array = rng.random((3, 4, 5)).astype(np.float32)
    write_array(tmp_path / "a", array, rows)
    file = tmp_path / "a" / "zarr.json"
    whole = file.read_bytes()
    found = 0
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(StoredArray(tmp_path / "a").read(), array)
        except (ValueError, OSError):
            found += 1
    assert found > len(whole)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("crc32c", "gzip"),
        ("float64", "S8"),
        ("shape", "size"),
        ("[", "{"),
        ("30", "40"),
        ("little", "big"),
        ("end", "start"),
    ],
)
def test_other_arrays_are_refused(tmp_path, rng, old, new):
    write_array(tmp_path / "a", rng.random((2, 30)))
    file = tmp_path / "a" / "zarr.json"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError):
        StoredArray(tmp_path / "a").read()


def test_file_systems_without_direct_output_are_written_all_the_same(tmp_path, rng, monkeypatch):
    array = rng.random((3, 4)).astype(np.float32)
    real, tried = os.open, []

    def refusing(path, flags, *more, **named):
        tried.append(flags & os.O_DIRECT)
        if flags & os.O_DIRECT:
            if flags & os.O_CREAT:  # Linux makes the file and then refuses
                os.close(real(path, flags & ~os.O_DIRECT, *more, **named))
            raise OSError(errno.EINVAL, "no direct output")
        return real(path, flags, *more, **named)

    monkeypatch.setattr(storage.os, "open", refusing)
    write_array(tmp_path / "a", array)
    np.testing.assert_array_equal(StoredArray(tmp_path / "a").read(), array)
    assert tried == [os.O_DIRECT, 0] * 2
    np.testing.assert_array_equal(read(tmp_path / "a"), array)


def test_a_disk_that_fails_ends_the_run(tmp_path, small_dataset, device, monkeypatch):
    real, left = os.write, [40]

    def failing(fd, data):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data[: max(storage.PAGE, len(data) // storage.PAGE // 2 * storage.PAGE)])  # and takes its time

    monkeypatch.setattr(storage.os, "write", failing)
    with (
        blocks_of(3, small_dataset),
        pytest.raises(RecordingError, match="blocks/3 could not be written: No space left"),
    ):
        sweep.train(SMALL, tmp_path / "recording", device, log=silent)
    assert 0 < Recording(tmp_path / "recording").num_records < 17
    monkeypatch.undo()
    assert sweep.train(SMALL, tmp_path / "recording", device, log=silent)
    assert Recording(tmp_path / "recording").finished


def test_a_damaged_recording_is_not_read(tmp_path, small_path):
    shutil.copytree(small_path, tmp_path / "recording")
    file = next((tmp_path / "recording" / "blocks" / "6" / "record.loss" / "c").rglob("0/0/0"))
    damaged = bytearray(file.read_bytes())
    damaged[100] ^= 8
    file.write_bytes(damaged)
    recording = Recording(tmp_path / "recording")
    recording.loss(5)
    with pytest.raises(RecordingError, match=r"blocks/6/record.loss is damaged"):
        recording.loss(6)
