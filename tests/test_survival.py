"""What happens to long runs: they are killed, their disk fills, they are started twice."""

import contextlib
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import contents, run, run_anew
from tests.forks import Fork
from train_dynamics.recording.reader import Recording

LONG = ["--num_examples=500", "--batch_size=50", "--epochs=80", "--seeds=2"]  # 801 records in 17 blocks


def blocks(path):
    """How many blocks are whole, and how many are being saved."""
    with contextlib.suppress(FileNotFoundError):
        names = [entry.name for entry in (path / "blocks").iterdir()]
        return sum(name.isdigit() for name in names), sum(not name.isdigit() for name in names)
    return 0, 0


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("uninterrupted")
    done = run_anew("train", *LONG, "--recording=out", cwd=directory)
    assert done.returncode == 0, done.stderr
    return contents(directory / "out")


@pytest.mark.slow
def test_killed_four_times_the_recording_is_the_same(tmp_path, uninterrupted):
    chance = random.Random(0)
    path = tmp_path / "out"
    during_a_save, at_the_start = 0, 0
    starting = 1.0  # seconds at most

    def finish():
        done = run("train", *LONG, "--recording=out", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert contents(path) == uninterrupted

    for round in range(4):
        if blocks(path)[0] > 10:  # too few are left, which on a busy machine may all be made before one is seen
            finish()
            shutil.rmtree(path)
        before = blocks(path)[0]
        process = Fork("train", *LONG, "--recording=out", cwd=tmp_path)
        began = time.monotonic()
        if round == 3:  # before anything is recorded, while it starts
            time.sleep(chance.uniform(0.3, 0.9) * starting)
        elif round % 2:  # as soon as the next block is begun
            wait_for(lambda now=before: blocks(path)[0] > now and blocks(path)[1], process)
        else:
            wait_for(lambda now=before: blocks(path)[0] > now, process)
            starting = min(starting, time.monotonic() - began)
            time.sleep(chance.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        whole, partial = blocks(path)
        during_a_save += partial > 0
        at_the_start += whole == before
        assert whole >= before
        if whole:
            recording = Recording(path)  # what is whole can be read at any time
            assert recording.num_records == recording.block_length * whole
            assert np.isfinite(recording.loss(recording.num_records - 1)).all()
    assert during_a_save >= 1 and at_the_start >= 1  # most of the time, a block is being saved
    finish()


def test_killed_while_the_examples_are_read_it_leaves_nothing(tmp_path):
    command = [sys.executable, "-m", "train_dynamics.train", *LONG, "--recording=out"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill(), process.communicate()
        pytest.skip("this system does not list the children of a process")
    wait_for(children.read_text, process)
    helpers = [Path(f"/proc/{pid}") for pid in children.read_text().split()]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    until = time.monotonic() + 120
    while any(map(running, helpers)) and time.monotonic() < until:
        time.sleep(0.01)
    assert helpers and not any(map(running, helpers)) and not list(tmp_path.iterdir())


def running(process):
    """Whether a process is there, and not just waiting for somebody to ask how it ended."""
    with contextlib.suppress(OSError):
        return ") Z " not in (process / "stat").read_text()
    return False


@pytest.mark.slow
def test_a_second_run_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    first = Fork("train", *LONG, "--recording=out", cwd=tmp_path)
    wait_for(lambda: blocks(tmp_path / "out")[0], first)
    first.send_signal(signal.SIGSTOP)  # alive, however long the others take
    second = run("train", *LONG, "--recording=out", cwd=tmp_path)
    assert second.returncode == 1 and second.stdout == ""
    assert second.stderr == (
        "train: --recording=out: is being written by another run; wait for it, or choose another directory\n"
    )
    analysed = run("analyze", "--recording=out", cwd=tmp_path)
    assert first.returncode is None
    assert analysed.returncode == 1
    assert "--recording=out: is still being written and holds" in analysed.stderr
    assert len(analysed.stderr.splitlines()) == 1
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert run("train", *LONG, "--recording=out", cwd=tmp_path).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("replaced", [True, False])
def test_a_save_that_fails_ends_the_command_at_once(tmp_path, replaced):
    """And not after five minutes in which threads wait for a directory that will never be made, nor at the end."""
    process = Fork("train", *LONG, "--recording=out", cwd=tmp_path)
    wait_for(lambda: blocks(tmp_path / "out")[0], process)
    process.send_signal(signal.SIGSTOP)  # or it might make another directory before the file is there
    (tmp_path / "out" / "blocks").rename(tmp_path / "blocks")
    if replaced:
        (tmp_path / "out" / "blocks").write_text("no directory")
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=120)  # a few seconds, if they are not shared with too many others
    assert process.returncode == 1
    (line,) = errors.splitlines()
    at_a_save = "could not be written: " in line and "the same command continues from there" in line
    assert at_a_save or "or a part of it, was moved or removed during recording; bring it back" in line
    assert (tmp_path / "out" / "blocks").is_file() if replaced else blocks(tmp_path / "out")[0] < 5


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own of 400 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here, so a full disk is not tested: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("when", [0, 1])
def test_a_disk_that_fills_ends_the_run_and_the_same_command_finishes_it(tmp_path, small_disk, uninterrupted, when):
    """While the first block is being saved, or after it."""
    arguments = [*LONG, "--recording=disk/out"]
    process = Fork("train", *arguments, cwd=tmp_path)
    wait_for(lambda: blocks(small_disk / "out")[0] if when else blocks(small_disk / "out")[1], process)
    process.send_signal(signal.SIGSTOP)  # or it might be done before the disk is full
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**20))
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    (line,) = errors.splitlines()
    assert line.startswith("train: ") and "could not be written: No space left on device; what was recorded" in line
    recording = Recording(small_disk / "out")
    assert when * recording.block_length <= recording.num_records < 801
    assert all(np.isfinite(recording.loss(t)).all() for t in range(0, recording.num_records, 50))

    full = run("train", *arguments, cwd=tmp_path)  # tells before it starts
    assert full.returncode == 1 and "but only" in full.stderr and len(full.stderr.splitlines()) == 1
    filler.unlink()
    assert run("train", *arguments, cwd=tmp_path).returncode == 0
    assert contents(small_disk / "out") == uninterrupted
