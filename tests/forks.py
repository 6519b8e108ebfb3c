"""Commands as `python -m` runs them, each a fork of one process that has imported what they import.

Importing takes longer than most commands do here; it was an eighth of all tests.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(
    [
        __name__,
        "absl.app",
        "tensorflow_datasets",
        "train_dynamics.analysis",
        "train_dynamics.further_training",
        "train_dynamics.plots.film",
        "train_dynamics.plots.score_figures",
        "train_dynamics.sweep",
        "train_dynamics.verification",
    ]
)


def _run(module: str, arguments: Sequence[str], cwd: str, streams: Sequence[str]) -> None:
    os.chdir(cwd)
    for number, file in enumerate(streams, 1):
        os.dup2(os.open(file, os.O_WRONLY), number)
    sys.argv = [f"{module}.py", *arguments]
    runpy.run_module(f"train_dynamics.{module}", run_name="__main__", alter_sys=True)


class Fork:
    """A command that has begun, with the environment that the first one had."""

    def __init__(self, module: str, *arguments: str, cwd: Path | None = None) -> None:
        self._streams = [tempfile.NamedTemporaryFile("r") for _ in range(2)]  # noqa: SIM115
        names = [stream.name for stream in self._streams]
        self._process = FORKING.Process(
            target=_run, args=(module, arguments, str(cwd or Path.cwd()), names), daemon=True
        )
        with mock.patch.dict(os.environ, JAX_NUM_CPU_DEVICES="1"):
            self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> list[str]:
        """Wait for it, and give what it said on the standard output and the standard error."""
        self._process.join(timeout)
        assert self.returncode is not None, f"still there after {timeout} s"
        return [stream.read() for stream in self._streams]
