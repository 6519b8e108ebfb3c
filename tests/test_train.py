"""The command line, as a user types it."""

import contextlib
import dataclasses
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.conftest import SMALL, contents, run
from train_dynamics.config import StudyConfig, flag_name
from train_dynamics.recording.reader import Recording
from train_dynamics.training.sweep import enable_compilation_cache

KEPT = ("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")  # where the tests keep programs, which these tests do not
ON_LITTLE = ["--num_examples=50", "--batch_size=16", "--epochs=4", "--seeds=3", "--hidden_sizes=5"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    directory = tmp_path_factory.mktemp("command")
    return directory / "recording", run("train", *ON_LITTLE, "--recording=recording", cwd=directory)


def test_it_records_and_says_so(recorded):
    path, done = recorded
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # quiet: not a terminal
    first, second, last = done.stdout.splitlines()
    assert first.startswith("Recording fc2 of a 784-5-10 network: 50 examples of mini_mnist, 3 seeds, 17 records on 1")
    assert second.startswith("It will take 1.0 MB in recording; ")
    assert last.startswith("Recorded recording: ") and last.endswith(" s")
    assert Recording(path).finished
    assert Recording(path).config == SMALL


def in_a_terminal(columns: int, command: str, *flags: str, cwd: Path) -> list[str]:
    """What a command shows, line by line, in a terminal so wide; a bar that is drawn again is another line."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    words = [sys.executable, "-m", f"train_dynamics.{command}", *flags]
    done = subprocess.run(words, cwd=cwd, stderr=theirs, stdout=subprocess.DEVNULL)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error
        while piece := os.read(ours, 65536):  # which may end within a character
            shown += piece
    os.close(ours)
    assert done.returncode == 0, shown.decode()
    lines = re.split(r"[\r\n]+|\x1b\[A", shown.decode())
    return [line.rstrip() for line in lines if line.strip()]


def test_on_a_terminal_a_bar_shows_speed_accuracy_and_time_left(tmp_path):
    last = in_a_terminal(120, "train", *ON_LITTLE, "--recording=out", cwd=tmp_path)[-1]
    assert re.match(r"Recording: 100%\|.*\| 17/17 records, 00:00 left, +[\d.]+ records/s, accuracy=\d+\.\d%$", last)


def test_a_narrow_terminal_too_says_what_is_done_how_far_and_how_long_yet(recorded, tmp_path):
    lines = in_a_terminal(60, "train", *ON_LITTLE, "--recording=out", cwd=tmp_path)
    assert re.match(r"Recording: 100%, 17/17 records, 00:00 left, accuracy=\d+\.\d%$", lines[-1])
    analysis = in_a_terminal(
        60, "analyze", f"--recording={recorded[0]}", "--output=results", "--parts=groups", cwd=tmp_path
    )
    assert any(re.match(r"Measuring: 100%\|.*\| 17/17 records, 00:00 left", line) for line in analysis)
    assert any(re.match(r"Writing the report: step 3 of 3, \d\d:\d\d so far$", line) for line in analysis)
    for line in [*lines, *analysis]:  # none is cut, and none goes on in the next line
        assert len(line) <= 60 and re.search(r"( left|/s|%| so far)$", line), line


def test_again_it_leaves_it_alone_and_other_flags_are_refused(recorded):
    path, _ = recorded
    again = run("train", *ON_LITTLE, f"--recording={path}")
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == f"{path} already holds all 17 records of 3 seeds; nothing to do\n"
    other = run("train", *ON_LITTLE, "--learning_rate=0.02", f"--recording={path}")
    assert other.returncode == 1
    assert "(--learning_rate 0.02 instead of 0.01); choose another directory" in other.stderr
    assert len(other.stderr.splitlines()) == 1


def test_the_default_flag_file_is_the_default_configuration(tmp_path):
    flagfile = os.path.join(os.path.dirname(__file__), "..", "configs", "mini_mnist.flags")
    program = (
        "from absl import flags; from train_dynamics import train; train.define_config_flags();"
        f"flags.FLAGS(['train', '--flagfile={flagfile}']); print(train.config_from_flags())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == str(StudyConfig()), done.stderr


def test_help_reads_well():
    done = run("train", "--help")
    for name in ("recording", *(flag_name(field.name) for field in dataclasses.fields(StudyConfig))):
        assert f"--{name}:" in done.stdout or f"--[no]{name}:" in done.stdout
    assert "(default: 8)" in done.stdout
    assert "(default: 0.01)" in done.stdout


@pytest.mark.parametrize("rate", ["1e6", "1e30"])
def test_a_loss_that_is_no_longer_finite_ends_the_run(tmp_path, rate):
    done = run("train", *ON_LITTLE, f"--learning_rate={rate}", "--recording=out", cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert re.match(
        r"train: the loss of seed \d is no longer finite at iteration \d+; nothing was recorded; a lower", done.stderr
    )
    assert Recording(tmp_path / "out").num_records == 0


def test_pixels_that_are_too_large_are_not_blamed_on_the_learning_rate(tmp_path):
    done = run("train", *ON_LITTLE, "--pixel_std=1e-44", "--recording=out", cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "at iteration 0; nothing was recorded; a --pixel_mean nearer to 0 or a larger --pixel_std may help" in line


def test_the_environment_does_not_change_the_type(tmp_path, recorded):
    environment = {**os.environ, "JAX_ENABLE_X64": "1", "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "-m", "train_dynamics.train", *ON_LITTLE, "--recording=out"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert contents(tmp_path / "out") == contents(recorded[0])


def test_the_examples_are_read_by_another_process_while_jax_is_imported(tmp_path, recorded):
    program = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print([name in sys.modules for name in ('jax', 'tensorflow_datasets')]))\n"
        "runpy.run_module('train_dynamics.train', run_name='__main__')"
    )
    command = [sys.executable, "-c", program, *ON_LITTLE, "--recording=out"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[True, False]"
    np.testing.assert_array_equal(Recording(tmp_path / "out").images, Recording(recorded[0]).images)


def test_programs_are_kept_for_the_next_run_which_gives_the_same_and_never_needs_them(tmp_path, recorded):
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "XDG_CACHE_HOME": str(tmp_path / "caches")}
    environment = {name: value for name, value in environment.items() if not name.startswith(KEPT)}
    kept = tmp_path / "caches" / "train_dynamics"

    def found(name):
        """Record, and count the programs that are asked for and those that are found."""
        program = (
            "import atexit, runpy, jax\n"
            "events = []\n"
            "jax.monitoring.register_event_listener(lambda event, **_: events.append(event))\n"
            "names = ('compile_requests_use_cache', 'cache_hits')\n"
            "atexit.register(lambda: print(*(events.count(f'/jax/compilation_cache/{name}') for name in names)))\n"
            "runpy.run_module('train_dynamics.train', run_name='__main__')"
        )
        command = [sys.executable, "-c", program, *ON_LITTLE, f"--recording={name}"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
        assert done.stderr == ""
        assert contents(tmp_path / name) == contents(recorded[0])
        return [int(count) for count in done.stdout.splitlines()[-1].split()]

    asked, hits = found("first")
    assert asked > hits == 0
    programs = sorted(kept.glob("*-cache"))
    # A program that XLA refuses, for an option that it does not know, is asked for as well, each time, and never kept.
    assert found("second") == [asked, len(programs)]
    assert len(programs) == 3 and sorted(kept.glob("*-cache")) == programs
    for file in kept.glob("*"):
        file.write_bytes(b"broken")
    found("third")


@pytest.mark.parametrize(
    ("caches", "home", "kept"),
    [
        ("{here}/caches", "{here}/user", "{here}/caches/train_dynamics"),
        ("", "{here}/user", "{here}/user/.cache/train_dynamics"),
        ("relative", "{here}/user", "{here}/user/.cache/train_dynamics"),
        ("relative", "nowhere", ""),
    ],
)
def test_where_programs_are_kept(monkeypatch, tmp_path, caches, home, kept):
    monkeypatch.setenv("XDG_CACHE_HOME", caches.format(here=tmp_path))
    monkeypatch.setenv("HOME", home.format(here=tmp_path))
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        enable_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == kept.format(here=tmp_path)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_without_a_home_no_program_is_kept(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(KEPT)}
    environment |= {"XDG_CACHE_HOME": "relative", "HOME": "nowhere"}
    program = (
        "import jax; from train_dynamics.training.sweep import enable_compilation_cache\n"
        "enable_compilation_cache(); jax.jit(lambda x: x + 1)(1)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"") and not list(tmp_path.iterdir())


def test_the_processor_can_count_as_several_devices(tmp_path, recorded):
    done = run("train", *ON_LITTLE, "--host_devices=2", "--recording=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "records on 2 cpu devices" in done.stdout
    one, two = (Recording(path) for path in (recorded[0], tmp_path / "out"))
    # The same operations on arrays of another shape: a few dozen roundings of losses near 2, by 6e-8 of them each.
    np.testing.assert_allclose(two.loss(two.num_iterations), one.loss(one.num_iterations), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on_and_the_same_command_does(tmp_path, number, status):
    arguments = ["--num_examples=500", "--batch_size=50", "--epochs=100", "--seeds=2", "--recording=out"]  # 21 blocks
    command = [sys.executable, "-m", "train_dynamics.train", *arguments]
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out" / "blocks" / "0").exists():
        assert running.poll() is None
        time.sleep(0.005)
    running.send_signal(number)
    _, errors = running.communicate(timeout=300)
    assert running.returncode == status
    assert errors.splitlines() == [
        "train: stopping after this block; a second signal stops it at once",
        "train: interrupted; run the same command again to continue",
    ]
    done = Recording(tmp_path / "out").num_records
    assert 0 < done < 1001
    again = run("train", *arguments, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"Continuing from iteration {done}" in again.stdout
    assert Recording(tmp_path / "out").finished
