"""What commands do with their standard streams, and with signals before there is anything to lose."""

import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

from train_dynamics import commands
from train_dynamics.__main__ import COMMANDS
from train_dynamics.config import FIELDS, flag_name
from train_dynamics.recording.reader import Recording

TINY = "--num_examples=20 --batch_size=20 --epochs=1 --seeds=1 --recording=out"
UNREAD = (
    "exec 3> >(:); wait $!;"  # who could read what is written there has ended, which in `program | :` it may not have
)


def shell(command: str, cwd) -> subprocess.CompletedProcess:
    command = command.replace("python", sys.executable)
    return subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=cwd, capture_output=True, text=True)


def test_closed_streams_do_no_harm(tmp_path):
    done = shell(f"python -m train_dynamics.train {TINY} <&- >&- 2>&-", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert Recording(tmp_path / "out").finished
    done = shell("python -m train_dynamics.analyze --recording=nowhere 2>&-", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


@pytest.mark.parametrize("name", ["train", "analyze", "animate", "verify", "further"])
def test_to_help_is_no_mistake(tmp_path, name):
    done = shell(f"python -m train_dynamics.{name} --help", tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and "--recording" in done.stdout


def test_help_begins_with_what_matters_and_fits_the_terminal(tmp_path):
    text = shell("COLUMNS=60 python -m train_dynamics.train --help", tmp_path).stdout
    body = text[text.index("Start with these:") :].splitlines()
    assert all(len(line) <= 60 for line in body)
    titles = [line.removesuffix(":") for line in body if line and line[0] != " "]
    assert titles[:5] == ["Start with these", "Data", "Network", "Training", "What is recorded"]
    assert titles[5:] == ["Devices and planning", "Several processes"]
    named = [re.match(r"  --(\[no\])?(\w+): ", line)[2] for line in body if line.startswith("  --")]
    assert named[:3] == ["recording", "dataset", "model"]
    assert {flag_name(name) for name in FIELDS} < set(named) and len(named) == len(set(named))


def test_all_commands_have_one_name(tmp_path):
    done = shell("python -m train_dynamics", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)
    done = shell("python -m train_dynamics trian --recording=out", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"train-dynamics: 'trian' is not a command; the commands are {', '.join(COMMANDS)}\n"
    done = shell("python -m train_dynamics verify --recording=nowhere", tmp_path)
    assert (done.returncode, done.stderr) == (1, "verify: nowhere is not a directory\n")
    done = shell(f"python -m train_dynamics train {TINY}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and Recording(tmp_path / "out").finished
    done = shell("python -m train_dynamics verify --help", tmp_path)
    assert done.stdout.startswith("Check that a recording is complete and correct.")


@pytest.mark.parametrize("buffered", ["env -u PYTHONUNBUFFERED", "env PYTHONUNBUFFERED=1"])
def test_an_output_that_cannot_be_written_is_one_line(tmp_path, small_path, buffered):
    shutil.copytree(small_path, tmp_path / "copy")
    for command in ("train --help", "verify --recording=copy", "analyze --recording=copy --parts="):
        done = shell(f"{buffered} python -m train_dynamics.{command} > /dev/full", tmp_path)
        name = command.split()[0]
        assert done.stderr == f"{name}: the standard output cannot be written: No space left on device\n"
        assert done.returncode == 1
    done = shell(f"{UNREAD} {buffered} python -m train_dynamics.analyze --recording=copy --parts= >&3", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_who_stops_reading_gets_no_traceback(tmp_path):
    for buffered in ("env -u PYTHONUNBUFFERED", "env PYTHONUNBUFFERED=1"):
        done = shell(f"{UNREAD} {buffered} python -m train_dynamics.train --help >&3", tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def signalled(program: str, number: int, cwd) -> tuple[str, int]:
    """Send a signal when a program says that it reads, and give its errors and its exit status."""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "reading\n"
            process.send_signal(number)
            errors = process.communicate(timeout=120)[1]  # at once; reading would take a quarter of an hour
        finally:
            process.kill()
    return errors, process.returncode


@pytest.mark.parametrize(
    ("number", "errors", "status"), [(signal.SIGINT, "train: interrupted\n", 130), (signal.SIGTERM, "", -15)]
)
def test_while_the_examples_are_read_a_signal_ends_the_command_at_once(tmp_path, number, errors, status):
    """Reading them never ends here; the program says so when it has imported JAX and waits for them."""
    program = (
        "import sys, time\n"
        "from train_dynamics import processes, train\n"
        "class Stuck(processes.Helpers):\n"
        "    def submit(self, *task):\n"
        "        call = super().submit(time.sleep, 1000)\n"
        "        result, call.result = call.result, lambda: print('reading', flush=True) or result()\n"
        "        return call\n"
        "train.Helpers = Stuck\n"
        f"sys.argv[1:] = '{TINY}'.split()\n"
        "train.define_config_flags(); train.run('train', train.main)"
    )
    assert signalled(program, number, tmp_path) == (errors, status)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_of_either_kind_ends_the_program(second, capfd):
    first = {signal.SIGINT: signal.SIGTERM, signal.SIGTERM: signal.SIGINT}[second]
    before = {number: signal.getsignal(number) for number in (first, second)}
    try:
        noted = commands.stop_on_signals("once more")
        signal.raise_signal(first)
        assert (noted, capfd.readouterr().err) == ([first], "once more\n")
        assert signal.getsignal(first) == signal.getsignal(second) == signal.SIG_DFL
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_while_held_out_examples_are_read_a_signal_ends_the_command_at_once(small_path, tmp_path):
    """Reading them never ends here."""
    program = (
        "import sys, time\n"
        "from train_dynamics import further\n"
        "from train_dynamics.training import further as further_training\n"
        "def read(*_): print('reading', flush=True); time.sleep(1000)\n"
        "further_training.load_dataset = read\n"
        f"sys.argv[1:] = ['--recording={shutil.copytree(small_path, tmp_path / 'copy')}']\n"
        "further.run('further', further.main)"
    )
    assert signalled(program, signal.SIGINT, tmp_path) == ("further: interrupted\n", 130)
