"""Measure how the cost of recording a convolutional network grows: weights, examples, seeds and processes, each alone.

    python -m benchmarks.growth --data_dir=DIR [--output=recordings/growth] [--directory=recordings]

DIR holds MNIST as TFDS prepares it. The networks are three convolutions and a dense layer with more or fewer channels.
Every point is a process of its own, so that its peak memory is its own. Weights and examples time one record of all
kernels in each layout, and plain training on the same examples once, in batches of 128; nothing is stored. Seeds and
processes are whole `train` commands of 300 examples and 31 records, with their store; several processes share ten
seeds on this one machine, and the point lasts until the last of them ends.
"""

import csv
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from flax import linen as nn

POINT = flags.DEFINE_string("point", None, "One point, as JSON; used by this program on itself.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Directory that holds mnist.")
OUTPUT = flags.DEFINE_string("output", "recordings/growth", "Directory for growth.csv, growth.png and growth.svg.")
DIRECTORY = flags.DEFINE_string("directory", "recordings", "Directory to record into, for a while.")
ONLY = flags.DEFINE_list(
    "axes", ["weights", "examples", "seeds", "processes"], "What to measure; others stay as they are."
)
LAYOUTS = ("measures", "factored", "sketch")
AXES = {  # of one record: channels of the first convolution, and examples
    "weights": [(channels, 128) for channels in (1, 3, 10, 32, 100, 330)],
    "examples": [(10, examples) for examples in (1000, 4000, 15000, 60000)],
}
SEEDS, PROCESSES = (1, 4, 10, 40), (1, 2, 4)
ROUNDS, SECONDS = 5, 3  # of which the fastest counts


class Network(nn.Module):
    """`configs/networks.py:cnn` with other numbers of channels."""

    channels: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for k in range(3):
            x = nn.relu(nn.Conv(self.channels * 2**k, (3, 3), strides=2, name=f"conv{k + 1}")(x))
        return nn.Dense(10, name="head")(x.reshape(len(x), -1))


small = Network(10)


def peak(of: int = resource.RUSAGE_SELF) -> float:
    return resource.getrusage(of).ru_maxrss * 1024 / 1e9


def measure(channels: int, num_examples: int, layout: str) -> dict:
    """Time one record of one seed, or plain training on all examples once, in this process."""
    import jax
    import numpy as np

    from train_dynamics.config import StudyConfig
    from train_dynamics.data.datasets import load_dataset
    from train_dynamics.task.flax import task_of_linen
    from train_dynamics.task.options import output_loss
    from train_dynamics.training.setup import prepare
    from train_dynamics.training.sweep import compiled, plan

    config = StudyConfig(
        dataset="mnist",
        data_dir=DATA_DIR.value,
        num_examples=num_examples,
        model="benchmarks.growth:small",  # and the task below, if that is another
        layers=("*/kernel",),
        gradient_layout="measures" if layout == "plain" else layout,
        eval_batch_size=min(250, num_examples),
        batch_size=128,
        num_seeds=1,
    )
    dataset = load_dataset(config)
    example = jax.ShapeDtypeStruct((28, 28, 1), np.float32)
    prepared = prepare(config, dataset, task_of_linen(Network(channels), example, output_loss("", True)))
    setup = prepared.setup
    examples = setup.place(prepared.inputs, dataset.labels)
    state = setup.initial_state(0, jax.tree.map(lambda leaf: leaf[0], examples))
    batches = np.arange(num_examples // 128 * 128, dtype=np.int32).reshape(-1, 128)

    def train(state: Any, examples: Any) -> Any:
        return jax.lax.scan(lambda state, batch: (setup.updated(state, batch, examples), None), state, batches)[0]

    program = compiled(jax.jit(train if layout == "plain" else setup.recorded).lower(state, examples), "cpu")
    times = []
    while len(times) < 2 or (len(times) < ROUNDS and sum(times) < SECONDS):
        began = time.perf_counter()
        jax.block_until_ready(program(state, examples))
        times.append(time.perf_counter() - began)
    share = num_examples / batches.size if layout == "plain" else 1
    return {
        "weights": sum(leaf.size for leaf in jax.tree.leaves(state.parameters)),
        "seconds": min(times) * share,
        "megabytes": 0.0 if layout == "plain" else plan(config, dataset, prepared).record_bytes / 1e6,
        "gigabytes peak": peak(),
    }


def record(seeds: int, processes: int, layout: str) -> dict:
    """Time a whole run, shared by some processes."""
    directory = Path(tempfile.mkdtemp(dir=DIRECTORY.value))
    command = [sys.executable, "-m", "train_dynamics.train", f"--recording={directory / 'out'}", f"--seeds={seeds}"]
    command += ["--dataset=mnist", f"--data_dir={DATA_DIR.value}", "--num_examples=300", "--batch_size=100"]
    command += ["--model=configs/networks.py:cnn", "--layers=*/kernel", f"--gradient_layout={layout}"]
    command += ["--epochs=10", "--eval_batch_size=250"]
    try:
        began = time.perf_counter()
        shares = [["--distributed", f"--num_processes={processes}", f"--process_id={k}"] for k in range(processes)]
        running = [
            subprocess.Popen([*command, *(share if processes > 1 else [])], stdout=subprocess.DEVNULL)
            for share in shares
        ]
        if any([process.wait() for process in running]):
            raise SystemExit("a process failed")
        seconds = time.perf_counter() - began
        size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    finally:
        shutil.rmtree(directory)
    return {"seconds": seconds, "megabytes": size / 1e6, "gigabytes peak": peak(resource.RUSAGE_CHILDREN)}


def points() -> list[dict]:
    found = [
        {"axis": axis, "of": [channels, examples, layout]}
        for axis, of_axis in AXES.items()
        for channels, examples in of_axis
        for layout in ("plain", *LAYOUTS)
    ]
    found += [{"axis": "seeds", "of": [seeds, 1, layout]} for seeds in SEEDS for layout in LAYOUTS]
    return found + [{"axis": "processes", "of": [10, count, layout]} for count in PROCESSES for layout in LAYOUTS]


def read(row: dict[str, str]) -> dict:
    """Read a row of the table."""
    numbers = {name: float(row[name]) for name in ("seconds", "megabytes", "gigabytes peak")}
    return {"axis": row["axis"], "value": int(row["value"]), "layout": row["layout"], **numbers}


def draw(rows: Sequence[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    from train_dynamics.plots.style import BLUE, GREEN, ORANGE, save, styled

    looks = {"plain": ("k", "x:"), "measures": (BLUE, "o-"), "factored": (ORANGE, "s-"), "sketch": (GREEN, "^-")}
    titles = ("one record of 128 examples", "one record", "a run of 31 records", "a run of ten seeds")
    axes_names = ("weights", "examples", "seeds", "processes")
    with styled():
        figure = Figure(figsize=(12.5, 5.6))
        grid = figure.subplots(2, 4)
        for column, (axis, title) in enumerate(zip(axes_names, titles, strict=True)):
            here = [row for row in rows if row["axis"] == axis]
            for row, name in enumerate(("seconds", "megabytes")):
                axes = grid[row, column]
                for layout, (color, mark) in looks.items():
                    line = [(r["value"], r[name]) for r in here if r["layout"] == layout]
                    if line and not (row and layout == "plain"):
                        label = "plain training on the same, once" if layout == "plain" else layout
                        axes.plot(*zip(*line, strict=True), mark, color=color, label=label, ms=4)
                axes.set(xscale="log", yscale="log")
                if axis in ("seeds", "processes"):
                    ticks = sorted({r["value"] for r in here})
                    axes.set_xticks(ticks, [str(tick) for tick in ticks])
                    axes.minorticks_off()
                if axis == "processes":
                    axes.set(xscale="linear", yscale="linear")
                    axes.set_ylim(0, None)
                if row == 0:
                    axes.set_title(title)
                else:
                    axes.set_xlabel(axis)
                if column == 0:
                    axes.set_ylabel(("seconds", "MB on disk")[row])
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        save(figure, path)


def main(arguments: Sequence[str]) -> None:
    if arguments[1:]:
        raise app.UsageError(f"{' '.join(arguments[1:])}: takes flags only")
    if not DATA_DIR.value or not Path(DATA_DIR.value, "mnist").is_dir():
        raise app.UsageError(f"--data_dir={DATA_DIR.value}: must hold mnist, as TFDS prepares it")
    if POINT.value:
        point = json.loads(POINT.value)
        print(json.dumps((measure if point["axis"] in AXES else record)(*point["of"])))
        return
    for directory in (DIRECTORY.value, OUTPUT.value):
        Path(directory).mkdir(parents=True, exist_ok=True)
    rows, failed = [], 0
    print(f"{'':10} {'':>9} {'':9} {'ms':>10} {'MB':>9} {'GB peak':>8}")
    output = Path(OUTPUT.value)
    if (output / "growth.csv").is_file():
        with (output / "growth.csv").open(newline="") as file:
            rows = [read(row) for row in csv.DictReader(file) if row["axis"] not in ONLY.value]
    for point in (point for point in points() if point["axis"] in ONLY.value):
        command = [sys.executable, "-m", "benchmarks.growth", f"--point={json.dumps(point)}"]
        command += [f"--directory={DIRECTORY.value}", f"--data_dir={DATA_DIR.value}"]
        done = subprocess.run(command, capture_output=True, text=True)
        axis, (first, second, layout) = point["axis"], point["of"]
        if done.returncode:
            failed += 1
            print(f"{axis:10} {point['of']} failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:150]}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        value = found.pop("weights") if axis == "weights" else first if axis == "seeds" else second
        found.pop("weights", None)
        row = {"axis": axis, "value": value, "layout": layout, **found}
        rows.append(row)
        numbers = f"{1000 * row['seconds']:10.1f} {row['megabytes']:9.2f} {row['gigabytes peak']:8.2f}"
        print(f"{axis:10} {value:9} {layout:9} {numbers}", flush=True)
    with (output / "growth.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["axis", "value", "layout", "seconds", "megabytes", "gigabytes peak"])
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, output / "growth")
    if failed:
        raise SystemExit(f"{failed} of {failed + len(rows)} points failed")


if __name__ == "__main__":
    app.run(main)
