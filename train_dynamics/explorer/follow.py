"""Recordings opened for the page, with their histories made first; and a run that goes on, followed."""

import os
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from train_dynamics.config import InputError, pluralise
from train_dynamics.explorer.server import Explored
from train_dynamics.explorer.shown import Scored, ShownRecording, read_scores
from train_dynamics.recording.format import RecordingError
from train_dynamics.recording.histories import Histories
from train_dynamics.recording.reader import Recording
from train_dynamics.study.histories import make_histories


def opened_for_showing(
    recording: Recording,
    compared: Recording | None = None,
    analysis: str | os.PathLike | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Explored:
    """Make the histories of recordings that have none yet, with a progress bar, and read the scores.

    What is damaged is told by the page.

    Args:
        recording: The recording.
        compared: Another one of the same examples.
        analysis: Directory of the analysis with the scores; the usual one if None.
        log: Takes the lines to show the user.

    Raises:
        InputError: If the second recording is of other examples, or the analysis.
    """
    if compared is not None and (different := _difference(recording, compared)):
        raise InputError.flag("compare", compared.path, f"has other {different} than {recording.path}")
    usual = recording.path / "analysis"
    if analysis is not None and not (Path(analysis) / "scores.parquet").is_file():
        raise InputError.flag("analysis", analysis, "has no scores.parquet, which train_dynamics.analyze writes")
    shown: dict[str, ShownRecording] = {}
    try:
        scored = read_scores(recording, Path(analysis) if analysis else usual)
        for one in (recording, compared):
            if one is None:
                continue
            if not one.num_records:
                raise RecordingError(f"{one.path} has no records yet; open it again when the run has written some")
            name = one.path.name or str(one.path)
            shown[name if name not in shown else f"{name} (2)"] = ShownRecording(one, made(one, log))
    except RecordingError as error:
        log(f"Damaged or not there yet: {error}")
        return Explored({}, Scored(), str(error))
    return Explored(shown, scored)


def made(recording: Recording, log: Callable[[str], None]) -> Histories:
    """Make the histories of a recording that are not there yet, and show how far it is.

    Raises:
        RecordingError: If the recording is damaged, or nothing can be written.
    """
    if recording.histories_missing:
        log(f"Reading {pluralise(recording.num_records, 'record')} of {recording.path} once, for the explorer")
    with tqdm(total=recording.num_records, unit="it", disable=None, dynamic_ncols=True, leave=False) as bar:
        return make_histories(recording, bar.update)


def follow(explored: Explored) -> None:
    """Take what runs that go on have written since."""
    for shown in explored.recordings.values():
        before = shown.recording
        if before.finished:
            continue
        paths = before.paths
        now = Recording(paths if len(paths) > 1 else paths[0])
        if now.num_records > before.num_records or now.finished:
            shown.grow(now, make_histories(now))


def _difference(first: Recording, second: Recording) -> str:
    """Name the files of the examples in which two recordings differ."""
    one, other = first.example_checksums, second.example_checksums
    return ", ".join(name for name in sorted({*one, *other}) if one.get(name) != other.get(name))
