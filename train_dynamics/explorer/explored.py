"""Opens recordings for the page: makes their histories first, and follows runs that are still going on."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

from train_dynamics.config import InputError
from train_dynamics.explorer.shown import Scored, ShownRecording, read_scores
from train_dynamics.progress import Progress
from train_dynamics.recording.format import RecordingError
from train_dynamics.recording.histories import Histories
from train_dynamics.recording.reader import Recording
from train_dynamics.study.histories import make_histories
from train_dynamics.study.stored_lineages import read_lineages


class Explored:
    """What the page shows.

    Args:
        recordings: The recordings by name. The first one defines the examples.
        scored: What its analysis says about each example.
        problem: Why there is nothing to show. Empty if there is something.
    """

    def __init__(self, recordings: dict[str, ShownRecording], scored: Scored, problem: str = "") -> None:
        self.recordings, self.scored, self.problem = recordings, scored, problem
        self._growing = threading.Lock()

    def grow(self) -> None:
        """Read what running recordings have written since."""
        if not self._growing.acquire(blocking=False):
            return  # another request does
        try:
            for shown in self.recordings.values():
                before = shown.recording
                if before.finished:
                    continue
                shown.live = before.being_written  # asked first, or its last records could be missed for good
                now = before.reopened()
                if now.num_records > before.num_records or now.finished:
                    shown.grow(now, made(now))
        finally:
            self._growing.release()


def opened_for_showing(
    recording: Recording,
    compared: Recording | None = None,
    analysis: str | os.PathLike | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Explored:
    """Make missing histories of the recordings, with a progress bar, and read the scores.

    If a recording is damaged, the page says so.

    Args:
        recording: The recording.
        compared: Another recording of the same examples. None if there is none.
        analysis: Directory of the analysis with the scores. None means the usual one.
        log: Function that prints a line for the user.

    Raises:
        InputError: If the second recording, or the analysis, has other examples.
    """
    if compared is not None and (different := _difference(recording, compared)):
        raise InputError.flag("compare", compared.path, f"has other {different} than {recording.path}")
    if analysis is not None and not (Path(analysis) / "scores.parquet").is_file():
        raise InputError.flag("analysis", analysis, "has no scores.parquet, which train_dynamics.analyze writes")
    shown: dict[str, ShownRecording] = {}
    try:
        analysed = Path(analysis) if analysis else recording.path / "analysis"
        scored, lineages = read_scores(recording, analysed), read_lineages(recording, analysed)
        for one in (recording, compared):
            if one is None:
                continue
            if not one.num_records:
                raise RecordingError(f"{one.path} has no records yet; open it again when the run has written some")
            name = one.path.name or str(one.path)
            with Progress("Computing histories", one.num_records, "records", leave=False) as bar:
                histories = made(one, log, bar.update)
            shown[name if name not in shown else f"{name} (2)"] = ShownRecording(
                one, histories, lineages if one is recording else None
            )
    except RecordingError as error:
        log(f"Damaged or missing: {error}")
        return Explored({}, Scored(), str(error))
    return Explored(shown, scored)


def made(
    recording: Recording,
    log: Callable[[str], None] = lambda line: None,
    advance: Callable[[int], object] = lambda records: None,
) -> Histories:
    """Make the missing histories of a recording; if it is read-only, in the user's cache directory.

    Args:
        recording: The recording.
        log: Function that prints a line for the user.
        advance: Called with the number of records after every few.

    Raises:
        RecordingError: If the recording is damaged, or if nothing can be written anywhere.
    """
    try:
        return make_histories(recording, advance)
    except RecordingError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "train_dynamics" / "histories"
        log(f"{error}; the histories are stored in {cache} instead")
        return make_histories(recording, advance, cache)


def _difference(first: Recording, second: Recording) -> str:
    """Name the example files in which two recordings differ."""
    one, other = first.example_checksums, second.example_checksums
    return ", ".join(name for name in sorted({*one, *other}) if one.get(name) != other.get(name))
