"""Writes the page with the data of one seed inside: a file that can be mailed."""

import base64
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from train_dynamics.config import InputError
from train_dynamics.explorer.explored import Explored
from train_dynamics.explorer.page import page
from train_dynamics.explorer.shown import ShownRecording, about, encoded, json_bytes, looks
from train_dynamics.recording.format import RecordingError, written_whole

MOST_BYTES = 15_000_000
SPARE_BYTES = 200_000
SAMPLED = 6  # records by which the size of all is foretold
GROUPS_AT = 12  # records
TEXTS = 20_000  # examples of which a text is written into the file


def check_output(path: Path, overwrite: bool) -> None:
    """Check that the file may be written, before any work is done.

    Raises:
        InputError: If it may not be written.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError.flag("export", path, "must end in .html")
    if path.is_dir() or not path.parent.is_dir():
        raise InputError.flag("export", path, "must be a file in an existing directory")
    if path.exists() and not overwrite:
        raise InputError.flag("export", path, "exists; choose another name, or add --overwrite")


def export(explored: Explored, seed: int, path: Path, most_bytes: int = MOST_BYTES) -> tuple[int, int]:
    """Write the page with as many records of a seed as fit.

    The records are evenly spread over the recorded ones, and the page moves the points between them. Groups are stored
    at a few of them.

    Args:
        explored: What to show. If there are two recordings, the first.
        seed: One of its seeds.
        path: The file.
        most_bytes: Largest allowed size.

    Returns:
        Its size in bytes, and how many records are in it.

    Raises:
        InputError: If not even two records fit, or if the file cannot be written.
        RecordingError: If the recording is damaged.
    """
    if explored.problem:
        raise RecordingError(explored.problem)
    name, shown = next(iter(explored.recordings.items()))
    s = int(np.flatnonzero(shown.recording.seeds == seed)[0])
    measures = _measures(shown)
    room = most_bytes - SPARE_BYTES - len(page()) - len(_rest(explored, name, shown, s))
    records = np.arange(shown.num_records)
    sample = records[np.unique(np.linspace(0, len(records) - 1, SAMPLED).astype(int))]
    each = sum(len(_packed(shown, s, measure, sample)["data"]) for measure in measures) / len(sample)
    count = min(len(records), int(room / each))
    while True:
        if count < min(2, len(records)):
            too_large = f"would be larger than {most_bytes / 1e6:.0f} MB with two records in it"
            raise InputError.flag("export", path, too_large)
        chosen = np.unique(np.linspace(0, len(records) - 1, count).round().astype(int))
        text = page(_document(explored, name, shown, s, measures, chosen)).encode()
        if len(text) <= most_bytes:
            break
        count = int(count * 0.95)
    try:
        with written_whole(path) as new:
            new.write_bytes(text)
    except OSError as error:
        raise InputError.flag("export", path, f"cannot be written: {error.strerror or error}") from error
    return len(text), len(chosen)


def _measures(shown: ShownRecording) -> list[str]:
    """Choose what goes into the file: with more than two layers, which would leave few records, only the first."""
    layers = {kept.key: kept.name for kept in shown.recording.contents.layers.values()}
    first = (shown.recording.gradient_layers or shown.recording.layers)[-1:]
    return [
        name
        for name in shown.histories.measures
        if "." not in name or len(layers) <= 2 or layers[name.partition(".")[2]] in first
    ]


def _rest(explored: Explored, name: str, shown: ShownRecording, s: int) -> str:
    """Return what the file holds besides frames."""
    return _document(explored, name, shown, s, [], np.array([0]), groups=False)


def _document(
    explored: Explored,
    name: str,
    shown: ShownRecording,
    s: int,
    measures: list[str],
    records: Int[np.ndarray, " k"],
    groups: bool = True,
) -> str:
    recording = shown.recording
    iterations = recording.iterations[records].tolist()
    described = about({name: shown}, explored.scored, exported=True)
    one = described["recordings"][0]
    here = [measure for measure in one["measures"] if measure["name"] in measures or not measures]
    layers = [layer for layer in one["layers"] if any(measure["layer"] == layer for measure in here)]
    one |= {
        "path": recording.path.name if len(recording.paths) == 1 else [path.name for path in recording.paths],
        "seeds": [int(recording.seeds[s])],
        "layers": layers,
        "gradientLayers": [layer for layer in one["gradientLayers"] if layer in layers],
        "measures": here,
        "iterations": iterations,
        "live": False,
        "problem": "",
    }
    described["span"] = len(iterations)
    arrays = {measure: _packed(shown, s, measure, records) for measure in measures}
    arrays["curves"] = _letters(shown.curves(s)[:, records].astype("<f4"), "float32")
    for score, values in explored.scored.scores.items():
        arrays[f"score.{score}"] = _letters(values.astype("<f4"), "float32")
    texts: list[str] = []
    if described["picture"]:
        pictures = [looks(recording, chunk) for chunk in _chunks(len(recording.labels))]
        arrays["pictures"] = _letters(np.concatenate(pictures), "uint8")
    else:
        texts = looks(recording, range(min(len(recording.labels), TEXTS)))
    return json_bytes(
        {
            "about": described,
            "arrays": arrays,
            "texts": texts,
            "groups": _groups(shown, s, one["gradientLayers"], iterations) if groups else {},
        }
    ).decode()


def _groups(shown: ShownRecording, s: int, layers: list[str], iterations: list[int]) -> dict[str, Any]:
    """Find the groups at a few records, by layer."""
    at = np.unique(np.linspace(0, len(iterations) - 1, GROUPS_AT).round().astype(int))
    return {layer: [shown.groups(s, layer, iterations[k]) for k in at] for layer in layers}


def _packed(shown: ShownRecording, s: int, measure: str, records: Int[np.ndarray, " k"]) -> dict[str, str]:
    encoding = shown.encoding(measure)
    rows = [encoded(row, encoding) for row in _rows(shown, s, measure, records)]
    return _letters(np.stack(rows), encoding)


def _rows(shown: ShownRecording, s: int, measure: str, records: Int[np.ndarray, " k"]) -> Iterator[np.ndarray]:
    """Read some records, one span at a time."""
    span = shown.histories.span
    for first in range(0, int(records[-1]) + 1, span):
        here = records[(records >= first) & (records < first + span)]
        if len(here):
            yield from shown.read(measure, s, int(here[0]), int(here[-1]) + 1)[here - here[0]]


def _chunks(count: int) -> Iterator[range]:
    return (range(first, min(first + 1000, count)) for first in range(0, count, 1000))


def _letters(values: Shaped[np.ndarray, "..."], encoding: str) -> dict[str, str]:
    return {"encoding": encoding, "data": base64.b64encode(zlib.compress(values.tobytes(), 6)).decode()}
