"""Provides the page's data from a recording: arrays and plain values, as it asks for them."""

import dataclasses
import functools
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from train_dynamics import __version__
from train_dynamics.config import InputError, pluralise
from train_dynamics.data.showing import Shown, has_pictures, shown
from train_dynamics.dynamics import cones
from train_dynamics.dynamics.lineages import at_least
from train_dynamics.dynamics.scores.registry import SCORES
from train_dynamics.recording.histories import Histories
from train_dynamics.recording.reader import Recording
from train_dynamics.recording.remote import AnyPath, Url
from train_dynamics.study.cones import ConeOptions, cover, read_factors
from train_dynamics.study.contention import ContentionOptions, drawn, find_pairs
from train_dynamics.study.histories import of_block
from train_dynamics.study.stored_lineages import StoredLineages

HISTORY = ("norm", "alignment", "loss", "margin", "right")
UNITS = {"norm": "nats per unit of weight", "loss": "nats", "margin": "logits"}
WIDEST = 96  # pixels of a picture that is sent
MOST_COMPARED = 20_000  # examples among which groups are looked for; of more, as many drawn at random
ABOUT_EXAMPLES = ("example", "id", "label", "rank", "chunk", "true_label")


def encoded(values: Shaped[np.ndarray, "..."], encoding: str) -> Shaped[np.ndarray, "..."]:
    """Convert values to the compact form in which the page stores and draws them.

    `float16` is IEEE 754's, accurate to 0.05 %, and limited to 65,504. `snorm16` stores -1 to 1 as a share of 32,767,
    as OpenGL reads it, accurate to 0.00002.

    Example:
        >>> encoded(np.array([-1.0, 0.5]), "snorm16")
        array([-32767,  16384], dtype=int16)
    """
    if encoding == "snorm16":
        return np.round(values * 32767).astype("<i2")
    if encoding == "float16":
        largest = np.finfo(np.float16).max
        return np.clip(values, -largest, largest).astype("<f2")
    return values.astype(np.dtype(encoding).newbyteorder("<"))


class ShownRecording:
    """A recording with its histories, including the latest records of a running one that no span holds yet.

    Args:
        recording: The recording, with at least one record.
        histories: Its histories.
        lineages: The lineages that an analysis of it has stored. None if there are none.

    Attributes:
        live: Whether something was writing to it when it was last checked.

    Raises:
        RecordingError: If it is damaged. Reading may raise it too.
    """

    def __init__(self, recording: Recording, histories: Histories, lineages: StoredLineages | None = None) -> None:
        self.recording, self.histories, self.lineages = recording, histories, lineages
        self.live = recording.being_written
        self._tail: dict[int, dict[str, np.ndarray]] = {}  # by first record, of what no span holds yet
        self._lock = threading.Lock()
        self._curves: dict[int, tuple[int, np.ndarray]] = {}
        self._fill_tail()

    def grow(self, recording: Recording, histories: Histories) -> None:
        """Replace it by the same recording with more records."""
        with self._lock:
            self.recording, self.histories = recording, histories
            self._fill_tail()

    def _fill_tail(self) -> None:
        begin, known = 0, self.histories.num_records
        self._tail = {first: values for first, values in self._tail.items() if first >= known}
        for block in self.recording.blocks():
            end = begin + len(block.iterations)
            start = max(begin, known)
            if start < end and start not in self._tail:
                self._tail[start] = of_block(self.recording, block, range(start - begin, end - begin))
            begin = end

    @property
    def num_records(self) -> int:
        """Number of records that can be shown."""
        return self.recording.num_records

    def read(self, measure: str, s: int, start: int, stop: int, step: int = 1) -> Shaped[np.ndarray, "k n"]:
        """Read a measure of all examples of one seed, at records from `start` up to `stop`, with a stride.

        Raises:
            KeyError, IndexError: If there is no such measure, seed or record.
        """
        if not (0 <= start <= stop <= self.num_records and 0 <= s < len(self.recording.seeds) and step > 0):
            raise IndexError(f"records {start} to {stop} of seed number {s}")
        with self._lock:
            histories, tail = self.histories, dict(self._tail)
        wanted = np.arange(start, stop, step)
        rows = []
        for first in range(0, histories.num_records, histories.span):  # one span after the other in memory
            here = wanted[(wanted >= first) & (wanted < min(first + histories.span, histories.num_records))]
            if len(here):
                rows.append(histories.read(measure, s, int(here[0]), int(here[-1]) + 1)[here - here[0]])
        for first, values in sorted(tail.items()):
            here = wanted[(wanted >= first) & (wanted < first + values[measure].shape[1])]
            rows.append(values[measure][s][here - first])
        return np.concatenate(rows)

    def of_examples(self, measure: str, s: int, examples: Sequence[int]) -> Shaped[np.ndarray, "t m"]:
        """Read a measure of some examples of one seed, at all records. Raises as `read` does."""
        with self._lock:
            histories, tail = self.histories, dict(self._tail)
        rows = [histories.of_examples(measure, s, examples)]
        rows += [values[measure][s][:, list(examples)] for _, values in sorted(tail.items())]
        return np.concatenate(rows)

    def measures(self) -> list[dict[str, str]]:
        """List the measures of every example at every record."""
        layers = {kept.key: kept.name for kept in self.recording.contents.layers.values()}
        return [
            {
                "name": name,
                "layer": layers.get(key, ""),
                "unit": UNITS.get(kind, "") if self.recording.contents.classes else "",  # no nats of any other loss
                "encoding": self.encoding(name),
            }
            for name in self.histories.measures
            for kind, _, key in [name.partition(".")]
        ]

    def encoding(self, measure: str) -> str:
        """Return the form in which a measure is sent."""
        if measure == "prediction":
            return "uint8" if len(self.recording.class_names) <= 256 else "uint16"
        return "snorm16" if measure.startswith("alignment") else "float16"

    def about(self, name: str) -> dict[str, Any]:
        """Return what the page has to know about this recording first."""
        recording = self.recording
        batch = recording.batch_size
        return {
            "name": name,
            "path": str(recording.path) if len(recording.paths) == 1 else [str(path) for path in recording.paths],
            "seeds": recording.seeds.tolist(),
            "layers": list(recording.layers),
            "gradientLayers": list(recording.gradient_layers),
            "measures": self.measures(),
            "lineages": self.lineages is not None,
            "perEpoch": batch and -(-len(recording.labels) // batch),
            **self.status(0),
        }

    def status(self, known: int) -> dict[str, Any]:
        """Return what is new since the page knew this many records."""
        recording = self.recording
        live = not recording.finished and self.live
        there = f"{recording.num_records:,} of {pluralise(recording.num_planned, 'record')}"
        return {
            "iterations": recording.iterations[known:].tolist(),
            "finished": recording.finished,
            "live": live,
            "problem": "" if recording.finished or live else f"unfinished: {there}; train again to continue",
        }

    def curves(self, s: int) -> Float[np.ndarray, "2 t"]:
        """Compute accuracy (NaN for a regression) and mean loss of all examples at every record of one seed."""
        known, found = self._curves.get(s, (0, np.empty((2, 0), np.float32)))
        rows = [found]
        for start in range(known, self.num_records, self.histories.span):
            stop = min(start + self.histories.span, self.num_records)
            loss = self.read("loss", s, start, stop).mean(axis=1)
            accuracy = np.full_like(loss, np.nan)
            if self.recording.contents.classes:
                accuracy = (self.read("prediction", s, start, stop) == self.recording.labels).mean(axis=1)
            rows.append(np.stack([accuracy, loss]).astype(np.float32))
        found = np.concatenate(rows, axis=1)
        self._curves[s] = found.shape[1], found
        return found

    def _kinds(self, layer: str) -> Iterator[str]:
        """Return the measure for each kind of `HISTORY`. Empty if there is none."""
        kept = self.recording.contents.layers.get(layer)
        for kind in HISTORY:
            name = {"norm": f"norm.{kept.key}", "alignment": f"alignment.{kept.key}"}.get(kind, kind) if kept else kind
            name = "prediction" if kind == "right" else name
            yield name if name in self.histories.measures else ""

    def history(self, s: int, layer: str, examples: Sequence[int]) -> Float[np.ndarray, "kind t m"]:
        """Read norm, alignment, loss, margin and correctness of some examples at all records. NaN if missing.

        Raises:
            IndexError: If there is no such seed or example.
        """
        rows = self._values(layer, list(examples), lambda name: self.of_examples(name, s, examples))
        return rows[:, : self.num_records]

    def band(self, s: int, layer: str, examples: Sequence[int]) -> Float[np.ndarray, "kind 3 t"]:
        """Compute the lower quartile, the mean and the upper quartile over some examples at all records."""
        found, chosen, span = [], list(examples), self.histories.span
        for start in range(0, self.num_records, span):  # one span after the other in memory, however many are chosen
            stop = min(start + span, self.num_records)
            read = functools.partial(self.read, s=s, start=start, stop=stop)
            values = self._values(layer, chosen, lambda name, read=read: read(name)[:, chosen])
            low, high = np.quantile(values, [0.25, 0.75], axis=-1)
            found.append(np.stack([low, values.mean(axis=-1, dtype=np.float64), high], axis=1))
        return np.concatenate(found, axis=-1).astype(np.float32)

    def _values(
        self, layer: str, examples: Sequence[int], read: Callable[[str], Shaped[np.ndarray, "t m"]]
    ) -> Float[np.ndarray, "kind t m"]:
        """Read each kind of `HISTORY` for some examples. NaN if there is none."""
        found = [read(name) if name else None for name in self._kinds(layer)]
        nothing = np.full_like(next(values for values in found if values is not None), np.nan, np.float32)
        if found[-1] is not None:
            found[-1] = found[-1] == self.recording.labels[examples]
        return np.stack([nothing if values is None else values.astype(np.float32) for values in found])

    def groups(self, s: int, layer: str, iteration: int) -> dict[str, Any]:
        """Find the cones, with known lineages, and the pairs of at least ten examples, at a record.

        The record is the nearest one.

        Raises:
            KeyError: If no gradients of the layer were stored.
        """
        recording = self.recording
        t = int(recording.iterations[np.abs(recording.iterations - iteration).argmin()])
        factors = read_factors(recording, layer, t)[s]
        count = len(recording.labels)
        among = drawn(count, MOST_COMPARED)
        factors = tuple(part[among] for part in factors)
        options = ContentionOptions()
        cone, smallest = cover(cones.directions(*factors), ConeOptions())
        sizes = np.bincount(cone[cone >= 0], minlength=len(smallest))
        pairs, _ = find_pairs(recording, options, s, layer, t, factors, among)
        lineage = np.full(len(sizes), -1)
        if self.lineages:
            of_all = np.full(count, -1)
            of_all[among] = at_least(cone, options.smallest)
            known = self.lineages.of_cones(int(recording.seeds[s]), layer, t, of_all)
            lineage[: len(known)] = known
        return {
            "iteration": t,
            "among": len(among),
            "cones": [
                {
                    "members": among[cone == k].tolist(),
                    "cosine": float(smallest[k]),
                    "lineage": int(lineage[k]) if lineage[k] >= 0 else None,
                }
                for k in np.argsort(-sizes, kind="stable")
                if sizes[k] >= options.smallest
            ],
            "pairs": [
                {
                    "left": pair.left.tolist(),
                    "right": pair.right.tolist(),
                    "cosine": pair.cosine,
                    "strength": pair.strength,
                }
                for pair in sorted(pairs, key=lambda pair: -pair.strength)
            ],
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """What an analysis says about each example.

    Attributes:
        chunk: Tenth of the ranking. None without an analysis.
        scores: The computed scores, by name.
    """

    chunk: Int[np.ndarray, " n"] | None = None
    scores: dict[str, Float[np.ndarray, " n"]] = dataclasses.field(default_factory=dict)


def read_scores(recording: Recording, analysis: AnyPath) -> Scored:
    """Read the scores that an analysis of a recording wrote. Empty if there is none.

    Raises:
        InputError: If it has other examples, or is damaged.
    """
    path = analysis / "scores.parquet"
    if (isinstance(path, Url) and len(recording.paths) > 1) or not path.exists():
        return Scored()
    from pyarrow import parquet

    try:
        table = parquet.read_table(io.BytesIO(path.read_bytes()))
        columns = {name: table[name].to_numpy() for name in table.column_names if name not in ("id", "label")}
        ids = table["id"].to_pylist()
    except (OSError, ValueError, KeyError) as error:
        raise InputError.flag("analysis", analysis, f"has a damaged scores.parquet: {error}") from error
    if [str(one) for one in ids] != [_text(one) for one in recording.ids.tolist()]:
        raise InputError.flag(
            "analysis", analysis, f"is of other examples than {recording.path}; analyse {recording.path} again"
        )
    scores = {
        name: values.astype(np.float32)
        for name, values in columns.items()
        if name not in ABOUT_EXAMPLES and values.dtype.kind == "f" and np.isfinite(values).any()
    }
    chunk = columns["chunk"].astype(int) if "chunk" in columns and np.isfinite(columns["chunk"]).all() else None
    return Scored(chunk, scores)


def about(recordings: dict[str, ShownRecording], scored: Scored, exported: bool = False) -> dict[str, Any]:
    """Return everything that the page has to know before it asks for arrays."""
    first = next(iter(recordings.values()))
    recording = first.recording
    classes = recording.contents.classes
    known = {score.name: score for score in SCORES}
    return {
        "version": __version__,
        "recordings": [one.about(name) for name, one in recordings.items()],
        "numExamples": len(recording.labels),
        "ids": [one if isinstance(one, int) else _text(one) for one in recording.ids.tolist()],
        "labels": recording.labels.tolist() if classes else [0] * len(recording.labels),
        "classes": list(recording.class_names) if classes else [],
        "targets": recording.labels.tolist() if not classes and recording.labels.ndim == 1 else None,
        "chunks": None if scored.chunk is None else scored.chunk.tolist(),
        "scores": [
            {"name": name, **{key: getattr(known.get(name), key, "") for key in ("unit", "formula", "hard")}}
            for name in scored.scores
        ],
        "picture": _picture_shape(recording),
        "span": first.histories.span,
        "exported": exported,
    }


def looks(recording: Recording, examples: Sequence[int]) -> Shown:
    """Return examples as small 8-bit pictures if they are images, or else as texts.

    Raises:
        IndexError: If there is no such example.
    """
    found = shown(recording.data, np.asarray(examples, int))
    return found if isinstance(found, list) else _small(found)


def _text(one: Any) -> str:
    return one.decode(errors="replace") if isinstance(one, bytes) else str(one)


def _small(pictures: Shaped[np.ndarray, "m h w channel"]) -> Shaped[np.ndarray, "m h w channel"]:
    step = -(-max(pictures.shape[1:3]) // WIDEST)
    return np.ascontiguousarray(pictures[:, ::step, ::step])


def _picture_shape(recording: Recording) -> dict[str, int] | None:
    if not has_pictures(recording.data):
        return None
    height, width, channels = _small(shown(recording.data, np.array([0]))).shape[1:]
    return {"height": height, "width": width, "channels": channels}


def json_bytes(values: Any) -> bytes:
    """Write JSON without spaces. NaN becomes null."""
    return json.dumps(_finite(values), separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def _finite(values: Any) -> Any:
    if isinstance(values, float):
        return values if np.isfinite(values) else None
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_finite(value) for value in values]
    return values
