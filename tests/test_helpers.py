import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from train_dynamics.config import InputError
from train_dynamics.processes import Helpers

PARENT = """
import os, time
from train_dynamics.processes import Helpers
with Helpers() as helpers:
    print(*{helpers.submit(os.getpid).result() for _ in range(20)}, flush=True)
    helpers.submit(exec, "import time; print('asleep', flush=True); time.sleep(600)").result()
"""


def wrong():
    raise InputError("one line")


def alive(pid):
    """Whether a process is there, and not just waiting for somebody to ask how it ended, as not every system does."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as stat:
            return ") Z " not in stat.read()
    except ProcessLookupError:
        return False
    except FileNotFoundError:  # gone since, or a system without /proc: asking once more tells
        return True


def gone(pids, seconds=120):
    until = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(alive, pids))


def test_calls_are_done_in_other_processes_and_what_they_print_is_no_answer():
    with Helpers() as helpers:
        calls = [helpers.submit(pow, 2, k) for k in range(30)]
        helpers.submit(print, "in between").result()
        assert [call.result() for call in calls] == [2**k for k in range(30)]
        assert helpers.submit(os.getpid).result() != os.getpid()


def test_what_they_print_appears_on_the_standard_error_and_what_they_log_does_not():
    program = (
        "from absl import logging; from train_dynamics.processes import Helpers\n"
        "with Helpers(1) as helpers:\n"
        "    helpers.submit(print, 'printed').result(), helpers.submit(logging.error, 'logged').result()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "printed\n")


def test_there_are_no_more_than_asked_for():
    with Helpers(1) as helpers:
        assert len({helpers.submit(os.getpid).result() for _ in range(9)}) == 1


def test_a_helper_that_is_killed_is_no_failure_of_ours():
    with (
        Helpers(1) as helpers,
        pytest.raises(InputError, match="a helper process was killed, probably because the system ran out of memory"),
    ):
        helpers.submit(os.kill, helpers.submit(os.getpid).result(), signal.SIGKILL).result()


def test_an_exception_comes_back_with_its_traceback_and_others_go_on():
    with Helpers() as helpers:
        with pytest.raises(InputError) as caught:
            helpers.submit(wrong).result()
        assert str(caught.value) == "one line" and "in wrong" in caught.value.__notes__[0]
        assert helpers.submit(abs, -1).result() == 1


def test_a_helper_that_dies_is_an_error_and_so_is_asking_it_again():
    with Helpers() as helpers:
        for _ in range(9):  # more than there are helpers
            with pytest.raises(RuntimeError, match="a helper process ended with status 3"):
                helpers.submit(os._exit, 3).result()


def test_leaving_ends_what_they_are_doing():
    """It takes seconds, or minutes on a busy machine; waiting for only one of their calls would take half an hour."""
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Helpers() as helpers:
        pids = [helpers.submit(os.getpid).result()]
        for _ in range(9):
            helpers.submit(time.sleep, 1800)
        raise KeyboardInterrupt
    assert time.monotonic() - began < 300 and not any(map(alive, pids))


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_they_end_with_the_process_that_started_them(by):
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        try:
            pids = [int(word) for word in parent.stdout.readline().split()]
            assert pids and all(map(alive, pids))
            assert parent.stderr.readline() == "asleep\n"  # one of them, in the midst of a call
            # Again, as people do: one that comes after Python looked for signals and before it waits for a lock, which
            # on a busy machine happens, is noticed when the lock is had, and here that is never.
            for _ in range(12):
                parent.send_signal(by)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    parent.wait(10)
                    break
            assert parent.returncode not in (None, 0)
        finally:
            parent.kill()
    assert gone(pids)
