"""Commands as `python -m` runs them, each a fork of one process that has imported what they import.

Importing takes longer than most commands do here; it was an eighth of all tests. Forks order sets alike, and leave out
how Python ends: where that matters, `conftest.run_anew` starts a process of its own.
"""

import atexit
import functools
import multiprocessing.forkserver
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

os.fsync = lambda fd: None  # tests kill processes, and cut no power: waiting for the disk would prove nothing

ENVIRONMENT = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}  # as the tests begin
FORKING = multiprocessing.get_context("forkserver")
IMPORTS = [
    __name__,
    "absl.app",
    "tensorflow_datasets",
    "train_dynamics.report.analysis",
    "train_dynamics.training.checkpoints",
    "train_dynamics.training.further",
    "train_dynamics.plots.film",
    "train_dynamics.plots.score_figures",
    "train_dynamics.training.sweep",
    "train_dynamics.recording.verification",
]


@functools.cache
def _start_server() -> None:
    FORKING.set_forkserver_preload(IMPORTS)
    with mock.patch.dict(os.environ, ENVIRONMENT, clear=True):
        multiprocessing.forkserver.ensure_running()


@atexit.register
def _end_all() -> None:
    for process in multiprocessing.active_children():
        process.kill()  # what is stopped would not hear that it is asked to end, and be waited for


def _run(module: str, arguments: Sequence[str], cwd: str, streams: Sequence[str]) -> None:
    os.chdir(cwd)
    for number, file in enumerate(streams, 1):
        os.dup2(os.open(file, os.O_WRONLY), number)
    sys.argv = [f"{module}.py", *arguments]
    runpy.run_module(f"train_dynamics.{module}", run_name="__main__", alter_sys=True)


class Fork:
    """A command that has begun, with the environment as it was when the tests began."""

    def __init__(self, module: str, *arguments: str, cwd: Path | None = None) -> None:
        _start_server()
        self._streams = [tempfile.NamedTemporaryFile("r") for _ in range(2)]  # noqa: SIM115
        call = module, arguments, str(cwd or Path.cwd()), [stream.name for stream in self._streams]
        self._process = FORKING.Process(target=_run, args=call, daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> list[str]:
        """Wait for it, and give what it said on the standard output and the standard error."""
        self._process.join(timeout)
        late = self.returncode is None
        if late:
            self._process.kill()
            self._process.join()
        said = []
        for stream in self._streams:
            with stream:
                said.append(stream.read())
        assert not late, (f"still there after {timeout} s", said)
        return said
