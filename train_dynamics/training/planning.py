"""Forecasts what a run will need (disk, memory and time), and what would make it fit."""

import contextlib
import dataclasses
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from train_dynamics.config import InputError, StudyConfig, bytes_in_words, pluralise, time_in_words
from train_dynamics.data.arrays import Dataset
from train_dynamics.recording.locks import existing
from train_dynamics.recording.writer import Writer
from train_dynamics.training.setup import Prepared, check_examples_apart, prepare
from train_dynamics.training.sweep import Plan, Sweep, enough_memory, local_devices, peak_bytes, plan

FEW = 3  # records that are timed first
SECONDS = 6.0  # that a trial may take after that, or each of the first records, where they take longer
BLOCKS = 4
WAYS = 3


class Forecast(NamedTuple):
    """What a run will need.

    Attributes:
        num_records: Number of records of each seed.
        disk_bytes: Bytes of the recording.
        memory_bytes: Bytes of memory at the peak, including this process and its libraries.
        seconds: Seconds for the whole command, from its start.
        record_seconds: Seconds for one record of all seeds and the updates before the next. It is stored meanwhile.
    """

    num_records: int
    disk_bytes: int
    memory_bytes: int
    seconds: float
    record_seconds: float


class Way(NamedTuple):
    """A change of flags that makes a run fit.

    Attributes:
        flags: The flags to add.
        disk_bytes: Bytes of the recording with them.
        cost: What is lost.
    """

    flags: str
    disk_bytes: int
    cost: str


def forecast(
    config: StudyConfig,
    dataset: Dataset,
    path: Path,
    began: float,
    devices: Sequence[jax.Device] | None = None,
) -> Forecast:
    """Record a few blocks into a temporary directory beside the recording, and extrapolate from them.

    It first times three records, and from these decides how long the trial is: whole blocks, or short ones if whole
    blocks would take too long. If a single record takes seconds, there is no trial, because storing it takes little
    time beside that.

    Args:
        config: The configuration.
        dataset: Its examples.
        path: Where the recording will be.
        began: When the command began, as `time.monotonic` gives it.
        devices: Devices to use. Default: all devices of this machine.

    Raises:
        InputError: If the configuration is wrong, or if not even a block fits on the disk or in memory.
    """
    prepared = prepare(config, dataset)
    todo = plan(config, dataset, prepared)
    least, memory = 2 * todo.record_bytes + todo.state_bytes, memory_of_machine()
    if memory and least > memory:
        raise InputError(
            f"not enough memory: two records of {pluralise(config.num_seeds, 'seed')} need {bytes_in_words(least)}, "
            f"and this machine has {bytes_in_words(memory)}; fewer --seeds or --num_examples need less"
        )
    check_examples_apart(config, prepared, dataset.labels)
    devices = list(devices or local_devices())
    room = existing(path)
    with enough_memory():
        few = Sweep(config, dataset, 1, devices, prepared)
        started = time.monotonic() - began
        each, update = _timed(few, todo)
        del few
        jax.clear_caches()  # which keep its program, and with that its copy of the examples
        length = max(1, min(todo.block_length, int(SECONDS / (BLOCKS * each))))
        last, in_memory = 0.0, 1  # records, so far
        needed = BLOCKS * (length * todo.record_bytes + todo.state_bytes)
        if each < SECONDS and needed <= shutil.disk_usage(room).free:
            with tempfile.TemporaryDirectory(prefix=".plan_", dir=room) as place:
                sweep = Sweep(config, dataset, length, devices, prepared)
                each, last = _recorded(sweep, config, dataset, prepared, todo, Path(place) / "recording", each)
            in_memory = 2 * length
    # Two blocks are in memory, one being computed and one being stored; those of the trial are in the peak already.
    more = max(2 * todo.block_length - in_memory, 0) * todo.record_bytes
    # After each of the first records comes one update, or as many as after all others.
    further = int(todo.iterations[-1]) - todo.num_records * int(np.ptp(todo.iterations[:2]))
    each += update * max(further, 0) / todo.num_records
    seconds = started + todo.num_records * each + last
    return Forecast(todo.num_records, todo.bytes_from(0), peak_bytes() + more, seconds, each)


def _timed(sweep: Sweep, todo: Plan) -> tuple[float, float]:
    """Time a record with the update after it, and an update alone, in seconds."""
    state, records = sweep.run(sweep.initial_state(), sweep.empty_records(), 0)
    jax.block_until_ready(records)
    gaps, times = np.diff(todo.iterations), []
    longest = int(gaps.argmax()) if len(gaps) else 0
    for first in (0, 0, longest)[: FEW if longest else 2]:
        began = time.perf_counter()
        state, records = jax.block_until_ready(sweep.run(state, records, first))
        times.append(time.perf_counter() - began)
    each = min(times[:2])
    more = int(gaps[longest] - gaps[0]) if longest else 0
    return each, max(times[-1] - each, 0) / more if more else 0.0


def _recorded(
    sweep: Sweep,
    config: StudyConfig,
    dataset: Dataset,
    prepared: Prepared,
    todo: Plan,
    path: Path,
    each: float,
) -> tuple[float, float]:
    """Record a few blocks, and return seconds per record, and for storing the last block, with no other computed.

    Seconds per record are as computed before, if there are too few blocks to tell.
    """
    firsts = list(range(0, todo.num_records, sweep.block_length))[:BLOCKS]
    if len(firsts) < 2 or len(firsts) * sweep.block_length > todo.num_records:
        return each, 0.0
    writer = Writer(path, config, dataset, prepared.contents, sweep.block_length, 0, {})
    with contextlib.closing(writer):
        began = []  # of storing each block
        for first, record, ending in sweep.blocks(sweep.initial_state(), firsts, writer.wait):
            began.append(time.perf_counter())
            writer.save(int(todo.iterations[first]), record, ending)
            del record
        writer.wait()
    each = (began[-1] - began[0]) / ((len(began) - 1) * sweep.block_length)
    return each, time.perf_counter() - began[-1]


def ways_to_fit(config: StudyConfig, dataset: Dataset, free: int) -> list[Way]:
    """Find the cheapest changes, at most three, that make a recording fit on its disk.

    Args:
        config: The configuration.
        dataset: Its examples.
        free: Number of free bytes.
    """
    return sorted(_ways(config, dataset, free), key=lambda way: -way.disk_bytes)[:WAYS]


def _ways(config: StudyConfig, dataset: Dataset, free: int) -> Iterator[Way]:
    prepared = prepare(config, dataset)
    whole = plan(config, dataset, prepared)

    def fits(**changes: object) -> int:
        """Return the bytes needed with some changes, or 0 if that is too many."""
        with contextlib.suppress(InputError):
            needed = plan(dataclasses.replace(config, **changes), dataset).bytes_from(0)
            return needed if needed <= free else 0
        return 0

    if config.record_every == 1 and config.records_per_doubling is None:
        records = max((k for k in _halved(whole.num_records // 2) if fits(records_per_doubling=k)), default=0)
        if records:
            size = fits(records_per_doubling=records)
            cost = f"every iteration up to {2 * records:,}, then ever more rarely"
            yield Way(f"--records_per_doubling={records}", size, cost)
    if config.records_per_doubling is None:
        times = math.ceil(whole.bytes_from(0) / max(free, 1))
        for k in (times, times + 1):
            if size := fits(record_every=config.record_every * k):
                yield Way(f"--record_every={config.record_every * k}", size, f"one record of {k} stays")
                break
    if "measures" not in config.gradient_layout and (size := fits(gradient_layout="measures")):
        yield Way(
            "--gradient_layout=measures", size, "norms and alignments stay, and no gradients to compare examples by"
        )
    seeds = max((k for k in range(1, config.num_seeds) if fits(num_seeds=k)), default=0)
    if seeds:
        yield Way(f"--seeds={seeds}", fits(num_seeds=seeds), f"{pluralise(config.num_seeds - seeds, 'seed')} fewer")


def _halved(most: int) -> Iterator[int]:
    while most > 0:
        yield most
        most //= 2


def told(found: Forecast, config: StudyConfig, dataset: Dataset, path: Path, log: Callable[[str], None]) -> bool:
    """Log what a run will need, and what would make it fit. Returns whether it fits."""
    free, memory = shutil.disk_usage(existing(path)).free, memory_of_machine()
    log(f"Plan for {path}, from a trial of the first records:")
    log(f"  {pluralise(found.num_records, 'record')} of {pluralise(config.num_seeds, 'seed')}")
    log(f"  {bytes_in_words(found.disk_bytes)} of disk space; {bytes_in_words(free)} are free")
    has = f", of which this machine has {bytes_in_words(memory)}" if memory else ""
    log(f"  {bytes_in_words(found.memory_bytes)} of memory at the peak{has}")
    log(
        f"  {time_in_words(found.seconds)} in all: {1000 * found.record_seconds:.3g} ms per record of all seeds, "
        "including storing it"
    )
    if found.disk_bytes > free:
        ways = ways_to_fit(config, dataset, free)
        log(
            "It does not fit on the disk. These flags would make it fit:"
            if ways
            else "It does not fit on the disk; choose another one"
        )
        for way in ways:
            log(f"  {way.flags}: {bytes_in_words(way.disk_bytes)}; {way.cost}")
    if memory and found.memory_bytes > memory:
        log("It does not fit in memory. These flags need less:")
        log("  --eval_batch_size=1000: evaluate 1000 examples at a time, which takes 1.5 times as long")
        if config.num_seeds > 1:
            half = config.num_seeds // 2
            log(
                f"  --seeds={half}, and later the others with --first_seed={config.first_seed + half}; analyze reads "
                "both as one"
            )
    return found.disk_bytes <= free and not (memory and found.memory_bytes > memory)


def memory_of_machine() -> int:
    """Return how much memory this machine has. 0 if the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0
