"""Commands as `python -m` runs them, each a fork of one process that has imported what they import.

Importing takes longer than most commands do here; it was an eighth of all tests, and again a tenth in the processes
that commands start beside them: what those would do is done at once, where it is asked for. Forks order sets alike, and
leave out how Python ends: where that or the helping processes matter, `conftest.run_anew` starts a process of its own.
"""

import atexit
import functools
import multiprocessing.forkserver
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import pytest

from train_dynamics import processes

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


class Here(nullcontext):
    """In place of the processes beside a command: does everything at once, where it can be patched."""

    def submit(self, function, *arguments):
        done = Future()
        try:
            done.set_result(function(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done

    def __enter__(self):
        return self


@contextmanager
def sketching(blank: bool = False) -> Iterator[None]:
    """Analyse in this process, and save small pictures in place of figures, which take most time.

    The two dozen figures of 64 images at either end of a score, all laid out alike, are blank; with `blank`, all are.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from train_dynamics.plots import scores as score_plots
    from train_dynamics.plots import style
    from train_dynamics.report import analysis

    def sketch(figure: Figure, path: Path) -> None:
        if blank:
            figure = Figure(figsize=(1, 1))
        figure.set_layout_engine("none")
        figure.set_dpi(20)
        FigureCanvasAgg(figure).print_png(f"{path}.png")
        Path(f"{path}.svg").write_text("<svg></svg>")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "Helpers", Here)
        patch.setattr(style, "save", sketch)
        patch.setattr(score_plots, "extremes", lambda *_: Figure(figsize=(1, 1)))
        yield


@functools.cache
def _start_server() -> None:
    FORKING.set_forkserver_preload(IMPORTS)
    with mock.patch.dict(os.environ, ENVIRONMENT, clear=True):
        multiprocessing.forkserver.ensure_running()


@atexit.register
def _end_all() -> None:
    for process in multiprocessing.active_children():
        process.kill()  # what is stopped would not hear that it is asked to end, and be waited for


def _run(module: str, arguments: Sequence[str], cwd: str, streams: Sequence[str], drawn: bool) -> None:
    os.chdir(cwd)
    for number, file in enumerate(streams, 1):
        os.dup2(os.open(file, os.O_WRONLY), number)
    from train_dynamics.report import analysis

    sys.argv = [f"{module}.py", *arguments]
    if "--distributed" not in arguments:  # which meets others in a process that can be left
        processes.Helpers = analysis.Helpers = Here
    with nullcontext() if drawn else sketching():
        runpy.run_module(f"train_dynamics.{module}", run_name="__main__", alter_sys=True)


class Fork:
    """A command that has begun, with the environment as it was when the tests began."""

    def __init__(self, module: str, *arguments: str, cwd: Path | None = None, drawn: bool = False) -> None:
        _start_server()
        self._streams = [tempfile.NamedTemporaryFile("r") for _ in range(2)]  # noqa: SIM115
        call = module, arguments, str(cwd or Path.cwd()), [stream.name for stream in self._streams], drawn
        self._process = FORKING.Process(target=_run, args=call, daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

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
