"""Train a network from several seeds and record every example's gradient at every iteration.

    python -m train_dynamics.train --recording=recordings/mini_mnist

Run the same command again to continue an interrupted run.
"""

import contextlib
import dataclasses
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from train_dynamics.commands import (
    NumberParser,
    config_from_flags,
    define_config_flags,
    print_line,
    run,
    stop_on_signals,
)
from train_dynamics.config import InputError, StudyConfig, pluralise
from train_dynamics.data.datasets import load_dataset
from train_dynamics.processes import Helpers
from train_dynamics.recording import parts
from train_dynamics.recording.locks import check_writable, is_begun
from train_dynamics.recording.remote import check_local

if TYPE_CHECKING:
    from train_dynamics.data.arrays import Dataset
    from train_dynamics.training.hosts import Host

MOST_DEVICES = 1000  # each takes memory and threads before anything is computed
MOST_PORT = 65535

RECORDING = flags.DEFINE_string(
    "recording",
    "recordings/mini_mnist",
    "Directory to record into. If it holds an unfinished recording with the same flags, that one is continued.",
)
HOST_DEVICES = flags.DEFINE(
    NumberParser(int),
    "host_devices",
    None,
    "Split the CPU into this many devices and divide the seeds among them. Default: one device, which is as fast "
    "on two cores.",
)
PLAN = flags.DEFINE_boolean(
    "plan",
    False,
    "Record nothing. Run a short trial, and print how much disk space, memory and time the recording would take; "
    "if it does not fit, print which flags would make it fit.",
)
DISTRIBUTED = flags.DEFINE_boolean(
    "distributed",
    False,
    "This is one of several processes that share the seeds. Start each with the same flags; each writes its own "
    "part of the recording. JAX finds the other processes on SLURM, Kubernetes, MPI and cloud machines; elsewhere, "
    "also give the next three flags.",
)
COORDINATOR_ADDRESS = flags.DEFINE_string(
    "coordinator_address",
    None,
    "HOST:PORT of process 0, where all processes meet before they start. To restart one process alone, leave this "
    "out and give only the next two.",
)
NUM_PROCESSES = flags.DEFINE(NumberParser(int), "num_processes", None, "Number of processes.")
PROCESS_ID = flags.DEFINE(NumberParser(int), "process_id", None, "Number of this process, from 0.")


def main() -> None:
    """Run the command."""
    began = time.monotonic() - time.process_time()  # what Python itself took to start counts too
    check_local(RECORDING.value)
    config, path = config_from_flags(), Path(RECORDING.value)
    host = which_host()
    if host is not None:
        shares = parts.begin(path, config, host.num_processes)
        if host.process >= len(shares):
            print_line(f"Process {host.process} has nothing to do: there are {pluralise(config.num_seeds, 'seed')}")
            return
        part = shares[host.process]
        config = dataclasses.replace(config, first_seed=part.seeds[0], num_seeds=len(part.seeds))
        path /= part.name
        print_line(f"Process {host.process} of {host.num_processes} records seeds {part.seeds[0]} to {part.seeds[-1]}")
    elif os.path.isfile(path / parts.NAME):  # which says no where Path would raise
        raise InputError.flag(
            "recording", path, "is recorded by several processes; say --distributed, or choose another"
        )
    if HOST_DEVICES.value is not None and not 1 <= HOST_DEVICES.value <= MOST_DEVICES:
        raise InputError.flag("host_devices", HOST_DEVICES.value, f"must be a whole number, 1 to {MOST_DEVICES}")
    begun = is_begun(path, config)
    if not begun:
        check_writable(path)  # before anything is downloaded
    # A recording that is begun holds its examples. Reading others takes as long as importing JAX, and is done in a
    # process of its own, since in a thread both would wait for the one interpreter.
    with contextlib.ExitStack() as stack:
        reading = None if begun else stack.enter_context(Helpers(1)).submit(load_dataset, config)
        import jax  # takes seconds to import, which a typing error should not

        from train_dynamics.training import sweep

        dataset = None if reading is None else reading.result()
    if PLAN.value:  # which leaves nothing behind, however it ends
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    else:
        noted = stop_on_signals("train: stopping after this block; a second signal stops it at once")
    sweep.enable_compilation_cache()
    jax.config.update("jax_enable_x64", False)  # whatever the environment says, a recording is in float32
    if host is not None and host.visible_devices:
        jax.config.update("jax_cuda_visible_devices", host.visible_devices)
    if HOST_DEVICES.value is not None:
        jax.config.update("jax_num_cpu_devices", HOST_DEVICES.value)
    if PLAN.value:
        _plan(config, path, dataset, began)
        return
    if not sweep.train(config, path, log=print_line, stop=lambda: bool(noted), dataset=dataset):
        print("train: interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(128 + noted[0])


def _plan(config: StudyConfig, path: Path, dataset: "Dataset | None", began: float) -> None:
    """Print what a run would need, and end the command with status 1 if it does not fit."""
    from train_dynamics.training import planning

    dataset = load_dataset(config) if dataset is None else dataset
    found = planning.forecast(config, dataset, path, began)
    if not planning.told(found, config, dataset, path, print_line):
        sys.exit(1)


def which_host() -> "Host | None":
    """Find out which of several processes this is. Returns None if it is the only one.

    Raises:
        InputError: If the flags contradict each other, or if the processes do not find each other.
    """
    address, count, process = COORDINATOR_ADDRESS.value, NUM_PROCESSES.value, PROCESS_ID.value
    for name, value in (("coordinator_address", address), ("num_processes", count), ("process_id", process)):
        if value is not None and not DISTRIBUTED.value:
            raise InputError.flag(name, value, "goes with --distributed")
    if not DISTRIBUTED.value:
        return None
    if (count is None) != (process is None) or (address is not None and count is None):
        raise InputError.flag("distributed", True, "needs both --num_processes and --process_id, or none of the three")
    if count is not None and count < 1:
        raise InputError.flag("num_processes", count, "must be 1 or more")
    if count is not None and not 0 <= process < count:
        raise InputError.flag("process_id", process, f"must be from 0 to {count - 1}, one less than --num_processes")
    if address is not None and not _is_address(address):
        raise InputError.flag("coordinator_address", address, f"must be HOST:PORT, with a port from 1 to {MOST_PORT}")
    from train_dynamics.training.hosts import Host, meet

    if address is None and count is not None:  # alone, as where one of them is started again
        return Host(process, count)
    print_line("Waiting for all processes to start")
    with Helpers(1) as helpers:
        return helpers.submit(meet, address, count, process).result()


def _is_address(address: str) -> bool:
    host, _, port = address.rpartition(":")
    return bool(host) and port.isdecimal() and 1 <= int(port) <= MOST_PORT


if __name__ == "__main__":
    define_config_flags()
    run("train", main)
