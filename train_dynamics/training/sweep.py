"""Trains the seeds on the devices, block after block. One block is computed while the one before is stored."""

import contextlib
import dataclasses
import functools
import itertools
import math
import os
import resource
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from train_dynamics.config import InputError, StudyConfig, bytes_in_words, pluralise, time_in_words
from train_dynamics.data.datasets import Dataset, load_dataset
from train_dynamics.gradients.measures import Share
from train_dynamics.progress import Progress
from train_dynamics.recording.format import RecordingError
from train_dynamics.recording.locks import check_writable, existing, is_begun
from train_dynamics.recording.reader import Recording
from train_dynamics.recording.remote import check_local
from train_dynamics.recording.writer import Writer
from train_dynamics.task.task import Task
from train_dynamics.training import steps
from train_dynamics.training.code import check_code, code_of
from train_dynamics.training.setup import Prepared, check_examples_apart, prepare

BLOCK_BYTES = 256 * 1024**2
BLOCK_ITERATIONS = 50
OPTIONS: dict[str, dict[str, Any]] = {
    "cpu": {
        # The library that XLA multiplies and sums with on CPUs since jaxlib 0.10.2 gave wrong results for some programs
        # of more than 32,768 rows, without a word (jax-ml/jax#39103), and is no faster; XLA's own loops and Eigen do
        # without.
        "xla_cpu_experimental_ynn_fusion_type": "",
        # Vectors of 256 bits, which XLA prefers even where processors have longer ones, are some 6 % slower.
        "xla_cpu_prefer_vector_width": 512,
    },
    "gpu": {
        # Left alone, XLA tries out kernels while it compiles and takes the fastest, which differs from process to
        # process, and so do the last bits of what they compute: a run that goes on would not be the one uninterrupted.
        "xla_gpu_deterministic_ops": True,
    },
}
OPTIONS_ONCE: dict[str, Any] = {  # for what hardly ever runs
    "xla_backend_optimization_level": 1,
    # What XLA gives straight to LLVM, not by way of MLIR, compiles in two thirds of the time, but may run slower.
    "xla_cpu_use_fusion_emitters": False,
}


def assign_seeds(seeds: Sequence[int], num_devices: int) -> Int[np.ndarray, "device s"]:
    """Assign seeds to devices in order and as evenly as possible. The last seed is repeated to fill the last row.

    Example:
        >>> assign_seeds([0, 1, 2], 2)
        array([[0, 1],
               [2, 2]], dtype=int32)
    """
    rows = math.ceil(len(seeds) / num_devices)
    padded = [*seeds, *[seeds[-1]] * (rows * num_devices - len(seeds))]
    return np.array(padded, np.int32).reshape(num_devices, rows)


def collect(tree: Any, num_seeds: int | None, shares: int = 1) -> Any:
    """Bring `[device, s, ...]` arrays to the host as `[s, ...]`, without those that only filled a row.

    With one CPU device, its memory is used directly, without a copy. Where `shares` devices hold the same values, only
    one of them is read.
    """

    def on_host(array: jax.Array) -> np.ndarray:
        shards = _on_host(array)[::shares]
        return (shards[0] if len(shards) == 1 else np.concatenate(shards))[:num_seeds]

    return jax.tree.map(on_host, tree)


def _on_host(array: jax.Array) -> list[np.ndarray]:
    return [np.asarray(shard.data)[0] for shard in sorted(array.addressable_shards, key=lambda s: s.index)]


def join_shares(record: steps.Record, shares: int, num_examples: int) -> steps.Record:
    """Bring a record to the host as `[s, t, n, ...]`, where each seed's examples are divided over several devices."""

    def joined(array: jax.Array) -> np.ndarray:
        parts = _on_host(array)  # [1, t, m, ...] each
        of_seeds = [np.concatenate(parts[k : k + shares], axis=2) for k in range(0, len(parts), shares)]
        return np.concatenate(of_seeds)[:, :, :num_examples]

    def of_kind(kind: str, tree: Any) -> Any:
        if kind in ("parameters", "variables"):  # which have no examples
            return collect(tree, None, shares)
        return jax.tree.map(joined, tree)

    return {kind: of_kind(kind, tree) for kind, tree in record.items()}


class Sweep:
    """All seeds of a configuration on the given devices, compiled once.

    Arrays on the devices have leading axes `[device, s]`; on the host, `[s]`.

    Args:
        config: The configuration.
        dataset: The examples.
        block_length: Records in a block.
        devices: Devices to use. If there are at least twice as many devices as seeds, each seed's examples are divided
            over several devices.
        prepared: What `prepare` returned for this configuration. Default: it is called here.
    """

    def __init__(
        self,
        config: StudyConfig,
        dataset: Dataset,
        block_length: int,
        devices: Sequence[jax.Device],
        prepared: Prepared | None = None,
    ) -> None:
        self.config = config
        self.block_length = block_length
        recorded = config.iterations(len(dataset.labels))
        self._longest = int(np.diff(recorded).max())
        # A last, shorter block is filled up with iterations beyond the end.
        self._iterations = np.append(recorded, recorded[-1] + 1 + np.arange(block_length))
        self.shares = max(1, len(devices) // config.num_seeds)
        self._devices = devices = list(devices)[: config.num_seeds * self.shares]
        self._on_cpu = devices[0].platform == "cpu"
        self.seeds = assign_seeds(config.seeds, len(devices) // self.shares).repeat(self.shares, axis=0)
        prepared = prepared or prepare(config, dataset)
        setup, inputs = prepared.setup, prepared.inputs
        # Copies, and not views, which would keep them all.
        self._example = jax.tree.map(lambda leaf: np.array(leaf[0]), (inputs, dataset.labels))
        self._num_examples = len(dataset.labels)
        self._examples = setup.place(inputs, dataset.labels)
        pmap = functools.partial(jax.pmap, devices=devices, axis_name="device")

        def initial(seeds: jax.Array, example: Any) -> Any:
            # One seed after the other: random draws of all at once take three times as long to compile.
            return jax.lax.map(lambda seed: setup.initial_state(seed, example), seeds)

        self._place = pmap(lambda state: state)

        def run_block(state: Any, records: Any, batches: jax.Array, gaps: jax.Array, examples: Any, share: Any) -> Any:
            share = share and (share[0], Share(share[1], self._add))
            block = functools.partial(steps.run_block, setup, share=share)
            of_seeds = over_seeds(block, (0, 0, 0, None, None), setup, self._on_cpu)
            return of_seeds(state, records, batches, gaps, examples)

        here = math.ceil(self._num_examples / self.shares)  # examples that a device evaluates
        self._share = self._divided(pmap, setup, here) if self.shares > 1 else None
        run = pmap(run_block, in_axes=(0, 0, 0, None, None, 0), donate_argnums=(1,))
        state, record = shapes(setup, jax.tree.map(lambda leaf: leaf[:here], inputs), dataset.labels[:here])
        leading = (self.seeds.shape[1], block_length)
        empty = pmap(lambda _: jax.tree.map(lambda one: jnp.zeros(leading + one.shape, one.dtype), record))
        stack = functools.partial(_stacked, self.seeds.shape)
        self._optimizer = setup.optimizer
        self._start = prepared.start
        self._batch_size = config.examples_per_batch(len(dataset.labels))
        batch = jax.ShapeDtypeStruct((block_length, self._longest, self._batch_size), np.int32)
        gaps = jax.ShapeDtypeStruct((block_length,), np.int32)
        records = jax.tree.map(lambda one: jax.ShapeDtypeStruct((block_length, *one.shape), one.dtype), record)
        compile_here = functools.partial(compiled, platform=devices[0].platform)
        with ThreadPoolExecutor(1) as thread:  # a program compiles on one core
            draw = pmap(initial, in_axes=(0, None)).lower(self.seeds, self._example)
            of_seeds = thread.submit(compile_here, draw, once=True)
            of_records = thread.submit(compile_here, empty.lower(np.zeros(len(self.seeds))), once=True)
            arguments = (stack(state), stack(records), stack(batch), gaps, self._examples, self._share)
            self._run = compile_here(run.lower(*arguments))
            self._initial, self._empty = of_seeds.result(), of_records.result()

    def _divided(self, pmap: Callable, setup: Any, here: int) -> tuple[Any, jax.Array]:
        """Give each device the examples that it evaluates, and mark those that only fill up its share.

        All devices of a seed compute the same updates: a batch is too small to be worth exchanging gradients.
        """

        def of_device(share: jax.Array, examples: Any) -> tuple[Any, jax.Array]:
            index = share * here + jnp.arange(here)
            return setup.divided(examples, jnp.minimum(index, self._num_examples - 1)), index < self._num_examples

        return pmap(of_device, in_axes=(0, None))(np.arange(len(self._devices)) % self.shares, self._examples)

    def _add(self, tree: Any) -> Any:
        """Add up over the devices of a seed."""
        groups = np.arange(len(self._devices)).reshape(-1, self.shares).tolist()
        return jax.lax.psum(tree, "device", axis_index_groups=groups)

    def initial_state(self) -> Any:
        """Draw the weights of all seeds, or read those that `initial` names."""
        state = self._initial(self.seeds, self._example)
        if self._start is None:
            return state
        parameters = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (*self.seeds.shape, *leaf.shape)), self._start)
        begin = jax.pmap(jax.vmap(self._optimizer.init), devices=self._devices)
        return state._replace(parameters=self._place(parameters), optimizer=begin(parameters))

    def restored_state(self, state: Any) -> Any:
        """Put a state from the host on the devices."""
        return self._place(jax.tree.map(lambda array: array[self.seeds - self.config.first_seed], state))

    def empty_records(self) -> steps.Record:
        """Allocate a buffer for the records of a block, `[device, s, t, ...]`."""
        return self._empty(np.zeros(len(self.seeds)))

    def batches(self, first: int) -> tuple[Int[np.ndarray, "device s t gap b"], Int[np.ndarray, " t"]]:
        """List the batches of the updates after each record of a block, from record `first` on, and count them."""
        iterations = self._iterations[first : first + self.block_length + 1]
        gaps = np.diff(iterations).astype(np.int32)
        found = np.full((*self.seeds.shape, len(gaps), self._longest, self._batch_size), -1, np.int32)
        for place, seed in np.ndenumerate(self.seeds):
            of_seed = steps.batch_indices(self.config, int(seed), self._num_examples, *map(int, iterations[[0, -1]]))
            found[place][np.arange(self._longest) < gaps[:, None]] = of_seed
        return found, gaps

    def run(self, state: Any, records: steps.Record, first: int) -> tuple[Any, steps.Record]:
        """Run the block that begins with record `first`. The memory of `records` is reused for the new ones."""
        return self._run(state, records, *self.batches(first), self._examples, self._share)

    def _collected(self, records: steps.Record, state: Any) -> tuple[dict[str, Any], Any]:
        if self.shares == 1:
            return collect((records, state), self.config.num_seeds)
        return join_shares(records, self.shares, self._num_examples), collect(state, None, self.shares)

    def blocks(
        self, state: Any, firsts: Sequence[int], wait: Callable[[], object]
    ) -> Iterator[tuple[int, dict[str, Any], Any]]:
        """Compute the blocks that begin with the given records, each continuing from the one before.

        The next block is computed while one is copied to the host and the caller stores the one before.

        Args:
            state: The state to begin with.
            firsts: The first record of each block; at least one.
            wait: Returns when nothing reads a yielded block any more. On a CPU the yielded arrays share the devices'
                memory, so `wait` is called before that memory is reused. By then the caller must have dropped its own
                arrays of that block.

        Yields:
            The first record of a block, the records, and the state at its end, as NumPy arrays `[s, t, ...]` and
            `[s, ...]`.
        """
        buffers = [self.empty_records(), self.empty_records()]
        ahead = self.run(state, buffers.pop(0), firsts[0])
        for first, following in itertools.zip_longest(firsts, firsts[1:]):
            state, records = ahead
            if following is not None:
                if self._on_cpu:
                    wait()
                ahead = self.run(state, buffers.pop(0), following)
            yield first, *self._collected(records, state)
            buffers.append(records)


def compiled(program: jax.stages.Lowered, platform: str, once: bool = False) -> jax.stages.Compiled:
    """Compile a program for a platform with our options, as far as XLA has them; quickly, if it will rarely run."""
    options = {**OPTIONS.get(platform, {}), **(OPTIONS_ONCE if once else {})}
    while True:
        try:
            return program.compile(options)
        except jax.errors.JaxRuntimeError as error:
            unknown = [name for name in options if f"No such compile option: '{name}'" in str(error)]
            if not unknown:
                raise
            del options[unknown[0]]


def over_seeds(block: Callable, in_axes: tuple, setup: Any, on_cpu: bool) -> Callable:
    """Make a block run for several seeds.

    Vectorized over seeds, a network's convolutions get one group of channels per seed, which is slower on CPUs: small
    networks took 1.2 to 1.3 times as long. So on CPUs, all networks but the default one train one seed after the other.
    """
    if isinstance(setup, steps.Setup) or not on_cpu:
        return jax.vmap(block, in_axes)

    def one_after_another(state: Any, records: Any, batches: jax.Array, gaps: jax.Array, examples: Any) -> Any:
        return jax.lax.map(lambda of_seed: block(*of_seed, gaps, examples), (state, records, batches))

    return one_after_another


def shapes(setup: Any, inputs: Any, labels: np.ndarray) -> tuple[Any, steps.Record]:
    """Return shape and type of everything in one seed's state, and in its record of one iteration."""

    def start(inputs: Any, labels: jax.Array) -> tuple[Any, steps.Record]:
        state = setup.initial_state(jnp.int32(0), jax.tree.map(lambda leaf: leaf[0], (inputs, labels)))
        return state, setup.recorded(state, setup.traced(inputs, labels))

    return jax.eval_shape(start, inputs, np.asarray(labels))


def _stacked(leading: tuple[int, ...], tree: Any) -> Any:
    return jax.tree.map(lambda one: jax.ShapeDtypeStruct((*leading, *one.shape), one.dtype), tree)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run will record.

    Attributes:
        iterations: The iterations that will be recorded.
        block_length: Records in a block.
        record_bytes: Bytes that one record of all seeds takes.
        state_bytes: Bytes that the state at the end of each block takes.
    """

    iterations: Int[np.ndarray, " t"]
    block_length: int
    record_bytes: int
    state_bytes: int

    @property
    def num_records(self) -> int:
        """Number of records of each seed."""
        return len(self.iterations)

    def bytes_from(self, first: int) -> int:
        """Number of bytes that the blocks from record `first` on will take."""
        records = self.num_records - first
        return records * self.record_bytes + math.ceil(records / self.block_length) * self.state_bytes


def plan(config: StudyConfig, dataset: Dataset, prepared: Prepared | None = None) -> Plan:
    """Divide a run into equal blocks of about an epoch each, of bounded size.

    Equal blocks need only one compiled program. The last block computes a few iterations beyond the end (fewer than
    there are blocks), which are not recorded.
    """
    num_examples = len(dataset.labels)
    prepared = prepared or prepare(config, dataset)
    setup, inputs = prepared.setup, prepared.inputs
    iterations = config.iterations(num_examples)
    state_bytes, record_bytes = (
        config.num_seeds * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in shapes(setup, inputs, dataset.labels)
    )
    in_batches = config.examples_per_batch(num_examples) * int(np.diff(iterations).max())
    batch_bytes = config.num_seeds * in_batches * np.dtype(np.int32).itemsize
    most = max(config.iterations_per_epoch(num_examples), BLOCK_ITERATIONS)
    most = max(1, min(most, BLOCK_BYTES // max(record_bytes, batch_bytes)))
    num_blocks = math.ceil(len(iterations) / most)
    return Plan(iterations, math.ceil(len(iterations) / num_blocks), record_bytes, state_bytes)


def train(
    config: StudyConfig,
    path: str | os.PathLike,
    devices: Sequence[jax.Device] | None = None,
    log: Callable[[str], None] = print,
    stop: Callable[[], bool] = lambda: False,
    dataset: Dataset | None = None,
    task: Task | None = None,
) -> bool:
    """Train all seeds and record them into `path`, or continue an unfinished recording of the same configuration.

    Args:
        config: The configuration.
        path: Directory of the recording.
        devices: Devices to use. Default: all devices of this machine.
        log: Function that prints a line for the user.
        stop: Called after each block. Training stops if it returns True.
        dataset: What `load_dataset` read for this configuration. Default: it is read here. A recording that already
            holds its examples uses those.
        task: What to train, if not what `config.model` names.

    Returns:
        Whether the recording is finished.

    Raises:
        InputError: If the data cannot be read, the directory cannot be used, or the disk has too little room.
        RecordingError: If a block cannot be stored, or if stored files are moved, removed or damaged during training.
    """
    check_local(path)
    began, path = time.monotonic(), Path(path)
    recording = Recording(path) if is_begun(path, config) else None
    code = code_of(config, task)
    if recording is not None:
        check_code(recording.code, code, path)
    if recording is not None and recording.finished:
        records, seeds = pluralise(recording.num_records, "record"), pluralise(config.num_seeds, "seed")
        log(f"{path} already holds all {records} of {seeds}; nothing to do")
        return True
    check_writable(path)
    dataset = _examples(recording, dataset, config)
    prepared = prepare(config, dataset, task)
    todo, done = plan(config, dataset, prepared), 0
    if recording is not None:
        todo, done = dataclasses.replace(todo, block_length=recording.block_length), recording.num_records
    check_examples_apart(config, prepared, dataset.labels)
    devices = list(devices or local_devices())
    _announce(config, dataset, prepared, devices, path, todo, done, log)

    bar = Progress("Recording", todo.num_records, "records", initial=done)
    num_blocks = math.ceil(done / todo.block_length)
    begun = contextlib.closing(Writer(path, config, dataset, prepared.contents, todo.block_length, num_blocks, code))
    with begun as writer, bar, enough_memory():
        sweep = Sweep(config, dataset, todo.block_length, devices, prepared)
        done = _record(sweep, writer, dataset.labels, todo, done, bar, stop, log)
    if done < todo.num_records:
        return False
    _check_whole(path)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    log(f"Recorded {path}: {bytes_in_words(size)} in {time.monotonic() - began:.0f} s")
    return True


def _examples(recording: Recording | None, given: Dataset | None, config: StudyConfig) -> Dataset:
    """Return the examples already recorded; otherwise those given; otherwise read them."""
    if recording is not None and (recording.num_records or (recording.path / "dataset").is_dir()):
        return recording.data
    return load_dataset(config) if given is None else given


def _announce(
    config: StudyConfig,
    dataset: Dataset,
    prepared: Prepared,
    devices: Sequence[jax.Device],
    path: Path,
    todo: Plan,
    done: int,
    log: Callable[[str], None],
) -> None:
    """Log what will be recorded, and stop if there is not enough disk space."""
    log(
        f"Recording {_what(config, dataset, prepared)}: "
        f"{pluralise(len(dataset.labels), 'example')} of {config.dataset}, {pluralise(config.num_seeds, 'seed')}, "
        f"{pluralise(todo.num_records, 'record')} on {pluralise(len(devices), f'{devices[0].device_kind} device')}"
    )
    if (shares := len(devices) // config.num_seeds) > 1:
        log(f"The examples of each seed are evaluated on {shares} devices")
    if dataset.num_classes == 1:
        log("All labels are of one class, so every loss and gradient is 0")
    _check_free(config, dataset, path, todo, done, log)
    if done:
        log(f"Continuing from iteration {todo.iterations[done]}")


def _record(
    sweep: Sweep,
    writer: Writer,
    labels: np.ndarray,
    todo: Plan,
    done: int,
    bar: Progress,
    stop: Callable[[], bool],
    log: Callable[[str], None],
) -> int:
    """Compute and store the blocks from record `done` on, and return the number of records there are then.

    It returns fewer than planned if it was asked to stop. After two blocks it logs how long the rest will take.
    """
    state = sweep.initial_state()
    if done:
        like = collect(state, sweep.config.num_seeds, sweep.shares)
        state = sweep.restored_state(writer.restore_state(int(todo.iterations[done - todo.block_length]), like))
    firsts = range(done, todo.num_records, todo.block_length)
    began: list[float] = []
    for first, record, ending in sweep.blocks(state, firsts, writer.wait):
        iterations = todo.iterations[first : first + todo.block_length]
        length = len(iterations)
        record = jax.tree.map(lambda array, stop=length: array[:, :stop], record)
        _check_finite(record["loss"], sweep.config.seeds, iterations)
        writer.save(int(iterations[0]), record, ending)
        bar.set_postfix(_last_of(record, labels))
        bar.update(length)
        began.append(time.monotonic())
        if len(began) == 2 and len(firsts) > 3:
            left = (began[1] - began[0]) * (todo.num_records - first - length) / todo.block_length
            with bar.external_write_mode():
                log(f"About {time_in_words(left)} to go, with {bytes_in_words(peak_bytes())} of memory so far")
        del record  # whose memory is used again
        if stop():
            break
    return first + length


def _last_of(record: dict[str, Any], labels: np.ndarray) -> dict[str, str]:
    """Describe how well the networks do at the last record of a block, averaged over seeds."""
    if "prediction" in record:
        return {"accuracy": f"{np.mean(record['prediction'][:, -1] == labels):.1%}"}
    return {"loss": f"{record['loss'][:, -1].mean():.3g}"}


def sweep(
    task: Task | Any,
    data: Dataset | Any,
    path: str | os.PathLike,
    config: StudyConfig | None = None,
    devices: Sequence[jax.Device] | None = None,
    log: Callable[[str], None] = print,
) -> Recording:
    """Train a task from several seeds, and record every example's gradient at every iteration.

    Call it again with the same arguments to continue an interrupted run.

    Args:
        task: The network and its loss.
        data: The examples: a `Dataset`, or a pair of inputs and labels, which becomes a `Dataset`.
        path: Directory of the recording.
        config: How to train, and what to record of which layers. Its data set and its model are not used. The default
            records all layers.
        devices: Devices to use. Default: all devices of this machine.
        log: Function that prints a line for the user.

    Returns:
        The recording.

    Raises:
        InputError: If the task, the data or the configuration is wrong, or if the recording was begun with other code.

    Example:
        >>> recording = sweep(task, (inputs, labels), "recordings/mine", StudyConfig(num_seeds=3, epochs=5))
        >>> recording.gradients("head/kernel", t=0).shape
        (3, 6000, 64, 10)
    """
    if not isinstance(task, Task):
        raise InputError(f"task must be a train_dynamics.Task(init, loss), not a {type(task).__name__}")
    if not isinstance(data, Dataset) and not (isinstance(data, tuple | list) and len(data) == 2):
        raise InputError("data must be a train_dynamics.Dataset, or a pair (inputs, labels)")
    named = f"{task.loss.__module__}:{task.loss.__qualname__}"
    config = dataclasses.replace(config or StudyConfig(), model=named, dataset="arrays")
    dataset = data if isinstance(data, Dataset) else Dataset(*data)
    dataset.check_finite()
    train(config, path, devices, log, dataset=dataset, task=task)
    return Recording(path)


def peak_bytes() -> int:
    """Return the largest amount of memory that this process has used."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def local_devices() -> list[jax.Device]:
    """List the devices of this machine.

    Raises:
        InputError: If JAX finds none.
    """
    try:
        return jax.local_devices()
    except (RuntimeError, AssertionError, ValueError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise InputError(f"JAX finds no device with JAX_PLATFORMS={asked}: {str(error)[:200]}") from error


def enable_compilation_cache() -> None:
    """Have JAX keep compiled programs in ~/.cache/train_dynamics, for later runs of the same shapes.

    JAX reuses a program only if its code, the versions and the processor are the same. `XDG_CACHE_HOME` replaces
    ~/.cache, `JAX_COMPILATION_CACHE_DIR` sets another directory, and `JAX_ENABLE_COMPILATION_CACHE=false` keeps
    nothing. Nothing is kept either for a user without a home directory.
    """
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")  # it compiles then
    if jax.config.jax_compilation_cache_dir is None:
        caches = next(filter(os.path.isabs, (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache"))), "")
        jax.config.update("jax_compilation_cache_dir", caches and f"{caches}/train_dynamics")
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@contextlib.contextmanager
def enough_memory() -> Iterator[None]:
    """Turn a device's out-of-memory error into a clear message."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            f"not enough memory ({str(error).splitlines()[0][:150]}); fewer --seeds or --num_examples, or smaller "
            "--hidden_sizes, need less"
        ) from error


def _check_finite(loss: Float[np.ndarray, "s t n"], seeds: Sequence[int], iterations: Int[np.ndarray, " t"]) -> None:
    broken = ~np.isfinite(loss).all(axis=-1)
    if broken.any():
        t, s = np.argwhere(broken.T)[0]
        kept = f"what was recorded before iteration {iterations[0]} stays" if iterations[0] else "nothing was recorded"
        cause = "a lower --learning_rate" if iterations[t] else "a --pixel_mean nearer to 0 or a larger --pixel_std"
        raise InputError(
            f"the loss of seed {seeds[s]} is no longer finite at iteration {iterations[t]}; {kept}; {cause} may help, "
            "into another directory"
        )


def _check_whole(path: Path) -> None:
    """Check that a recording has all its blocks when the last one is stored."""
    if not Recording(path).finished:
        raise RecordingError(
            f"{path} is damaged: its last blocks were removed while it was written; the same command records them again"
        )


def _what(config: StudyConfig, dataset: Dataset, prepared: Prepared) -> str:
    """Describe which layers of which network are recorded."""
    layers = prepared.contents.described
    if config.model != "mlp":
        return f"{layers} of {config.model}"
    outputs = dataset.num_classes or int(np.prod(dataset.labels.shape[1:]))
    size = sum(int(np.prod(leaf.shape[1:])) for leaf in jax.tree.leaves(prepared.inputs))
    return f"{layers} of a {'-'.join(map(str, (size, *config.hidden_sizes, outputs)))} network"


def _check_free(
    config: StudyConfig, dataset: Dataset, path: Path, todo: Plan, done: int, log: Callable[[str], None]
) -> None:
    """Log how many bytes the recording will take, and stop if fewer are free."""
    free = shutil.disk_usage(existing(path)).free
    needed = todo.bytes_from(done)
    log(f"It will take {bytes_in_words(needed)} in {path}; {bytes_in_words(free)} are free")
    if needed > free:
        from train_dynamics.training.planning import ways_to_fit  # which imports this

        ways = [] if done else ways_to_fit(config, dataset, free)
        less = "".join(f", or {way.flags} ({bytes_in_words(way.disk_bytes)})" for way in ways)
        raise InputError.flag(
            "recording",
            path,
            f"needs {bytes_in_words(needed)}, but only {bytes_in_words(free)} are free; choose another disk{less}",
        )
