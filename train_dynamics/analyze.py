"""Analyse a recording: rank its examples and follow their accuracy.

python -m train_dynamics.analyze --recording=recordings/mini_mnist
"""

import csv
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from absl import app, flags
from jaxtyping import Float, Int

from train_dynamics.config import InputError
from train_dynamics.dynamics.agreement import agreement, chunks, ranks
from train_dynamics.dynamics.groups import group_means
from train_dynamics.recording import Recording

NUM_CHUNKS = 10
SHOWN = 64
RECORDING = flags.DEFINE_string("recording", None, "Directory that train_dynamics.train recorded into.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Directory for the results; 'analysis' inside the recording if empty.")


def accuracy_curves(recording: Recording, chunk: Int[np.ndarray, " n"]) -> Float[np.ndarray, "s t group"]:
    """Compute the accuracy of all examples (group 0) and of each chunk (groups 1 to 10), a block at a time."""
    curves = []
    for block in recording.blocks():
        correct = block.read("prediction") == recording.labels
        of_all = correct.mean(axis=-1, keepdims=True)
        curves.append(np.concatenate([of_all, group_means(correct, chunk, NUM_CHUNKS)], axis=-1))
    return np.concatenate(curves, axis=1)


def analyze(recording: Recording, output: Path) -> None:
    """Write tables and figures of a finished recording.

    Raises:
        InputError: If the recording is unfinished or too small to be ranked, or the output cannot be written.
    """
    if not recording.finished:
        raise InputError.flag(
            "recording",
            recording.path,
            f"is unfinished: it holds {recording.num_records} of {recording.num_iterations + 1} records; "
            "run the train command again to finish it",
        )
    if len(recording.seeds) < 2:
        raise InputError.flag(
            "recording",
            recording.path,
            "has one seed, and ranking by agreement needs two; record with --seeds=2 or more",
        )
    if len(recording.labels) < NUM_CHUNKS:
        raise InputError.flag(
            "recording", recording.path, f"has {len(recording.labels)} examples, and {NUM_CHUNKS} chunks need one each"
        )
    try:
        (output / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError.flag("output", output, f"cannot be made: {error.strerror}") from error

    score = agreement(recording.probabilities(recording.num_iterations))
    rank = ranks(score)
    chunk = chunks(rank, NUM_CHUNKS)
    curves = accuracy_curves(recording, chunk)
    mean, std = curves.mean(axis=0), curves.std(axis=0)

    _write_csv(
        output / "scores.csv",
        ["example", "id", "label", "agr", "rank", "chunk"],
        zip(range(len(rank)), recording.ids, recording.labels, (f"{x:.9g}" for x in score), rank, chunk, strict=True),
    )
    groups = ["all", *(f"chunk_{k}" for k in range(NUM_CHUNKS))]
    _write_csv(
        output / "curves.csv",
        ["metric", "group", "iteration", "mean", "std"],
        (
            ("accuracy", group, t, f"{mean[t, g]:.9g}", f"{std[t, g]:.9g}")
            for g, group in enumerate(groups)
            for t in range(len(mean))
        ),
    )
    _draw(recording, output / "figures", rank, score, mean, std)


def _draw(
    recording: Recording,
    directory: Path,
    rank: Int[np.ndarray, " n"],
    score: Float[np.ndarray, " n"],
    mean: Float[np.ndarray, "t group"],
    std: Float[np.ndarray, "t group"],
) -> None:
    from train_dynamics.plots import curves, grids, style

    num_seeds = len(recording.seeds)
    style.save(curves.accuracy(mean[:, 0], std[:, 0], num_seeds), directory / "accuracy.png")
    style.save(curves.chunk_accuracy(mean[:, 1:], num_seeds), directory / "chunk_accuracy.png")
    order = np.argsort(rank)
    shown = min(SHOWN, len(order))
    examples = {
        "random": ("random examples", np.sort(np.random.default_rng(0).choice(len(order), shown, replace=False))),
        "typical": ("most typical examples", order[:shown]),
        "atypical": ("most atypical examples", order[::-1][:shown]),
    }
    for name, (words, chosen) in examples.items():
        labels = [recording.class_names[label] for label in recording.labels[chosen]]
        title = (
            f"{shown} {words}, each below its label; AGR {score[chosen].min():.2g} to {score[chosen].max():.2g} nats"
        )
        style.save(grids.image_grid(recording.images[chosen], labels, title), directory / f"examples_{name}.png")


def _write_csv(path: Path, header: list[str], rows: Iterable[tuple]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def main(argv: list[str]) -> None:
    """Run the command."""
    try:
        if len(argv) > 1:
            raise InputError(f"{argv[1]!r} is no flag; flags look like --recording=DIR")
        recording = Recording(RECORDING.value)
        output = Path(OUTPUT.value) if OUTPUT.value else recording.path / "analysis"
        analyze(recording, output)
        print(f"Results of {recording.path} are in {output}")
    except InputError as error:
        sys.exit(f"analyze: {error}")


if __name__ == "__main__":
    app.run(main)
