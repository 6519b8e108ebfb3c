"""Several processes that record one study together: they meet once, to learn who is who, and then work alone.

Seeds need nothing of each other, so there is nothing to exchange. What JAX's distributed runtime is for here is to find
the others: it knows SLURM, Kubernetes, MPI and cloud machines. It is left again before anything is computed, for it
ends all processes where one dies.
"""

from typing import NamedTuple

from train_dynamics.config import InputError

MEETING_SECONDS = 300


class Host(NamedTuple):
    """A process among others.

    Attributes:
        process: Its number, from 0.
        num_processes: How many there are.
        visible_devices: GPUs that are its own, as `CUDA_VISIBLE_DEVICES` lists them; all if empty.
    """

    process: int
    num_processes: int
    visible_devices: str = ""


def meet(coordinator_address: str | None, num_processes: int | None, process_id: int | None) -> Host:
    """Wait for all processes, and learn which one this is.

    It takes a process of its own (`train_dynamics.processes`), because what JAX learns here it would not forget.

    Args:
        coordinator_address: Host and port of process 0; found out by JAX if None, as the others.
        num_processes: How many there are.
        process_id: Which one this is.

    Raises:
        InputError: If JAX cannot tell, or the others do not come.
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
            f"the processes did not find each other: {told}; where JAX cannot tell by itself, say "
            "--coordinator_address=HOST:PORT of process 0, --num_processes and --process_id",
        ) from error
    return found if found.visible_devices != "all" else found._replace(visible_devices="")
