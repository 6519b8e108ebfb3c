"""Time the covering of examples with cones, and its memory, as the number of examples grows.

    python benchmarks/cones.py --data_dir=DIR [--examples=1500,3000,6000,15000,30000,60000] [--iterations=100]

DIR holds MNIST as TFDS prepares it. The default network is trained on it for so many updates; then the gradients of its
second layer are covered, in a process of its own for each number of examples.
"""

import multiprocessing
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from train_dynamics.config import StudyConfig
from train_dynamics.data.datasets import load_dataset, standardise
from train_dynamics.dynamics import cones
from train_dynamics.dynamics.tiles import apart, tiles
from train_dynamics.gradients import per_example
from train_dynamics.study.cones import COVERS
from train_dynamics.training import steps

DATA_DIR = flags.DEFINE_string("data_dir", None, "Directory of prepared TFDS data sets.", required=True)
EXAMPLES = flags.DEFINE_list("examples", ["1500", "3000", "6000", "15000", "30000", "60000"], "Numbers of examples.")
ITERATIONS = flags.DEFINE_integer("iterations", 100, "Updates before the gradients are taken.")


def factors(count: int) -> tuple[np.ndarray, np.ndarray]:
    config = StudyConfig(dataset="mnist", data_dir=DATA_DIR.value, num_examples=count, num_seeds=1)
    dataset = load_dataset(config)
    images = jnp.asarray(standardise(dataset.images, config.pixel_mean, config.pixel_std))
    labels = jnp.asarray(dataset.labels)
    setup = steps.set_up(config, dataset.num_classes)
    state = steps.initial_state(setup, jnp.int32(0), images[0])
    step = jax.jit(lambda state, batch: steps.update(setup, state, batch, images, labels))
    for batch in steps.batch_indices(config, 0, count, 0, ITERATIONS.value):
        state = step(state, batch)
    found = per_example.evaluate(setup.model, state.parameters, images, labels, ("fc2",))
    return np.asarray(found.activation["fc2"]), np.asarray(found.cotangent["fc2"])


def resident(name: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM), as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure(connection, activation: np.ndarray, cotangent: np.ndarray, method: str) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = resident("VmRSS")
    began = time.perf_counter()
    directions = cones.directions(activation, cotangent)
    sets = apart(tiles(directions), 0.95)
    divided = time.perf_counter()
    cone = cones.cover_apart(directions, sets, 0.95, COVERS[method])
    seconds = divided - began, time.perf_counter() - divided
    memory = resident("VmHWM") - before
    sizes = np.bincount(cone[cone >= 0])
    connection.send((*seconds, memory, len(sizes), sizes.max()))


def main(_) -> None:
    print(f"{'examples':>8} {'cover':>7} {'apart':>10} {'cover':>8} {'memory':>8} {'cones':>7} {'largest':>8}")
    spawn = multiprocessing.get_context("spawn")
    for count in map(int, EXAMPLES.value):
        made = factors(count)
        for method in COVERS:
            here, there = spawn.Pipe()
            process = spawn.Process(target=measure, args=(there, *made, method))
            process.start()
            sets, cover, memory, number, largest = here.recv()
            process.join()
            line = f"{count:8} {method:>7} {sets:8.2f} s {cover:6.2f} s {memory / 1e6:5.0f} MB {number:7} {largest:8}"
            print(line, flush=True)


if __name__ == "__main__":
    app.run(main)
