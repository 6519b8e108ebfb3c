"""What is written reads back by TensorStore alone, and what is damaged does not read at all."""

import errno
import os
import shutil

import numpy as np
import pytest
import tensorstore as ts

from tests.conftest import SMALL, blocks_of, silent
from train_dynamics import storage, sweep
from train_dynamics.recording import Recording, RecordingError
from train_dynamics.storage import write_array


def read(path):
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}, "fill_missing_data_reads": False}
    return ts.open(spec, read=True).result().read().result()


@pytest.mark.parametrize(
    ("shape", "chunk", "dtype"),
    [
        ((3, 4, 5), (3, 1, 5), np.float32),
        ((2, 6), (2, 6), np.uint8),
        ((7,), (7,), np.int32),
        ((2, 3, 700, 9), (2, 1, 700, 9), np.float32),  # many pages, the last not full
        ((1024,), (1024,), np.float32),  # one page, and the checksum beyond it
    ],
)
def test_arrays_read_back(tmp_path, rng, shape, chunk, dtype):
    array = (rng.normal(size=shape) * 100).astype(dtype)
    write_array(tmp_path / "a", array, chunk)
    found = read(tmp_path / "a")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, array)
    pieces = [file for file in (tmp_path / "a" / "c").rglob("*") if file.is_file()]
    assert len(pieces) == array.size // np.prod(chunk)
    assert {file.stat().st_size for file in pieces} == {int(np.prod(chunk)) * array.itemsize + 4}


def test_arrays_that_are_views_are_written_as_they_look(tmp_path, rng):
    array = rng.random((4, 6, 5)).astype(np.float32)
    write_array(tmp_path / "a", array[:, :3], (4, 1, 5))
    np.testing.assert_array_equal(read(tmp_path / "a"), array[:, :3])


def test_pieces_must_fit(tmp_path):
    with pytest.raises(ValueError, match="do not divide"):
        write_array(tmp_path / "a", np.zeros((4, 5)), (4, 2))
    assert not (tmp_path / "a").exists()


def test_any_bit_that_flips_is_found(tmp_path, rng):
    array = rng.random((2, 30)).astype(np.float32)
    write_array(tmp_path / "a", array, (2, 30))
    file = tmp_path / "a" / "c" / "0" / "0"
    whole = file.read_bytes()
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"[Dd]igest"):
            read(tmp_path / "a")


def test_file_systems_without_direct_output_are_written_all_the_same(tmp_path, rng, monkeypatch):
    array = rng.random((3, 4)).astype(np.float32)
    real, tried = os.open, []

    def refusing(path, flags, *more, **named):
        tried.append(flags & os.O_DIRECT)
        if flags & os.O_DIRECT:
            real(path, flags & ~os.O_DIRECT, *more, **named)  # Linux makes the file and then refuses
            raise OSError(errno.EINVAL, "no direct output")
        return real(path, flags, *more, **named)

    monkeypatch.setattr(storage.os, "open", refusing)
    write_array(tmp_path / "a", array, (3, 4))
    assert os.O_DIRECT in tried
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
        sweep.train(SMALL, tmp_path / "recording", device, say=silent)
    assert 0 < Recording(tmp_path / "recording").num_records < 17
    monkeypatch.undo()
    assert sweep.train(SMALL, tmp_path / "recording", device, say=silent)
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
