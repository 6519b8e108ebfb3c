"""Processes that work beside this one, because Python runs only one thread at a time."""

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, BinaryIO

from absl import logging

from train_dynamics.commands import seldom_collect_garbage
from train_dynamics.config import InputError

MOST = 4
START = "import sys; sys.path[:] = sys.argv[1:]; from train_dynamics.processes import serve; serve()"


class Helpers:
    """As many helper processes as there are processors, but at most `most`, each doing one call at a time.

    They are not forks, which do not go with threads. Unlike those of `multiprocessing`, they do not import the main
    module again, so a script needs no guard. They ignore Ctrl-C: leaving the context ends them, and so does the end of
    this process, in whatever way. (loky's helpers are as fast, but finish their call if this process is killed; those
    of `concurrent.futures` import the main module.)

    Args:
        most: Largest number of processes.

    Example:
        >>> with Helpers() as helpers:
        ...     helpers.submit(pow, 2, 3).result()
        8
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most

    def __enter__(self) -> "Helpers":
        """Start the processes, without waiting until they have started."""
        count = min(self._most, os.cpu_count() or 1)
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-c", START, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                process_group=0,
            )
            for _ in range(count)
        ]
        self._idle: queue.SimpleQueue[subprocess.Popen] = queue.SimpleQueue()
        for process in self._processes:
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(count)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the processes, whatever they are doing."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()
        self._threads.shutdown()
        for process in self._processes:
            with contextlib.suppress(BrokenPipeError), process:  # closes its pipes and waits for it
                pass

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        """Call a function in the next free process. Its arguments and its result are pickled.

        If the function raises an exception, it is raised here again, with its traceback as a note. If the process was
        killed, an `InputError` is raised.
        """
        return self._threads.submit(self._call, pickle.dumps((function, arguments)))

    def _call(self, task: bytes) -> Any:
        process = self._idle.get()
        try:
            pickle.dump(task, process.stdin)
            process.stdin.flush()
            result, error = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as broken:
            if (status := process.wait()) == -signal.SIGKILL:
                raise InputError(
                    "a helper process was killed, probably because the system ran out of memory; use fewer examples"
                ) from broken
            raise RuntimeError(f"a helper process ended with status {status}") from broken
        finally:
            self._idle.put(process)
        if error is not None:
            raise error
        return result


def serve() -> None:
    """Do what the process that started this one asks for, until that process ends."""
    seldom_collect_garbage()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed must not get among the answers
    sys.stdout = sys.stderr  # which keeps nothing back that would be lost at the end
    logging.set_verbosity(logging.FATAL)  # what is wrong is raised; a command's error is one line
    tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_take, args=(sys.stdin.buffer, tasks), daemon=True).start()
    while True:
        task = tasks.get()
        try:
            function, arguments = pickle.loads(task)
            answer = pickle.dumps((function(*arguments), None))
        except Exception as error:
            error.add_note(traceback.format_exc())
            answer = pickle.dumps((None, error))
        answers.write(answer)
        answers.flush()


def _take(stream: BinaryIO, tasks: queue.SimpleQueue[bytes]) -> None:
    """Read tasks in a thread of its own, which notices at once when the pipe is closed."""
    try:
        while True:
            tasks.put(pickle.load(stream))
    finally:
        os._exit(1)
