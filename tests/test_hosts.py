"""Several processes that share the seeds of a study, and what they write read as one recording."""

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.conftest import run
from train_dynamics.config import StudyConfig
from train_dynamics.recording import parts
from train_dynamics.recording.parts import divided
from train_dynamics.recording.reader import Recording

STUDY = ["--num_examples=60", "--batch_size=20", "--epochs=4", "--seeds=5", "--recording=out"]
LONG = ["--num_examples=500", "--batch_size=50", "--epochs=80", "--seeds=3", "--recording=out"]


def free_port():
    """A port that is free, and of those that systems give to nobody who does not ask for it: other tests run beside."""
    for port in random.Random().sample(range(20_000, 30_000), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError("no port is free")


def started(cwd, flags, count, process, port=None):
    """Start one of several processes, as a user's job script does."""
    address = [f"--coordinator_address=127.0.0.1:{port}"] if port else []
    command = [sys.executable, "-m", "train_dynamics.train", *flags, "--distributed", *address]
    return subprocess.Popen(
        [*command, f"--num_processes={count}", f"--process_id={process}"],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
    )


def arrays(recording):
    return {
        name: np.concatenate([b.read(name) for b in recording.blocks()], axis=1)
        for name in next(recording.blocks()).names
    }


def test_seeds_are_dealt_out_as_evenly_as_possible():
    config = StudyConfig(num_seeds=7, first_seed=10)
    assert [list(part.seeds) for part in divided(config, 3)] == [[10, 11, 12], [13, 14], [15, 16]]
    assert [part.name for part in divided(config, 2)] == ["seeds_10-13", "seeds_14-16"]
    assert len(divided(config, 100)) == 7  # the others get nothing


@pytest.mark.slow
def test_two_processes_record_what_one_records(tmp_path):
    port = free_port()
    processes = [started(tmp_path, STUDY, 2, k, port) for k in range(2)]
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "Process 0 of 2 records seeds 0 to 2" in said[0][0] and "records seeds 3 to 4" in said[1][0]
    alone = tmp_path / "alone"
    alone.mkdir()
    assert run("train", *STUDY, cwd=alone).returncode == 0
    together, one = Recording(tmp_path / "out"), Recording(alone / "out")
    assert together.finished and together.path == tmp_path / "out"
    assert together.seeds.tolist() == one.seeds.tolist() and together.config == one.config
    expected = arrays(one)
    for name, values in arrays(together).items():
        np.testing.assert_array_equal(values, expected[name])
    assert together.reopened().num_records == one.num_records
    for command in (["verify"], ["analyze", "--parts=histories"], ["animate", "--iterations=3", "--output=a.png"]):
        done = run(command[0], "--recording=out", *command[1:], cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), done
    assert (tmp_path / "out" / "analysis" / "report.html").is_file()
    np.testing.assert_array_equal(Recording(tmp_path / "out").history(7).loss[4], expected["loss"][4, :, 7])

    done = run("train", *STUDY, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("train: --recording=out: is recorded by several processes")
    done = run("train", *STUDY, "--epochs=5", "--distributed", "--num_processes=2", "--process_id=0", cwd=tmp_path)
    assert done.returncode == 1 and "parts of another configuration (--epochs 4 instead of 5" not in done.stdout
    done = run("train", *STUDY, "--distributed", "--num_processes=3", "--process_id=0", cwd=tmp_path)
    assert done.returncode == 1 and "--num_processes=3: must be 2, as out was begun with" in done.stderr
    done = run("train", *STUDY, "--distributed", "--num_processes=2", "--process_id=1", cwd=alone)
    assert done.returncode == 1 and "holds a recording of one process" in done.stderr


@pytest.mark.slow
def test_one_of_three_is_killed_and_goes_on_alone(tmp_path):
    port = free_port()
    processes = [started(tmp_path, LONG, 3, k, port) for k in range(3)]
    victim = tmp_path / "out" / "seeds_1-1" / "blocks"
    deadline = time.monotonic() + 120
    while not (victim.is_dir() and any(entry.name.isdigit() for entry in victim.iterdir())):
        assert processes[1].poll() is None, processes[1].communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    processes[1].send_signal(signal.SIGKILL)
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, -signal.SIGKILL, 0], said
    recording = Recording(tmp_path / "out")
    assert not recording.finished and recording.seeds.tolist() == [0, 1, 2]
    assert 0 < recording.num_records < recording.num_planned
    assert recording.loss(int(recording.iterations[-1])).shape == (3, 500)
    again = started(tmp_path, LONG, 3, 1)
    out, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert "Continuing from iteration" in out
    recording = recording.reopened()
    assert recording.finished and recording.num_records == recording.num_planned
    done = run("verify", "--recording=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_processes_that_begin_at_the_same_time_agree(tmp_path):
    def begin(path, count):
        together.wait()
        parts.begin(path, config, count)
        (path / f"seeds_{threading.get_ident()}").mkdir()  # as each does next

    config, together = StudyConfig(num_seeds=8), threading.Barrier(8)
    with ThreadPoolExecutor(8) as threads:
        for k in range(50):
            path = tmp_path / str(k)
            assert [found.exception() for found in [threads.submit(begin, path, 8) for _ in range(8)]] == [None] * 8
            assert {entry.name.split("_")[0] for entry in path.iterdir()} == {"parts.json", "seeds"}
        errors = [found.exception() for found in [threads.submit(begin, tmp_path / "no", 2 + k % 2) for k in range(8)]]
    assert errors.count(None) == 4 and all("num_processes" in str(error) for error in errors if error)


def test_a_part_that_is_not_there_is_named(tmp_path, small_path):
    config = dataclasses.replace(Recording(small_path).config, num_seeds=6)
    parts.begin(tmp_path / "out", config, 2)
    shutil.copytree(small_path, tmp_path / "out" / "seeds_0-2")
    done = run("analyze", "--recording=out", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "analyze: out/seeds_3-5 is missing: it is the part of process 1 of out; train with the same flags and "
        "--num_processes=2 --process_id=1 records it\n"
    )
    header = json.loads((tmp_path / "out" / "parts.json").read_text())
    (tmp_path / "out" / "parts.json").write_text(json.dumps({**header, "num_processes": 1}))
    done = run("verify", "--recording=out", cwd=tmp_path)
    assert done.returncode == 1 and "parts.json is damaged: it was changed after" in done.stderr


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--num_processes=2"], "train: --num_processes=2: goes with --distributed"),
        (["--distributed", "--num_processes=2"], "train: --distributed=True: needs both --num_processes and"),
        (["--distributed", "--process_id=1"], "train: --distributed=True: needs both --num_processes and"),
        (["--distributed", "--process_id=2", "--num_processes=2"], "train: --process_id=2: must be from 0 to 1"),
        (
            ["--distributed", "--coordinator_address=127.0.0.1:1"],
            "train: --distributed=True: needs both --num_processes",
        ),
        *(
            (
                ["--distributed", "--num_processes=2", "--process_id=0", f"--coordinator_address={address}"],
                f"train: --coordinator_address={address}: must be HOST:PORT, with a port from 1 to 65535",
            )
            for address in ("127.0.0.1:99999", "127.0.0.1", ":1234", "here:port")
        ),
    ],
)
def test_mistakes_get_a_line(tmp_path, flags, line):
    done = run("train", *STUDY, *flags, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith(line) and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_processes_without_seeds_have_nothing_to_do(tmp_path):
    done = run("train", *STUDY, "--distributed", "--num_processes=9", "--process_id=7", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and "Process 7 has nothing to do: there are 5 seeds" in done.stdout
