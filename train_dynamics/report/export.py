"""Exports an analysis to the tracking program where people see their other runs. It is imported when used."""

import importlib
import importlib.util
import math
import os
import struct
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from train_dynamics.config import InputError
from train_dynamics.dynamics.groups import group_weights
from train_dynamics.recording.reader import Recording
from train_dynamics.report.directory import EVENTS
from train_dynamics.study.results import Results

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
"""What can be written to, and the package that does it."""
SHOWN_ROWS = 100  # of a table in TensorBoard, which shows text and no tables
PROJECT = "train_dynamics"


class Table(NamedTuple):
    """A table of an analysis. Numbers are numbers, `rows` are as in its file, and None is an empty cell."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def check_targets(targets: Collection[str]) -> None:
    """Check that an analysis can be exported.

    Raises:
        InputError: If a target is unknown, or its package is not installed.
    """
    if unknown := ",".join(target for target in targets if target not in PACKAGES):
        raise InputError.flag("export", unknown, f"must be one or more of {','.join(PACKAGES)}, or empty")
    for target in targets:
        if importlib.util.find_spec(package := PACKAGES[target]) is None:
            raise InputError.flag(
                "export", target, f"needs the package {package}, which is not installed: pip install {package}"
            )


def export(
    recording: Recording, results: Results, output: Path, files: Sequence[str], targets: Collection[str]
) -> None:
    """Write curves, figures and tables of a complete analysis to each target.

    Args:
        recording: The recording.
        results: What was computed from it.
        output: Directory of the analysis. TensorBoard's events go into `tensorboard` inside it.
        files: The files of the analysis in that directory.
        targets: Some of `PACKAGES`.

    Raises:
        InputError: If a run cannot be started, for example because nobody is logged in.
    """
    rows = list(_curves(recording, results))
    figures = {Path(file).stem: output / file for file in files if file.endswith(".png")}
    tables = [_table(recording, output / file) for file in files if file.endswith(".csv") and file != "curves.csv"]
    for target in targets:
        if target == "tensorboard":
            _to_tensorboard(output / "tensorboard", rows, figures, tables)
        else:
            _to_tracker(target, recording, output, rows, figures, tables)


def _curves(recording: Recording, results: Results) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield each iteration with its values, means over seeds, as `accuracy/all` and `fc2/alignment/chunk_0`."""
    curves = results.curves if "loss" in results.curves else {"loss": _loss(recording, results), **results.curves}
    means = {metric: curve.mean(axis=0, dtype=np.float64) for metric, curve in curves.items()}
    for k, t in enumerate(results.iterations.tolist()):
        values = {
            f"{metric}/{group}": value
            for metric, mean in means.items()
            for group, value in zip(results.groups, mean[k].tolist(), strict=True)
        }
        yield t, {name: value for name, value in values.items() if not math.isnan(value)}


def _loss(recording: Recording, results: Results) -> Float[np.ndarray, "s t group"]:
    """Average the losses over each group. The analysis of a classifier does not compute them."""
    everyone = group_weights(np.zeros(len(results.chunk), int), 1)
    weights = np.concatenate([everyone, group_weights(results.chunk, results.num_chunks)], axis=1)
    return np.concatenate([block.read("loss") @ weights for block in recording.blocks()], axis=1)


def _table(recording: Recording, path: Path) -> Table:
    from pyarrow import csv

    # Ids of text may look like numbers, and lose zeros before them.
    types = {"id": "string"} if recording.ids.dtype.kind in "SUO" else {}
    found = csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=types))
    return Table(
        path.stem, found.column_names, list(zip(*(column.to_pylist() for column in found.columns), strict=True))
    )


def _to_tensorboard(
    path: Path, rows: Sequence[tuple[int, dict[str, float]]], figures: dict[str, Path], tables: Sequence[Table]
) -> None:
    """Write one event per iteration, with all its values, because there may be a hundred thousand iterations."""
    import tensorboardX
    from tensorboardX.proto.summary_pb2 import Summary

    writer, last = tensorboardX.FileWriter(str(path), filename_suffix=EVENTS), rows[-1][0]
    for t, values in rows:
        writer.add_summary(Summary(value=[Summary.Value(tag=tag, simple_value=values[tag]) for tag in values]), t)
    for name, file in figures.items():
        png = file.read_bytes()
        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
        writer.add_summary(Summary(value=[Summary.Value(tag=f"figures/{name}", image=image)]), last)
    for table in tables:
        writer.add_summary(tensorboardX.summary.text(f"tables/{table.name}", _markdown(table)), last)
    writer.close()


def _markdown(table: Table) -> str:
    """Write the first rows of a table as text."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows[:SHOWN_ROWS]]
    cells = ([_cell(value) for value in line] for line in lines)
    text = "\n".join(f"| {' | '.join(line)} |" for line in cells)
    more = len(table.rows) - SHOWN_ROWS
    return text if more <= 0 else f"{text}\n\n{more:,} more rows are in {table.name}.csv."


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def _to_tracker(
    target: str,
    recording: Recording,
    output: Path,
    rows: Sequence[tuple[int, dict[str, float]]],
    figures: dict[str, Path],
    tables: Sequence[Table],
) -> None:
    """Write a run to Weights & Biases, or to Trackio, which has the same functions."""
    tracker = importlib.import_module(PACKAGES[target])
    project = os.environ.get(f"{target.upper()}_PROJECT", PROJECT)
    try:
        name = ", ".join(path.resolve().name for path in recording.paths)
        tracker.init(project=project, name=name, config=recording.config.to_dict())
    except Exception as error:  # of any kind: it may be the network, the login or the disk, and all is written by now
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError.flag(
            "export", target, f"the analysis is complete in {output}, but no run could be started: {reason}"
        ) from error
    last = rows[-1][0]
    for t, values in rows:
        tracker.log(values, step=t)
    tracker.log({f"figures/{name}": tracker.Image(str(file)) for name, file in figures.items()}, step=last)
    for table in tables:
        found = tracker.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
        tracker.log({f"tables/{table.name}": found}, step=last)
    tracker.finish()
