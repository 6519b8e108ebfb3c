"""Makes histories: measures of every example at every record, computed once and stored in the recording."""

import contextlib
import errno
import itertools
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from threadpoolctl import threadpool_limits

from train_dynamics import __version__
from train_dynamics.config import InputError
from train_dynamics.dynamics.scores.margin import margin
from train_dynamics.recording.blocks import Block
from train_dynamics.recording.format import RecordingError, sealed, written_whole
from train_dynamics.recording.histories import (
    CHECKSUM,
    EXAMPLES,
    FORMAT,
    GROUP,
    Histories,
    OfOne,
    checked_of,
    checksum_of_rows,
    directory_of,
    groups_of,
    measures_of,
    padded,
    place_of,
    read_header,
)
from train_dynamics.recording.locks import PATIENCE, locked
from train_dynamics.recording.reader import Recording
from train_dynamics.recording.remote import AnyPath, Url
from train_dynamics.recording.storage import write_array
from train_dynamics.study.motion import each_alignment

MOST_RECORDS = 256
FILE_BYTES = 2**23
SPAN_BYTES = 2**29  # of all seeds and measures of a span, which are in memory while it is made
AT_ONCE = 16  # records that a thread computes before it takes others


def make_histories(
    recording: Recording, advance: Callable[[int], object] = lambda records: None, path: Path | None = None
) -> Histories:
    """Make those histories of a recording that do not exist yet, and open them.

    Each record is read once. For an unfinished recording, only complete spans are made; call it again after the
    recording has grown. If it is interrupted, the next call continues. Memory does not grow with the number of records.

    Args:
        recording: The recording, finished or not. Several recordings read as one each get their own histories.
        advance: Called with a number of records after every few, first with those that already exist; with several
            recordings, for each. If it raises an error, making stops after a few more records.
        path: Directory for the histories, if the recording cannot be written to.

    Raises:
        RecordingError: If the recording is damaged, if existing histories belong to another recording, or if they
            cannot be written.
        InputError: If another process is making them.

    Example:
        >>> make_histories(Recording("recordings/mini_mnist")).num_records
        1411
    """
    for part in recording.parts:
        directory = directory_of(part, path)
        try:
            _make(part, directory, advance)
        except OSError as error:
            raise RecordingError(f"{directory} could not be written: {error.strerror or error}") from error
    return Histories(recording, path)


def of_block(
    recording: Recording, block: Block, rows: Sequence[int] | None = None, checked: Collection[str] = ()
) -> dict[str, Shaped[np.ndarray, "s t n"]]:
    """Compute the measures of every example at the records of a block.

    Args:
        recording: The recording.
        block: One of its blocks.
        rows: Which of the block's records, ascending. Default: all.
        checked: Arrays of gradients whose checksums are computed, for each `GROUP` examples.

    Returns:
        Measures under the names that `measures_of` gives, in float32, with predictions as recorded; and checksums `[s,
        t, group]` under `CHECKSUM` and the name of the array.
    """
    iterations = block.iterations if rows is None else block.iterations[list(rows)]
    lead = len(recording.seeds), len(iterations), len(recording.labels)
    found = {"loss": np.stack(list(block.take("loss", iterations)), axis=1)}
    # The error is a factor of the gradients of the default network's last layer, and need not be read twice.
    last = recording.contents.layers.get(recording.contents.output_layer)
    is_factor = last is not None and last.layout == "factored"
    largest = np.empty(lead, np.float32)
    for kept in recording.contents.layers.values():
        norm, cosine = (np.empty(lead, np.float32) for _ in range(2))
        groups = range(groups_of(lead[-1]))
        sums = {name: np.empty((*lead[:2], len(groups)), np.uint32) for name in kept.arrays if name in checked}
        for t, of_seeds in enumerate(each_alignment(recording, block, kept.name, iterations)):
            for s, (parts, alignment) in enumerate(of_seeds):
                norm[s, t], cosine[s, t] = alignment.norm, alignment.cosine
                for stored, values in zip(kept.arrays, parts[-len(kept.arrays) :], strict=bool(sums)):
                    if stored in sums:
                        sums[stored][s, t] = [checksum_of_rows(values[GROUP * k : GROUP * (k + 1)]) for k in groups]
                if is_factor and kept is last:
                    largest[s, t] = _largest(parts[-1])
        found |= {f"norm.{kept.key}": norm, f"alignment.{kept.key}": cosine} | {
            f"{CHECKSUM}{name}": values for name, values in sums.items()
        }
    if recording.contents.classes:
        found["prediction"] = np.stack(list(block.take("prediction", iterations)), axis=1)
        for t, error in enumerate(() if is_factor else recording.each_error(block, iterations)):
            largest[:, t] = _largest(error)
        found["margin"] = margin(found["loss"], largest)
    return found


def _largest(error: Float[np.ndarray, "*s n c"]) -> Float[np.ndarray, "*s n"]:
    """Find the largest probability of another class. At the label p - 1 is never above 0, so it does not interfere.

    Going through the classes one by one takes a fraction of the time.
    """
    return np.ascontiguousarray(np.moveaxis(error, -1, 0)).max(axis=0)


def span_of(num_examples: int, num_seeds: int, num_measures: int) -> int:
    """Choose how many records make a span: a power of two, limited by the sizes of a file and of working memory.

    Example:
        >>> span_of(6_000, 10, 5), span_of(60_000, 10, 5)
        (256, 32)
    """
    row = 4 * padded(num_examples)
    most = min(FILE_BYTES // row, SPAN_BYTES // (row * num_seeds * num_measures), MOST_RECORDS)
    return 1 << max(most, 1).bit_length() - 1


def _header(part: Recording, directory: Path) -> dict[str, Any]:
    """Read what the histories' header says; if there is none, choose it and write it."""
    file = directory / "histories.json"
    if not file.exists():
        measures = measures_of(part.contents)
        header = {
            "format": FORMAT,
            "recording": part.checksum,
            "measures": measures,
            "checked": checked_of(part),
            "layers": part.layers,
            "span": span_of(len(part.labels), len(part.seeds), len(measures)),
            "versions": {"train-dynamics": __version__, "numpy": np.__version__},
        }
        with written_whole(file) as new:
            new.write_text(json.dumps(sealed(header), indent=2) + "\n")
    return read_header(part, directory)


def _missing(part: Recording, directory: Path, span: int) -> list[tuple[int, int]]:
    """List the spans to make: complete ones, and the last one of a finished recording, even if it is short."""
    stop = _planned(part, span)
    spans = [(first, min(first + span, stop)) for first in range(0, stop, span)]
    return [(first, end) for first, end in spans if not (directory / f"{first}-{end}").exists()]


def _make(part: Recording, directory: AnyPath, advance: Callable[[int], object]) -> None:
    """Make what is missing in one recording's histories."""
    if isinstance(directory, Url):
        made = OfOne(part, directory) if (directory / "histories.json").exists() else None
        if made is None or made.num_records < _planned(part, made.span):
            raise OSError(errno.EROFS, "it is a URL, and URLs can only be read")
        advance(made.num_records)
        return
    if (directory / "histories.json").exists():
        span = read_header(part, directory)["span"]
        if not _missing(part, directory, span):  # so that nobody needs to write there
            advance(_planned(part, span))
            return
    directory.mkdir(parents=True, exist_ok=True)
    taken = InputError(f"{directory} is being made by another process; wait for it")
    # There are more threads than processors, for some wait for the disk.
    workers = min(8, 2 * (os.cpu_count() or 1))
    with locked(directory, taken, PATIENCE), threadpool_limits(1):
        header = _header(part, directory)
        span, checked = header["span"], header["checked"]
        for left in directory.glob("*-*.incomplete"):
            shutil.rmtree(left)  # of a run that was killed, and never more than that
        missing = _missing(part, directory, span)
        advance(_planned(part, span) - sum(stop - first for first, stop in missing))
        for first, stop in missing:
            with _whole(directory, first, stop) as new, ThreadPoolExecutor(workers) as threads:
                _write(part, new, _measured(part, first, stop, checked, threads, advance), first, threads)


def _planned(part: Recording, span: int) -> int:
    """Count the records whose histories can be made now: for an unfinished recording, complete spans only."""
    return part.num_records if part.finished else part.num_records // span * span


@contextlib.contextmanager
def _whole(directory: Path, first: int, stop: int) -> Iterator[Path]:
    """Yield a temporary name to write a span to, and rename it when it is complete."""
    path = directory / f"{first}-{stop}"
    new = path.with_name(path.name + ".incomplete")
    new.mkdir()  # at once, or what cannot be written would be computed first
    try:
        yield new
        new.rename(path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    for shorter in directory.glob(f"{first}-*"):
        if shorter != path:
            shutil.rmtree(shorter)  # of a loop that has been gone on with since


def _measured(
    part: Recording,
    first: int,
    stop: int,
    checked: Sequence[str],
    threads: ThreadPoolExecutor,
    advance: Callable[[int], object],
) -> dict[str, Shaped[np.ndarray, "s t padded"]]:
    """Compute the measures of a span, and the checksums of the arrays `checked`."""
    shape = len(part.seeds), stop - first, padded(len(part.labels))
    prediction = next(part.blocks()).described("prediction")[1] if part.contents.classes else None
    measures = measures_of(part.contents)
    room = {name: np.zeros(shape, prediction if name == "prediction" else np.float32) for name in measures}
    groups = padded(groups_of(len(part.labels)))
    room |= {f"{CHECKSUM}{name}": np.zeros((*shape[:2], groups), np.uint32) for name in checked}

    def fill(work: tuple[Block, range, int]) -> int:
        block, rows, place = work
        for name, values in of_block(part, block, rows, checked).items():
            room[name][:, place : place + len(rows), : values.shape[-1]] = values
        return len(rows)

    for done in threads.map(fill, _work(part, first, stop)):
        advance(done)
    return room


def _work(part: Recording, first: int, stop: int) -> Iterator[tuple[Block, range, int]]:
    """Divide the records of a span: by block, with their rows in it, and their place in the span."""
    begin = 0
    for block in part.blocks():
        end = begin + len(block.iterations)
        for start in range(max(begin, first), min(end, stop), AT_ONCE):
            yield block, range(start - begin, min(start + AT_ONCE, end, stop) - begin), start - first
        begin = end


def _write(
    part: Recording,
    new: Path,
    room: dict[str, Shaped[np.ndarray, "s t padded"]],
    first: int,
    threads: ThreadPoolExecutor,
) -> None:
    """Write the measures of a span."""

    def write(work: tuple[str, int]) -> None:
        name, s = work
        seed = int(part.seeds[s])
        place = place_of(part.checksum, first, seed, name)
        write_array(new / str(seed) / name, room[name][s], rows=EXAMPLES, place=place)

    list(threads.map(write, itertools.product(room, range(len(part.seeds)))))
