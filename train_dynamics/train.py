"""Train a network from several seeds and record every example's gradient at every iteration.

    python -m train_dynamics.train --recording=recordings/mini_mnist

The same command again goes on where an interrupted one ended.
"""

import contextlib
import sys
from pathlib import Path

from absl import flags

from train_dynamics.commands import (
    NumberParser,
    config_from_flags,
    define_config_flags,
    print_line,
    run,
    stop_on_signals,
)
from train_dynamics.config import InputError
from train_dynamics.data.datasets import load_dataset
from train_dynamics.processes import Helpers
from train_dynamics.recording.locks import check_writable, is_begun

MOST_DEVICES = 1000  # each takes memory and threads before anything is computed

RECORDING = flags.DEFINE_string(
    "recording", "recordings/mini_mnist", "Directory to record into; a recording of the same flags there is continued."
)
HOST_DEVICES = flags.DEFINE(
    NumberParser(int),
    "host_devices",
    None,
    "Devices to split the CPU into, with the seeds divided among them; one if not given, which two cores run as fast.",
)


def main() -> None:
    """Run the command."""
    config = config_from_flags()
    if HOST_DEVICES.value is not None and not 1 <= HOST_DEVICES.value <= MOST_DEVICES:
        raise InputError.flag("host_devices", HOST_DEVICES.value, f"must be a whole number, 1 to {MOST_DEVICES}")
    path = Path(RECORDING.value)
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
    noted = stop_on_signals("train: ends after this block; a second signal ends it at once")
    sweep.enable_compilation_cache()
    jax.config.update("jax_enable_x64", False)  # whatever the environment says, a recording is in float32
    if HOST_DEVICES.value is not None:
        jax.config.update("jax_num_cpu_devices", HOST_DEVICES.value)
    if not sweep.train(config, path, log=print_line, stop=lambda: bool(noted), dataset=dataset):
        print("train: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(128 + noted[0])


if __name__ == "__main__":
    define_config_flags()
    run("train", main)
