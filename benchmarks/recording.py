"""Time the recorder against its floor, interleaved in one run, on the default study.

    python benchmarks/recording.py [--rounds=7] [--directory=recordings]

The floor is the first layer's matrix product for all seeds, [6000, 784] @ [784, 80], alone. "Compute" is the update and
the record of all seeds, nothing stored. Every third round also times a whole run: its compute alone, all blocks one
after the other, and "train", the whole command in a process of its own: start, imports, compilation, data, compute, and
6.9 GB stored to the disk that --directory is on; once with the programs that JAX has kept from an earlier run, and once
with all compiled anew.
"""

import functools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from train_dynamics.config import StudyConfig, pluralise
from train_dynamics.data.datasets import load_dataset, standardise
from train_dynamics.training import sweep

ROUNDS = flags.DEFINE_integer("rounds", 7, "Times that floor and compute take turns.", lower_bound=1)
DIRECTORY = flags.DEFINE_string("directory", "recordings", "Directory to record into, for a while.")


def timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began


def main(_) -> None:
    config = StudyConfig()
    dataset = load_dataset(config)
    plan = sweep.plan(config, dataset)
    devices = jax.local_devices()
    swept = sweep.Sweep(config, dataset, plan.block_length, devices)
    state = swept.initial_state()
    buffers = [swept.empty_records(), swept.empty_records()]

    images = jnp.asarray(
        standardise(dataset.images, config.pixel_mean, config.pixel_std).reshape(len(dataset.labels), -1)
    )
    kernels = jnp.asarray(np.random.default_rng(0).normal(size=(images.shape[1], 8 * config.num_seeds)), jnp.float32)
    product = jax.jit(lambda x, w: jnp.matmul(x, w, precision="highest"))

    def floor() -> jax.Array:
        for _ in range(plan.block_length):
            result = product(images, kernels)
        return result

    def compute() -> jax.Array:
        nonlocal state
        state, records = swept.run(state, buffers.pop(0), 0)
        buffers.append(records)
        return records["loss"]

    for warm_up in (floor, compute, floor, compute):
        timed(warm_up)
    Path(DIRECTORY.value).mkdir(parents=True, exist_ok=True)

    def run() -> jax.Array:
        for _ in range(0, plan.num_records, plan.block_length):
            loss = compute()
        return loss

    rounds, runs = [], []
    train(Path(DIRECTORY.value))  # which keeps the programs
    for round in range(ROUNDS.value):
        rounds.append((timed(floor), timed(compute)))
        if round % 3 == 0:
            kept = train(Path(DIRECTORY.value))
            own = timed(run)
            anew = train(Path(DIRECTORY.value), JAX_ENABLE_COMPILATION_CACHE="false")
            runs.append((own, kept, anew))
    floors, computes = ([1000 * t / plan.block_length for t in column] for column in zip(*rounds, strict=True))
    kind = f"{devices[0].device_kind} device"
    print(f"{pluralise(len(devices), kind)}, jax {jax.__version__}, {pluralise(config.num_seeds, 'seed')}")
    print(f"{'ms an iteration':30} {'median':>8} {'min':>8} {'max':>8}")
    for name, values in (("floor: one matrix product", floors), ("compute: update and record", computes)):
        print(f"{name:30} {statistics.median(values):8.2f} {min(values):8.2f} {max(values):8.2f}")
    ratio = statistics.median(c / f for f, c in zip(floors, computes, strict=True))
    print(f"compute / floor                {ratio:8.2f}   (target: at most 2.0)")
    print(f"{'seconds':30} {'median':>8} {'min':>8} {'max':>8}")
    owns, *trains = zip(*runs, strict=True)
    names = ("its compute alone", "train, programs kept", "train, compiled anew")
    for name, seconds in zip(names, (owns, *trains), strict=True):
        print(f"{name:30} {statistics.median(seconds):8.1f} {min(seconds):8.1f} {max(seconds):8.1f}")
    for name, seconds in zip(("train / its compute", "the same, compiled anew"), trains, strict=True):
        ratio = statistics.median(whole / own for whole, own in zip(seconds, owns, strict=True))
        print(f"{name:30} {ratio:8.2f}   (target: at most 1.5)")


def train(directory: Path, **environment: str) -> float:
    """Seconds of the whole command."""
    directory = Path(tempfile.mkdtemp(dir=directory))
    try:
        command = [sys.executable, "-m", "train_dynamics.train", f"--recording={directory / 'recording'}"]
        os.sync()  # or it would be timed how the recording before is removed
        run = functools.partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
        return timed(lambda: run(env={**os.environ, **environment}))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    app.run(main)
