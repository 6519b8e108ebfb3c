"""Makes sure that only one process writes to a directory, and only to a recording or an empty directory."""

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from train_dynamics.config import InputError, StudyConfig
from train_dynamics.recording.format import read_header
from train_dynamics.recording.remote import check_local

PATIENCE = 0.2


def is_begun(path: Path, config: StudyConfig) -> bool:
    """Tell whether `path` already holds a recording of this configuration, finished or not. False if it holds nothing.

    Raises:
        InputError: If it holds something else, or a recording that another run is writing.
    """
    check_local(path)
    if "\\" in str(path):
        raise InputError.flag("recording", path, "must be a local path without backslashes")
    try:
        found = {entry.name for entry in path.iterdir()} if path.is_dir() else None
        exists = path.exists()
    except OSError as error:
        raise InputError.flag("recording", path, f"cannot be read: {error.strerror}") from error
    if not exists or (found is not None and found <= {"config.json.incomplete"}):  # of a run killed at its start
        return False
    if found is None:
        raise InputError.flag("recording", path, "exists and is not a directory; choose another")
    if "config.json" not in found:
        raise InputError.flag("recording", path, "holds other files and is not a recording; choose another directory")
    if is_being_written(path):
        raise busy(path)
    header = read_header(path)
    differences = config.differences(StudyConfig.from_dict(header["config"]))
    if differences:
        raise InputError.flag(
            "recording",
            path,
            f"holds a recording of another configuration ({'; '.join(differences)}); choose another directory",
        )
    return True


def check_writable(path: Path) -> None:
    """Check that a directory can be written, or made if it does not exist.

    Raises:
        InputError: If it cannot.
    """
    try:
        tempfile.TemporaryFile(dir=existing(path)).close()
    except OSError as error:
        raise InputError.flag("recording", path, f"cannot be written: {error.strerror}") from error


def existing(path: Path) -> Path:
    """Find the innermost existing directory of a path."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def busy(path: Path) -> InputError:
    """Make the error for a recording that another process is writing."""
    return InputError.flag(
        "recording", path, "is being written by another run; wait for it, or choose another directory"
    )


def is_being_written(path: Path) -> bool:
    """Tell whether a run is writing to a recording right now."""
    try:
        os.close(lock(path, fcntl.LOCK_SH))
    except BlockingIOError:
        return True
    return False


@contextlib.contextmanager
def locked(path: Path, taken: InputError, patience: float = 0.0) -> Iterator[None]:
    """Keep other processes from writing to a directory. `taken` is raised if one already does."""
    try:
        fd = lock(path, patience=patience)
    except BlockingIOError:
        raise taken from None
    try:
        yield
    finally:
        os.close(fd)


def lock(path: Path, kind: int = fcntl.LOCK_EX, patience: float = 0.0) -> int:
    """Lock a directory for as long as the returned file descriptor is open.

    Args:
        path: The directory.
        kind: `fcntl.LOCK_EX` to write, or `fcntl.LOCK_SH` to check whether one could.
        patience: Seconds to wait for other processes, which may only be checking.

    Raises:
        BlockingIOError: If another process has locked it.
    """
    fd = os.open(path, os.O_RDONLY)
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < until:
                time.sleep(0.02)
                continue
            os.close(fd)
            raise
        except OSError:
            pass  # some network file systems have no locks, and recording into them is still better than not
        return fd
