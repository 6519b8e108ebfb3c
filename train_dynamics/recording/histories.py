"""Reads histories: how every example fared at every record, quickly both by example and by iteration.

    RECORDING/histories/ histories.json                            of which recording, its measures, and the length of a
    span <first>-<stop>/<seed>/<measure>/          an array [t, n]: the records from number `first` on, before `stop`

`train_dynamics.study.histories` makes them from the blocks. A span appears under its name only when it is complete.
Examples are padded with zeros to a multiple of 64, and each 64 of them are one piece of the file.
"""

import contextlib
import functools
import json
import math
import operator
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

import google_crc32c
import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Shaped

from train_dynamics.config import InputError, pluralise
from train_dynamics.recording.contents import Contents
from train_dynamics.recording.format import RecordingError, sealed
from train_dynamics.recording.remote import AnyPath, Url, leading
from train_dynamics.recording.storage import StoredArray, read_whole

if TYPE_CHECKING:
    from train_dynamics.recording.reader import Recording

FORMAT = 1
EXAMPLES = 64
CHECKSUM = "checksum."  # before the name of an array
GROUP = 512  # examples whose part of a gradient's array has a checksum of its own
DESCRIPTIONS_BYTES = 2**27  # of arrays that were opened
CHECKSUM_BYTES = 64  # that one takes in memory


class History(NamedTuple):
    """What happened to one example in every seed.

    Attributes:
        iterations: The recorded iterations.
        loss: Its loss, for a classifier in nats.
        correct: Whether it was classified correctly. None for a regression.
        prediction: Its most likely class. None for a regression.
        margin: Logit of its label minus the largest other logit. None for a regression.
        norm: L2 norm of its gradient in each recorded layer, in nats per unit of weight.
        alignment: Cosine between its gradient and the mean gradient of the layer. 0 where either is zero.
    """

    iterations: Int[np.ndarray, " t"]
    loss: Float[np.ndarray, "s t"]
    correct: Bool[np.ndarray, "s t"] | None
    prediction: Integer[np.ndarray, "s t"] | None
    margin: Float[np.ndarray, "s t"] | None
    norm: dict[str, Float[np.ndarray, "s t"]]
    alignment: dict[str, Float[np.ndarray, "s t"]]


class Histories:
    """The histories of a recording, opened for reading. Several threads may use them.

    Args:
        recording: The recording, finished or not. Several recordings read as one each have their own histories.
        path: Where the histories are, if not inside the recording; the `path` that `make_histories` was given.

    Attributes:
        measures: Names of the measures, as `measures_of` gives them.
        checked: Names of the recording's arrays for which they hold checksums, of each `GROUP` examples at each record.
        num_records: Number of records covered, in complete spans. To see spans made later, open the histories again.
        span: Largest number of records in a span; for several recordings, the smallest of these.

    Raises:
        RecordingError: If they are missing, damaged, of another format or of another recording. Reading may raise it
            too.

    Example:
        >>> histories = Histories(Recording("recordings/mini_mnist"))
        >>> histories.read("loss", 0, 100, 164).shape, histories.of_example("alignment.fc2", 42).shape
        ((64, 6000), (10, 1411))
    """

    def __init__(self, recording: "Recording", path: Path | None = None) -> None:
        self._parts = [OfOne(part, directory_of(part, path)) for part in recording.parts]
        self._seeds = [(part, int(seed)) for part in self._parts for seed in part.seeds]
        self._num_examples = len(recording.labels)
        self.measures = measures_of(recording.contents)
        self.checked = self._parts[0].checked
        self.num_records = min(part.num_records for part in self._parts)
        self.span = min(part.span for part in self._parts)

    def read(self, measure: str, s: int, start: int, stop: int) -> Shaped[np.ndarray, "k n"]:
        """Read a measure of all examples in one seed, at consecutive records.

        Args:
            measure: One of `measures`.
            s: Index of the seed in the recording.
            start: First record, counted from 0. It is at iteration `recording.iterations[start]`.
            stop: The record after the last one to read.

        Raises:
            KeyError: If there is no such measure.
            IndexError: If there are no such records.
        """
        self._check(measure)
        if not 0 <= start <= stop <= self.num_records:
            raise IndexError(f"records {start} to {stop} are not among the first {self.num_records}")
        part, seed = self._seeds[s]
        with remade(part.directory):
            arrays = part.within(measure, seed, start, stop)
            rows = [array.read()[from_:to, : self._num_examples] for array, from_, to in arrays]
        return np.concatenate(rows) if rows else np.empty((0, self._num_examples), np.float32)

    def of_examples(self, measure: str, s: int, examples: Sequence[int]) -> Shaped[np.ndarray, "t m"]:
        """Read a measure of some examples in one seed, at all records. Raises the same errors as `read`.

        Args:
            measure: One of `measures`.
            s: Index of the seed in the recording.
            examples: Indices of the examples, in any order.
        """
        self._check(measure)
        places = np.asarray(examples, int).reshape(-1)
        if len(places) and not 0 <= places.min() <= places.max() < self._num_examples:
            raise IndexError(f"an example is not among the {self._num_examples:,}")
        part, seed = self._seeds[s]
        order = np.argsort(places, kind="stable")
        found = [np.empty((0, len(places)), np.float32)][self.num_records > 0 :]
        with remade(part.directory):
            for array, _, to in part.within(measure, seed, 0, self.num_records):
                found.append(np.empty((to, len(places)), array.dtype))
                for place, column in zip(order, array.take(places[order].tolist()), strict=True):
                    found[-1][:, place] = column[:to]
        return np.concatenate(found)

    def of_example(self, measure: str, example: SupportsIndex) -> Shaped[np.ndarray, "s t"]:
        """Read a measure of one example in every seed, at all records. Raises the same errors as `read`."""
        n = operator.index(example)
        read, places = lambda s: self.of_examples(measure, s, [n])[:, 0], range(len(self._seeds))
        if any(isinstance(part.directory, Url) for part in self._parts):
            with ThreadPoolExecutor(8) as threads:  # which wait most of the time
                return np.stack(list(threads.map(read, places)))
        return np.stack([read(s) for s in places])

    def checksums(self, array: str, s: int, group: int) -> Shaped[np.ndarray, " t"]:
        """Read the checksums of a group of examples in an array, one per record. Raises as `read` does.

        Args:
            array: One of `checked`.
            s: Index of the seed.
            group: Index of the group of `GROUP` examples.
        """
        part, seed = self._seeds[s]
        found = [np.empty(0, np.uint32)]
        with remade(part.directory):
            for stored, _, to in part.within(f"{CHECKSUM}{array}", seed, 0, self.num_records):
                found.append(next(iter(stored.take([group])))[:to])
        return np.concatenate(found)

    def _check(self, measure: str) -> None:
        if measure not in self.measures:
            raise KeyError(f"there is no measure {measure!r}; there are: {', '.join(self.measures)}")


class OfOne:
    """The histories of a single recording.

    Args:
        recording: The recording.
        directory: Directory of the histories.

    Attributes:
        directory: Directory of the histories.
        num_records: Number of records covered, in complete spans.
        span: Largest number of records in a span.
        seeds: The seeds.

    Raises:
        RecordingError: As `Histories` does.
    """

    def __init__(self, recording: "Recording", directory: AnyPath) -> None:
        self.directory = directory
        self._checksum = recording.checksum
        self.seeds: list[int] = recording.seeds.tolist()
        header = read_header(recording, directory)
        self.span: int = header["span"]
        self.checked: tuple[str, ...] = tuple(header["checked"])
        if isinstance(directory, Url):
            with remade(directory):
                self._spans = spans_of_url(directory, self.span, self.seeds[0], recording.num_records)
        else:
            self._spans = spans_of(directory, self.span)
        self.num_records = min(self._spans[-1][1] if self._spans else 0, recording.num_records)
        self._padded = padded(len(recording.labels))
        self._groups = padded(groups_of(len(recording.labels)))
        size = DESCRIPTIONS_BYTES * EXAMPLES // (CHECKSUM_BYTES * self._padded)
        self._array = functools.lru_cache(max(size, 16))(self._open)

    def within(self, measure: str, seed: int, start: int, stop: int) -> Iterator[tuple[StoredArray, int, int]]:
        """Return the arrays that hold some records, and which of their rows these are.

        Raises:
            OSError, ValueError: If one is missing or damaged.
        """
        for k in range(start // self.span, math.ceil(stop / self.span)):
            first, end = self._spans[k]
            yield self._array(measure, seed, k), max(start - first, 0), min(stop, end) - first

    def _open(self, measure: str, seed: int, k: int) -> StoredArray:
        first, stop = self._spans[k]
        path = self.directory / f"{first}-{stop}" / str(seed) / measure
        array = StoredArray(path, place_of(self._checksum, first, seed, measure), direct=False)
        width = self._groups if measure.startswith(CHECKSUM) else self._padded
        if array.shape != (stop - first, width):
            raise ValueError(f"{path} holds {array.shape} records and examples")
        return array


def measures_of(contents: Contents) -> tuple[str, ...]:
    """Name the measures in histories: `loss`; for a classifier `prediction`, `margin`; each layer's norm, alignment.

    Example:
        >>> measures_of(Recording("recordings/mini_mnist").contents)
        ('loss', 'prediction', 'margin', 'norm.fc2', 'alignment.fc2')
    """
    of_layers = (f"{kind}.{kept.key}" for kept in contents.layers.values() for kind in ("norm", "alignment"))
    return ("loss", *(("prediction", "margin") if contents.classes else ()), *of_layers)


def checked_of(recording: "Recording") -> tuple[str, ...]:
    """Name the stored arrays that gradients are made of, except factors with several positions."""
    block = next(recording.blocks(), None)
    kept = [one for one in recording.contents.layers.values() if one.has_gradient]
    names = [name for one in kept for name in one.arrays if one.layout != "factored" or not _positions(block, name)]
    return tuple(dict.fromkeys(names))


def _positions(block: Any, name: str) -> bool:
    return block is None or len(block.described(name)[0]) > 4


def groups_of(num_examples: int) -> int:
    """Count the groups of examples."""
    return math.ceil(num_examples / GROUP)


def directory_of(recording: "Recording", path: Path | None = None) -> AnyPath:
    """Return the directory of one recording's histories: inside it, or elsewhere under its checksum."""
    return recording.root / "histories" if path is None else path.resolve() / recording.checksum


def padded(num_examples: int) -> int:
    """Round up to a multiple of a piece."""
    return math.ceil(num_examples / EXAMPLES) * EXAMPLES


def place_of(checksum: str, first: int, seed: int, measure: str) -> str:
    """Make the name that ties a measure's array to its place."""
    return f"{checksum}/histories/{first}/{seed}/{measure}"


def spans_of(directory: Path, span: int) -> list[tuple[int, int]]:
    """List the complete spans: the first record of each, and the one after its last.

    If a user's loop was resumed, a short span and the longer one that replaces it may both exist.
    """
    found: dict[int, int] = {}
    for entry in directory.iterdir():
        first, _, stop = entry.name.partition("-")
        if first.isdecimal() and stop.isdecimal():
            found[int(first)] = max(int(stop), found.get(int(first), 0))
    spans: list[tuple[int, int]] = []
    while (first := len(spans) * span) in found and (not spans or spans[-1][1] == first):
        spans.append((first, found[first]))
    return spans


def spans_of_url(directory: Url, span: int, seed: int, num_records: int) -> list[tuple[int, int]]:
    """List the complete spans on remote storage, where each is asked for by name."""
    spans = [(first, min(first + span, num_records)) for first in range(0, num_records, span)]
    there = leading(len(spans), lambda k: (directory / f"{spans[k][0]}-{spans[k][1]}/{seed}/loss/zarr.json").exists())
    return spans[:there]


def read_header(recording: "Recording", directory: AnyPath) -> dict[str, Any]:
    """Read and check `histories.json`.

    Raises:
        RecordingError: If it is missing, damaged, of another format or of another recording.
    """
    if not (directory / "histories.json").exists():
        raise RecordingError(f"{directory} is not there: {how_to_make(recording)}")
    with remade(directory):
        try:
            header = json.loads(read_whole(directory / "histories.json"))
            if header["format"] != FORMAT:
                raise ValueError(f"it has format {header['format']}, and this version reads format {FORMAT}")
            if header["checksum"] != sealed(header)["checksum"]:
                raise ValueError("histories.json was changed after it was written: its checksum differs")
            if header["recording"] != recording.checksum:
                raise ValueError("it belongs to another recording")
            if tuple(header["measures"]) != measures_of(recording.contents):
                raise ValueError("it has other measures than this version makes")
            if not all(isinstance(name, str) for name in header["checked"]):
                raise ValueError("the names of arrays that it has checksums of are malformed")
            if not (isinstance(header["span"], int) and header["span"] > 0):
                raise ValueError("its span is not a length")
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"histories.json is malformed: {error}") from error
    return header


def gradients_of(recording: "Recording", layer: str, example: SupportsIndex) -> Float[np.ndarray, "s t ..."]:
    """Read one example's gradient at all records; see `Recording.gradients_of`."""
    n, kept = operator.index(example), recording.kept(layer)
    if not 0 <= n < len(recording.labels):
        raise IndexError(f"example {n} is not among the {len(recording.labels):,} of {recording.path}")
    if kept.layout not in ("factored", "dense"):
        raise KeyError(f"of layer {layer!r} only {kept.layout} were recorded; --gradient_layout=factored keeps all")
    found = []
    for part in recording.parts:
        columns = [_column(part, name, n) for name in kept.arrays]
        if kept.layout == "dense":
            found.append(columns[0])
            continue
        lead = columns[-1].shape[:2]
        if kept.of_inputs:
            inputs = part.inputs().reshape(len(part.labels), -1)[n]
            columns.insert(0, np.broadcast_to(inputs, (lead[0], lead[1], len(inputs))))
        found.append(kept.multiply(*columns))
    return np.concatenate([one[:, : recording.num_records] for one in found])


def _column(part: "Recording", name: str, n: int) -> Shaped[np.ndarray, "s t ..."]:
    """Read one example from an array of a recording's blocks, and compare the checksums of its group."""
    try:
        histories = Histories(part)
    except RecordingError:
        histories = None
    if histories is None or name not in histories.checked or histories.num_records < part.num_records:
        return np.stack([row[:, n] for block in part.blocks() for row in block.each(name)], axis=1)
    group = n // GROUP
    expected = np.stack([histories.checksums(name, s, group) for s in range(len(part.seeds))])
    start, stop = group * GROUP, min((group + 1) * GROUP, len(part.labels))
    begins = np.cumsum([0, *(len(block.iterations) for block in part.blocks())]).tolist()

    def read(work: tuple[int, Any]) -> Shaped[np.ndarray, "s t ..."]:
        begin, block = work
        rows = block.columns(name, start, stop)
        for s, t in np.ndindex(*rows.shape[:2]):
            if checksum_of_rows(rows[s, t]) != expected[s, begin + t]:
                raise RecordingError(
                    f"{block.path} is damaged: {name} of examples {start} to {stop - 1} at iteration "
                    f"{block.iterations[t]} was changed after it was written; run train_dynamics.verify for details"
                )
        return rows[:, :, n - start]

    with ThreadPoolExecutor(4) as threads:  # some wait for the disk
        return np.concatenate(list(threads.map(read, zip(begins, part.blocks(), strict=False))), axis=1)


def checksum_of_rows(rows: Shaped[np.ndarray, "m ..."]) -> int:
    """Compute the CRC-32C of some examples in an array."""
    return google_crc32c.value(np.ascontiguousarray(rows).reshape(-1).view(np.uint8))


@contextlib.contextmanager
def remade(directory: AnyPath) -> Iterator[None]:
    """Explain what to do about damaged histories. Nothing is lost, because they can be made again."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise RecordingError(
            f"{directory} does not belong here, is damaged, or is missing ({error}); move it elsewhere, and "
            "train_dynamics.analyze makes it again"
        ) from error


def how_to_make(recording: "Recording") -> str:
    """Name the command that makes histories."""
    return f"python -m train_dynamics.analyze --recording={recording.path} makes it"


def history_of(recording: "Recording", histories: Histories, example: SupportsIndex) -> History:
    """Collect all histories of one example; see `Recording.history`."""
    n = operator.index(example)
    if not 0 <= n < len(recording.labels):
        raise IndexError(f"example {n} is not among the {len(recording.labels):,} of {recording.path}")
    if recording.finished and histories.num_records < recording.num_records:
        there = pluralise(histories.num_records, "record")
        raise InputError(
            f"the histories of {recording.path} are of {there} and not yet of all {recording.num_records:,}: "
            f"{how_to_make(recording)} whole"
        )
    of = {measure: histories.of_example(measure, n) for measure in histories.measures}
    kinds = {
        kind: {kept.name: of[f"{kind}.{kept.key}"] for kept in recording.contents.layers.values()}
        for kind in ("norm", "alignment")
    }
    prediction = of.get("prediction")
    correct = None if prediction is None else prediction == recording.labels[n]
    return History(
        recording.iterations[: histories.num_records], of["loss"], correct, prediction, of.get("margin"), **kinds
    )
