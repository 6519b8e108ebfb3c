"""Several processes that record one study together. They meet once to number themselves, and then work alone.

Seeds do not depend on each other, so there is nothing to exchange. JAX's distributed runtime is used only to find the
other processes: it knows SLURM, Kubernetes, MPI and cloud machines. It is shut down before any computation, because it
would end all processes if one dies.
"""

from typing import NamedTuple

from train_dynamics.config import InputError

MEETING_SECONDS = 300


class Host(NamedTuple):
    """One process among several.

    Attributes:
        process: Its number, from 0.
        num_processes: Number of processes.
        visible_devices: The GPUs of this process, written as in `CUDA_VISIBLE_DEVICES`. Empty means all.
    """

    process: int
    num_processes: int
    visible_devices: str = ""


def meet(coordinator_address: str | None, num_processes: int | None, process_id: int | None) -> Host:
    """Wait for all processes, and find out which one this is.

    It runs in a process of its own (`train_dynamics.processes`), because JAX could not forget what it learns here.

    Args:
        coordinator_address: Host and port of process 0. If None, JAX finds this out, and the other two as well.
        num_processes: Number of processes.
        process_id: Which one this is.

    Raises:
        InputError: If JAX cannot find out, or if the other processes do not come.
    """
    import os

    os.environ["JAX_PLATFORMS"] = "cpu"  # no device is needed to meet
    import jax

    try:
        jax.distributed.initialize(
            coordinator_address, num_processes, process_id, initialization_timeout=MEETING_SECONDS
        )
        found = Host(jax.process_index(), jax.process_count(), jax.config.values.get("jax_cuda_visible_devices", ""))
        jax.distributed.shutdown()
    except (ValueError, RuntimeError) as error:
        told = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise InputError.flag(
            "distributed",
            True,
            f"the processes did not find each other: {told}; where JAX cannot find them by itself, give "
            "--coordinator_address=HOST:PORT of process 0, --num_processes and --process_id",
        ) from error
    return found if found.visible_devices != "all" else found._replace(visible_devices="")
