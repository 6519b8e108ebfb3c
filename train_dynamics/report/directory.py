"""The directory of an analysis: which files in it belong to an analysis, and a lock against a second one."""

import contextlib
import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from train_dynamics.config import InputError
from train_dynamics.recording.locks import locked
from train_dynamics.recording.reader import Recording
from train_dynamics.study.tables import PARTS

KINDS = (".png", ".svg")
EVENTS = ".train_dynamics"  # at the end of our event files, which tells them from others in `tensorboard`
STUDY = ("scores.csv", "scores.parquet", "curves.csv", "claims.json", "report.html")  # of every analysis


def check_output(output: Path, recording: Recording) -> None:
    """Check that a directory is new, empty, or holds an earlier analysis, and is not inside another recording.

    Raises:
        InputError: If it does not, or is.
    """
    inside = output.resolve().parent
    own = {path.resolve() for path in recording.paths if isinstance(path, Path)}
    if (inside / "config.json").is_file() and inside not in own:
        raise InputError.flag("output", output, f"is inside another recording, {inside}; choose another directory")
    if output.exists() and any(output.iterdir()) and not (output / "analysis.json").is_file():
        raise InputError.flag(
            "output", output, "holds other files but not an earlier analysis; choose another directory"
        )


@contextlib.contextmanager
def cleared(output: Path, new: Collection[str], log: Callable[[str], None]) -> Iterator[None]:
    """Make the directory, remove the files of an earlier analysis, and keep other analyses out of it.

    Args:
        output: The directory.
        new: The files to be written. Their removal is not mentioned to the user.
        log: Function that prints a line for the user.

    Raises:
        InputError: If another analysis is writing there.
    """
    (output / "figures").mkdir(parents=True, exist_ok=True)
    taken = InputError.flag(
        "output", output, "is being written by another analysis; wait for it, or choose another directory"
    )
    with locked(output, taken):
        log(f"Writing figures and tables into {output}")
        _remove_earlier(output, new, log)
        yield


def _remove_earlier(output: Path, new: Collection[str], log: Callable[[str], None]) -> None:
    """Remove the files of an earlier analysis, so that none of them remain beside new ones after an interruption."""
    for events in (output / "tensorboard").glob(f"*{EVENTS}"):
        events.unlink()
    earlier = _files_of(output)
    for name in earlier:
        (output / name).unlink(missing_ok=True)
    if gone := [name for name in earlier if name not in new and Path(name).suffix not in KINDS]:
        log(f"Removed from the earlier analysis in {output}: {', '.join(gone)}")


def _files_of(output: Path) -> list[str]:
    """List the files of an earlier analysis."""
    known = {*STUDY, *(name for names in PARTS.values() for name in names)}
    try:
        names = json.loads((output / "analysis.json").read_text())["files"]
        return [
            name
            for name in names
            if name in known or (Path(name).parent == Path("figures") and Path(name).suffix in KINDS)
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
