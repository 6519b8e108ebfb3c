"""Measure how the cost of recording grows: examples, seeds, width, depth and iterations, each alone.

    python -m benchmarks.scaling [--data_dir=DIR] [--output=recordings/scaling] [--directory=recordings]

Every point is a process of its own, so that its peak memory is its own; on a GPU it is the GPU's. All but the last row
start from the default study and time update and record of a few iterations, nothing stored; iterations are whole
`train` commands of one seed and 1,500 examples, stored. Examples beyond 6,000 need --data_dir, where MNIST lies as TFDS
prepares it. A point that fails, for want of memory say, is left out, and the program then ends with 1.
"""

import csv
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

POINT = flags.DEFINE_string("point", None, "One point, as JSON; used by this program on itself.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Directory that holds mnist; without it, no more than 6,000 examples.")
OUTPUT = flags.DEFINE_string("output", "recordings/scaling", "Directory for scaling.csv, scaling.png and scaling.svg.")
DIRECTORY = flags.DEFINE_string("directory", "recordings", "Directory to record into, for a while.")
WIDE = {"hidden_sizes": (128, 10), "layers": ("fc3",)}  # what is evaluated is larger than what is recorded
AXES = {
    "examples": [("num_examples", n) for n in (1500, 3000, 6000, 15000, 30000, 60000)],
    "examples, 784-128-10-10": [("num_examples", n) for n in (1500, 6000, 15000, 60000)],
    "examples, 784-128-10-10, 1,000 at a time": [("num_examples", n) for n in (1500, 6000, 15000, 60000)],
    "seeds": [("num_seeds", n) for n in (1, 2, 5, 10, 20, 40)],
    "hidden width": [("hidden_sizes", (n,)) for n in (8, 16, 32, 64, 128, 256, 512)],
    "hidden layers of 8": [("hidden_sizes", (8,) * n) for n in (1, 2, 4, 8)],
    "iterations": [("epochs", n) for n in (10, 30, 100, 300, 1000)],
}
SMALL = {"num_examples": 1500, "num_seeds": 1, "batch_size": 150}  # ten iterations an epoch
SECONDS, ROUNDS = 3, 5
LEAST = 0.2  # seconds of one timing: blocks follow each other without waiting, as in a run


def settings(axis: str, field: str, value: object) -> dict:
    point = {field: value}
    if axis == "iterations":
        point |= SMALL
    elif point.get("num_examples", 0) > 6000:
        point |= {"dataset": "mnist", "data_dir": DATA_DIR.value}
    if "784-128" in axis:
        point |= WIDE
    if axis.endswith("at a time"):
        point["eval_batch_size"] = 1000
    return point


def measure(point: dict) -> dict:
    """Time one point in this process."""
    import jax

    from train_dynamics.config import StudyConfig
    from train_dynamics.data.datasets import load_dataset
    from train_dynamics.training import sweep

    config = StudyConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in point.items()})
    if "epochs" in point:
        directory = Path(tempfile.mkdtemp(dir=DIRECTORY.value))
        try:
            began = time.perf_counter()
            sweep.train(config, directory / "recording", log=lambda _: None)
            seconds = time.perf_counter() - began
        finally:
            shutil.rmtree(directory)
        found = {"seconds": seconds}
    else:
        dataset = load_dataset(config)
        plan = sweep.plan(config, dataset)
        length = max(1, min(plan.block_length, 10))
        swept = sweep.Sweep(config, dataset, length, jax.local_devices())
        state, records = swept.initial_state(), swept.empty_records()

        def timed(blocks: int) -> float:
            nonlocal state, records
            began = time.perf_counter()
            for _ in range(blocks):
                state, records = swept.run(state, records, 0)
            jax.block_until_ready(records)
            return time.perf_counter() - began

        timed(1)
        blocks = max(1, round(LEAST / timed(1)))
        times = []
        while len(times) < ROUNDS and (sum(times) < SECONDS or len(times) < 2):
            times.append(timed(blocks) / blocks)
        found = {"seconds": statistics.median(times) / length, "megabytes stored": plan.record_bytes / 1e6}
    on_device = jax.local_devices()[0].memory_stats()  # None of a CPU
    in_process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {**found, "gigabytes peak": (on_device["peak_bytes_in_use"] if on_device else in_process) / 1e9}


def draw(rows: Sequence[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    from train_dynamics.plots.style import BLUE, GREEN, ORANGE, save, styled

    panels = [axis for axis in AXES if not axis.endswith("at a time")]
    with styled():
        figure = Figure(figsize=(12.5, 5.6))
        grid = figure.subplots(2, len(panels), sharey="row")
        for column, axis in enumerate(panels):
            for row, (name, unit) in enumerate((("seconds", "seconds"), ("gigabytes peak", "peak memory, GB"))):
                axes = grid[row, column]
                for suffix, color, mark in (("", BLUE, "o-"), (", 1,000 at a time", ORANGE, "s--")):
                    points = [(r["value"], r[name]) for r in rows if r["axis"] == axis + suffix]
                    label = "1,000 examples at a time" if suffix else "all examples at once"
                    axes.plot(*zip(*points, strict=True) if points else ((), ()), mark, color=color, label=label, ms=4)
                    if points and not suffix and row == 0:
                        x, y = points[-1]
                        values = [v for v, _ in points]
                        axes.plot(
                            values, [y * v / x for v in values], ":", color=GREEN, label="proportional to the last"
                        )
                axes.set(xscale="log", yscale=("log", "linear")[row])
                values = sorted({r["value"] for r in rows if r["axis"] == axis})
                ticks = values[:: max(1, -(-len(values) // 3))]
                axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
                axes.minorticks_off()
                if row == 0:
                    axes.set_title("a whole run" if axis == "iterations" else "an iteration")
                else:
                    axes.set_xlabel(axis.replace(", ", ",\n"))
                if column == 0:
                    axes.set_ylabel(unit)
        grid[1, 0].set_ylim(0, None)
        figure.legend(*grid[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        save(figure, path)


def main(arguments: Sequence[str]) -> None:
    if arguments[1:]:
        raise app.UsageError(f"{' '.join(arguments[1:])}: takes flags only")
    if POINT.value:
        print(json.dumps(measure(json.loads(POINT.value))))
        return
    if DATA_DIR.value and not Path(DATA_DIR.value, "mnist").is_dir():
        raise app.UsageError(f"--data_dir={DATA_DIR.value}: holds no mnist, as TFDS prepares it")
    for directory in (DIRECTORY.value, OUTPUT.value):
        Path(directory).mkdir(parents=True, exist_ok=True)
    rows, failed = [], 0
    print(f"{'':42} {'':>8} {'ms':>9} {'GB peak':>8} {'MB stored':>10}")
    for axis, points in AXES.items():
        for field, value in points:
            point = settings(axis, field, value)
            if point.get("dataset") == "mnist" and not DATA_DIR.value:
                continue
            command = [sys.executable, "-m", "benchmarks.scaling", f"--point={json.dumps(point)}"]
            done = subprocess.run([*command, f"--directory={DIRECTORY.value}"], capture_output=True, text=True)
            shown = value if isinstance(value, int) else (value[0] if axis == "hidden width" else len(value))
            shown *= 10 if axis == "iterations" else 1
            if done.returncode:
                failed += 1
                print(f"{axis:42} {shown:8} failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:150]}")
                continue
            row = {"axis": axis, "value": shown, **json.loads(done.stdout.splitlines()[-1])}
            rows.append(row)
            stored = f"{row['megabytes stored']:10.1f}" if "megabytes stored" in row else ""
            print(f"{axis:42} {shown:8} {1000 * row['seconds']:9.2f} {row['gigabytes peak']:8.2f} {stored}", flush=True)
    output = Path(OUTPUT.value)
    with (output / "scaling.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["axis", "value", "seconds", "gigabytes peak", "megabytes stored"])
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, output / "scaling")
    if failed:
        raise SystemExit(f"{failed} of {failed + len(rows)} points failed")


if __name__ == "__main__":
    app.run(main)
