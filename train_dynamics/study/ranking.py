"""A ranking of the examples from another analysis: a column of its table of scores."""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from train_dynamics.config import InputError
from train_dynamics.dynamics.scores.registry import SCORES
from train_dynamics.recording.reader import Recording


class Ranking(NamedTuple):
    """What examples are ranked by.

    Attributes:
        words: A description of it.
        values: A value for each example. Low values are typical and easy.
    """

    words: str
    values: Float[np.ndarray, " n"]


def read_ranking(recording: Recording, where: str) -> Ranking:
    """Read `FILE:COLUMN` from the `scores.csv` that an analysis of the same examples wrote.

    A score whose low values are hard is negated.

    Raises:
        InputError: If there is no such file or column, or if it lacks a number for some example of the recording.
    """
    name, _, column = where.rpartition(":")

    def wrong(why: str) -> InputError:
        return InputError.flag("rank_by", where, why)

    if not name or not column:
        raise wrong("must be FILE:COLUMN, of the scores.csv of another analysis, for example other/scores.csv:agr")
    try:
        with Path(name).open(newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise wrong(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if column not in columns:
        raise wrong(f"the file has no column {column}; it has {', '.join(columns) or 'none'}")
    if [row.get("id") for row in rows] != [str(name) for name in recording.ids]:
        raise wrong(f"the file is not of the {len(recording.ids):,} examples of {recording.path}, in their order")
    try:
        values = np.array([float(row[column]) for row in rows])
    except ValueError as error:
        raise wrong(f"has not a number for each example: {error}") from error
    if not np.isfinite(values).all() or np.ptp(values) == 0:
        raise wrong("must have a finite number for each example, and not the same for all")
    low = any(score.name == column and score.hard == "low" for score in SCORES)
    return Ranking(f"{column} of {name}", -values if low else values)
