"""Results as CSV files."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from train_dynamics.recording import Recording
from train_dynamics.results import GROUPS, Results


def write_scores(recording: Recording, results: Results, path: Path) -> None:
    """Write one row an example; iterations and counts are averaged over seeds.

    `first_correct` of an example that a seed never classifies correctly counts as the number of records, and
    `last_mistake` of one that is never wrong as -1.
    """
    forgetting = results.forgetting
    columns = {
        "example": range(len(recording.labels)),
        "id": recording.ids,
        "label": recording.labels,
        "agr": _decimal(results.agr),
        "rank": results.rank,
        "chunk": results.chunk,
        "first_correct": _decimal(forgetting.first_correct.mean(axis=0)),
        "last_mistake": _decimal(forgetting.last_mistake.mean(axis=0)),
        "forgotten": _decimal(forgetting.forgotten.mean(axis=0)),
    }
    _write(path, list(columns), zip(*columns.values(), strict=True))


def write_curves(results: Results, path: Path) -> None:
    """Write mean and standard deviation over seeds (of these seeds: divided by their number) of every curve."""
    rows = (
        (metric, group, t, mean, std)
        for metric, curve in results.curves.items()
        for g, group in enumerate(GROUPS)
        for t, (mean, std) in enumerate(
            zip(_decimal(curve[..., g].mean(axis=0)), _decimal(curve[..., g].std(axis=0)), strict=True)
        )
    )
    _write(path, ["metric", "group", "iteration", "mean", "std"], rows)


def _decimal(values: np.ndarray) -> list[str]:
    return [f"{value:.9g}" for value in values]


def _write(path: Path, header: Sequence[str], rows: Iterable[tuple]) -> None:
    new = path.with_name(path.name + ".incomplete")
    with new.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    new.replace(path)
