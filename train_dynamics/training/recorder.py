"""A recorder for any training loop: add three lines to it, and get a recording that all other tools can read."""

import atexit
import contextlib
import dataclasses
import functools
import operator
import os
import shutil
import sys
import time
import traceback as stack
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import optax

from train_dynamics.config import InputError, StudyConfig, bytes_in_words, is_on_schedule, pluralise
from train_dynamics.data.imports import told
from train_dynamics.gradients.examples import count, shape_of_one
from train_dynamics.gradients.parameters import check_loss, named
from train_dynamics.recording.contents import Contents
from train_dynamics.recording.format import RecordingError, read_header
from train_dynamics.recording.locks import check_writable, is_begun
from train_dynamics.recording.reader import Recording
from train_dynamics.recording.remote import check_local
from train_dynamics.recording.writer import Writer
from train_dynamics.task.task import Task
from train_dynamics.training.arguments import check_kinds, layers_of, naming_arguments, seeds_of
from train_dynamics.training.code import check_code, code_of, code_of_loss, name_of
from train_dynamics.training.given import Given
from train_dynamics.training.models import Model, check_arrays, difference, on_automatic_meshes, placed_like, split
from train_dynamics.training.setup import set_up_task
from train_dynamics.training.sweep import compiled
from train_dynamics.training.task_steps import TaskState

BLOCK_BYTES = 32 * 1024**2
BLOCK_RECORDS = 100
BLOCK_SECONDS = 60.0
FAILURES = (RecordingError, OSError, jax.errors.JaxRuntimeError)  # of recording, the last where memory is full
PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"
UNKNOWN = "unknown"  # where the user's loop did not tell


class Recorder:
    """Records every example's gradient from inside a training loop of any kind.

    Your loop trains exactly as before: `record` only reads the weights, computes the gradients from them, and stores
    them. At most two records are in memory; if records are small, up to two blocks of at most 32 MB each. A block is
    stored at least once a minute. If the process is killed, the block not stored yet is lost.

    Args:
        path: Directory of the recording. It is made if it does not exist.
        loss: `loss(params, example) -> (loss, outputs)`, the loss of one example, which has no batch axis. The loss is
            a scalar. The outputs are what the network computes, for a classifier the logits; return `()` if there are
            none. If you pass `variables` to `record`, they are the third argument.
        examples: The examples: arrays with a leading axis, or dicts, tuples and lists of such arrays. They are recorded
            as given here, even if your loop transforms them before training.
        labels: The label of each example: its class, as a whole number or a word, or its regression target. Default: if
            `examples` is a pair `(inputs, labels)`, the second of these.
        ids: Name of each example. Default: its index.
        class_names: Name of each class.
        layers: Parameters whose gradients are recorded, by path, with wildcards; or `all`.
        gradient_layout: How to store the gradients: `factored`, `dense`, `sketch` or `measures`; or by layer as in
            `conv*:measures,head/*:factored`.
        every: Record once per this many iterations.
        records_per_doubling: Instead of `every`, record less and less often, as `--records_per_doubling` does.
        when: Instead of `every`, a function that takes an iteration and returns whether to record it.
        seed: The seed of this run. It tells recordings of the same examples apart. Give several seeds if every array of
            the parameters has a leading axis of seeds.
        resume: Whether to continue an existing recording after its last record.
        on_error: What happens if recording fails, for example because the disk or the memory is full. `raise` raises
            the error in your loop; `warn` lets the loop run on without recording.
        batch_size: Number of examples in a batch of your loop. The analysis uses it to count epochs. Default: 128.
        learning_rate: Learning rate of your loop, if it is constant. One score needs it.
        eval_batch_size: Number of examples to evaluate at a time. Fewer need less memory. None evaluates all at once.
        sketch_size: Length of a gradient's sketch, in numbers.
        dataset: A `Dataset` to store and show in place of `examples`, for example with raw images, column names or a
            vocabulary. It replaces `labels`, `ids` and `class_names`.
        config: A `StudyConfig` that describes the run. It replaces `layers` and all other arguments that are fields of
            it. Error messages then name flags instead of arguments.
        log: Function that prints a line for the user.

    Attributes:
        path: The directory.

    Raises:
        InputError: If an argument is wrong, or if the directory holds something else.

    Example:
        >>> with Recorder("recordings/mine", loss, (images, labels), layers=["head/kernel"]) as recorder:
        ...     for t, batch in enumerate(batches):
        ...         recorder.record(t, params)
        ...         params, state = update(params, state, batch)
    """

    def __init__(
        self,
        path: Any,
        loss: Any,
        examples: Any,
        *,
        labels: Any = None,
        ids: Any = None,
        class_names: Any = None,
        layers: Any = "all",
        gradient_layout: Any = "factored",
        every: int = 1,
        records_per_doubling: int | None = None,
        when: Any = None,
        seed: Any = 0,
        resume: Any = False,
        on_error: Literal["raise", "warn"] = "raise",
        batch_size: int | None = None,
        learning_rate: Any = None,
        eval_batch_size: int | None = None,
        sketch_size: int = 256,
        dataset: Any = None,
        config: Any = None,
        log: Any = print,
    ) -> None:
        check_kinds(locals())
        if on_error not in ("raise", "warn"):
            raise InputError(f"on_error={on_error}: must be raise or warn")
        if when is not None and (every != 1 or records_per_doubling is not None):
            raise InputError("when cannot be combined with every or records_per_doubling")
        check_local(path)
        self.path = Path(path)
        self._loss, self._on_error, self._log, self._batch_size = loss, on_error, log, batch_size
        self._seeds, self._several = seeds_of(seed), np.ndim(seed) > 0
        self._given = Given(examples, labels, ids, class_names, dataset)
        self._naming = functools.partial(naming_arguments, config is None)
        with self._naming():
            self._config = config or _config_of(
                loss,
                self._seeds,
                layers=layers_of(layers),
                learning_rate=UNKNOWN if learning_rate is None else float(learning_rate),
                batch_size=StudyConfig.batch_size if batch_size is None else batch_size,
                record_every=every,
                records_per_doubling=records_per_doubling,
                gradient_layout=gradient_layout,
                eval_batch_size=eval_batch_size,
                sketch_size=sketch_size,
            )
            self._code = code_of_loss(loss) if config is None else code_of(config)
            self._before = self._found(resume)
        self._when = when or (lambda t: is_on_schedule(t, every, records_per_doubling))
        self._begin_empty()
        atexit.register(self._warn_of_what_is_lost)

    def _begin_empty(self) -> None:
        """Note where recording continues, and that nothing is computed yet."""
        self._last = -1 if self._before is None else int(self._before.iterations.max(initial=-1))
        self._first = self.next_iteration
        self._writer: Writer | None = None
        self._program: Callable[..., Any] | None = None
        self._pending: tuple[int, Any] | None = None
        self._block: list[tuple[int, Any]] = []
        self._records = self._stored = 0
        self._began = self._block_began = self._compiling = 0.0
        self._sampled: list[float] = []
        self._ended = self._closed = False
        self._form: Any = None

    def _found(self, resume: bool) -> Recording | None:
        """Open what is already recorded, and check that recording can continue after it."""
        if not is_begun(self.path, self._config):
            check_writable(self.path)
            return None
        found = Recording(self.path)
        if not found.of_loop:
            raise InputError(f"{self.path} was written by train_dynamics.train, and only that command can continue it")
        if not resume and found.num_records:
            raise InputError(
                f"{self.path} holds a recording up to iteration {found.num_iterations}: Recorder(..., resume=True) "
                "continues it; or choose another directory"
            )
        check_code(found.code, self._code, self.path)
        return found

    @property
    def next_iteration(self) -> int:
        """The iteration after the last one recorded; 0 if there is none."""
        return self._last + 1

    @property
    def seconds(self) -> float:
        """Seconds that recording has taken so far, including compilation.

        Records are computed while the loop goes on, so their time cannot be measured without waiting for them. This
        waits for the 1st, 2nd, 4th, 8th record and so on, and takes the median of these for all records.
        """
        return self._compiling + float(np.median(self._sampled or [0.0])) * self._records

    @property
    def share(self) -> float:
        """Share of the loop's time that recording takes, counted from the first call of `record`."""
        return min(1.0, self.seconds / (time.perf_counter() - self._began)) if self._began else 0.0

    def record(self, t: SupportsIndex, params: Any, variables: Any = None) -> bool:
        """Record an iteration, if it is due.

        It returns as soon as the computation has started. If storing a record fails, a later call raises the error.

        Args:
            t: The iteration, that is, the number of updates so far. It must rise from call to call.
            params: The parameters: a pytree of arrays, or a module of Flax NNX, Equinox and so on. bfloat16 is
                converted to float32 for the computation.
            variables: Everything else in the network, such as the statistics of batch normalisation: a pytree of
                arrays, which `loss` gets as its third argument.

        Returns:
            Whether the computation was started. It is not if, for example, `every` or `when` leaves this iteration out,
            or if it was recorded before the loop was resumed. If the result turns out not to be finite, or cannot be
            stored, the record is dropped, and a later call or `close` reports that.

        Raises:
            InputError: If iterations do not rise, or if the network, its layers or its loss cannot be recorded.
            RecordingError: If a record could not be stored.
        """
        try:
            t = operator.index(t)
        except TypeError:
            raise InputError(f"the iteration t must be a whole number, and is a {type(t).__name__}") from None
        if not 0 <= t < 2**63:
            raise InputError(f"iteration {t}: must be 0 or more, and below 2**63")
        if self._closed:
            raise InputError(
                f"{self.path} is closed; record iteration {t} before closing it, or open it again with resume=True"
            )
        if self._ended or not self.chooses(t):
            return False
        if t <= self._last:
            raise InputError(f"iteration {t} comes after iteration {self._last}, and iterations must rise")
        self._began = self._began or time.perf_counter()
        model = split(params, variables)
        check_arrays(model)
        self._check_same(t, model)
        try:
            self._compute(t, model)
        except FAILURES as error:
            self._fail(error)
            return False
        self._last = t
        return True

    def chooses(self, t: int) -> bool:
        """Tell whether an iteration is due to be recorded, and was not recorded before the loop was resumed."""
        return t >= self._first and bool(self._when(t))

    def _check_same(self, t: int, model: Model) -> None:
        """Check that the network has the same structure as at the first record.

        Raises:
            InputError: If it has other arrays, or something else in it has changed.
        """
        leaves, structure = jax.tree.flatten(model.arrays)
        form = structure, [(leaf.shape, leaf.dtype) for leaf in leaves]
        if self._form is None:
            self._form = form, model.fixed, model.described
        before, fixed, described = self._form
        if form != before:
            changed = difference(described, model.described) or "the parameters are nested differently"
            raise InputError(f"iteration {t}: this is not the network of the first record: {changed}")
        if model.fixed != fixed:
            raise InputError(
                "something in the parameters that is not an array has changed since the first record; make it an array"
            )

    def _compute(self, t: int, model: Model) -> None:
        """Start to compute a record, and hand over the one before."""
        number = self._records + 1
        sampled = number & (number - 1) == 0  # the 1st, 2nd, 4th, 8th and so on
        if sampled:
            jax.block_until_ready(model.arrays)
        began = time.perf_counter()
        self._take()
        if self._program is None:
            with self._naming():
                self._begin(model)
        record = self._program(*on_automatic_meshes(model.arrays), self._examples)
        if sampled:
            jax.block_until_ready(record)
            seconds = time.perf_counter() - began
            if number == 1:
                self._compiling = seconds
                self._announce(record)
            else:
                self._sampled.append(seconds)
        self._pending, self._records = (t, record), number

    def _begin(self, model: Model) -> None:
        """Find out what to record of the network, compile the program for it, and begin the recording."""
        one = model
        if self._several:
            self._check_seeds(model)
            one = model._replace(
                **{kind: _first(getattr(model, kind)) for kind in ("parameters", "variables", "hidden")}
            )
        task = Task(lambda key: one.parameters, one.bound(self._loss), lambda key: one.variables)
        example = shape_of_one(self._given.examples)
        try:
            outputs = outputs_of(task, one, example)
        except InputError:
            raise
        except Exception as error:  # of the user's own code
            names = [name.removeprefix("parameter ") for name in model.described if name.startswith("parameter ")]
            held = ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])])
            raise InputError(
                f"{self._config.model}: cannot be called with one example: {told(error)}; its parameters are {held}"
            ) from error
        dataset = self._given.dataset(outputs, self._log)
        num_classes = dataset.num_classes or None
        setup, contents = set_up_task(self._config, task, optax.identity(), example, num_classes)
        self._setup = setup
        self._examples = placed_like(self._given.examples, on_automatic_meshes(model.parameters))

        def of_seed(parameters: Any, variables: Any, hidden: Any, examples: Any) -> Any:
            bound = one._replace(hidden=hidden).bound(self._loss)
            of_network = setup._replace(task=dataclasses.replace(task, loss=bound))
            return of_network.recorded(TaskState(parameters, (), variables, jnp.int32(0), jnp.int32(0)), examples)

        batch_size = None if self._batch_size is None else int(self._batch_size)
        loop = {"seeds": self._seeds, "dtypes": one.dtypes, "batch_size": batch_size}
        self._check_resumed(one, contents, loop)
        num_blocks = len(list(self._before.blocks())) if self._before else 0
        self._stored = self._before.num_records if self._before else 0
        self._writer = Writer(self.path, self._config, dataset, contents, None, num_blocks, self._code, loop)
        self._program = compiled_when_called(_over_seeds(of_seed) if self._several else of_seed)

    def _check_resumed(self, one: Model, contents: Contents, loop: dict[str, Any]) -> None:
        """Check that a recording to be resumed has the same network and the same settings.

        Raises:
            InputError: If it has not.
        """
        if self._before is None:
            return
        told = read_header(self.path)["loop"]
        if self._before.num_records:
            recorded = named(self._before.parameters(int(self._before.iterations[-1])))
            types = {name: told["dtypes"].get(name, "float32") for name in recorded}
            before = {f"parameter {name}": f"{list(leaf.shape[1:])} {types[name]}" for name, leaf in recorded.items()}
            now = {name: what for name, what in one.described.items() if name.startswith("parameter ")}
            if changed := difference(before, now):
                raise InputError(f"{self.path}: {changed}")
            if contents != self._before.contents:
                raise InputError(f"{self.path}: it was begun with other layers, or with a loss that has other outputs")
        for name, value in loop.items():
            if told[name] != value:
                raise InputError(f"{self.path}: it was begun with {name}={told[name]}, but now {name}={value}")

    def _announce(self, record: Any) -> None:
        """Log what is recorded, and how much disk space is free."""
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(record))
        free = shutil.disk_usage(self.path).free
        self._log(
            f"Recording {self._setup.contents.described} of {pluralise(count(self._given.examples), 'example')} into "
            f"{self.path}: {bytes_in_words(size)} per iteration; {bytes_in_words(free)} are free"
        )

    def _check_seeds(self, model: Model) -> None:
        for name, leaf in model.by_name.items():
            if leaf.shape[:1] != (len(self._seeds),):
                raise InputError(
                    f"seed={self._seeds}: every array has a leading axis of {len(self._seeds)} seeds, but {name} is "
                    f"{list(leaf.shape)}"
                )

    def _take(self) -> None:
        """Copy the pending record to the host, and store the block if it is full."""
        if self._pending is None:
            return
        (t, record), self._pending = self._pending, None
        record = jax.tree.map(np.asarray, record)
        if not self._several:
            record = jax.tree.map(lambda array: array[None], record)
        for kind, array in _of_examples(record):
            broken = ~np.isfinite(array)
            if broken.any():
                s, n, *_ = np.argwhere(broken)[0].tolist()
                raise RecordingError(
                    f"the {kind} of example {n} is not finite at iteration {t}, in seed {self._seeds[s]}; recording "
                    "stops before it"
                )
        if not self._block:
            self._block_began = time.perf_counter()
        self._block.append((t, record))
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(record)) * (len(self._block) + 1)
        waited = time.perf_counter() - self._block_began
        if size > BLOCK_BYTES or len(self._block) == BLOCK_RECORDS or waited > BLOCK_SECONDS:
            self._store()

    def _store(self) -> None:
        """Store the block, in the background."""
        block, self._block = self._block, []
        if not block:
            return
        iterations, records = zip(*block, strict=True)
        stacked = jax.tree.map(lambda *arrays: np.stack(arrays, axis=1), *records)
        counted = {"iterations": np.array(iterations, np.int64), "earlier": np.array([self._stored], np.int64)}
        self._stored += len(block)
        self._writer.save(iterations[0], stacked, counted)

    def _fail(self, error: Exception) -> None:
        """End recording after an error; raise it, or warn if the loop is to go on."""
        self._ended = True
        if self._writer is not None:
            with contextlib.suppress(*FAILURES), contextlib.closing(self._writer):
                self._store()
        if self._on_error == "raise":
            raise error
        warnings.warn(
            f"recording has stopped, and the loop goes on without it: {error}", stacklevel=_levels_to_the_loop()
        )

    def close(self) -> None:
        """Store what is left, and release the recording for other writers.

        Raises:
            RecordingError: If it cannot be stored.
        """
        atexit.unregister(self._warn_of_what_is_lost)
        if self._ended or self._writer is None:
            self._closed = True
            return
        try:
            self._take()
            self._store()
            self._writer.close()
        except FAILURES as error:
            self._fail(error)
            return
        self._ended = self._closed = True
        self._log(
            f"Recorded {pluralise(self._records, 'iteration')} into {self.path}; it took {self.seconds:.1f} s, "
            f"{self.share:.0%} of the loop"
        )

    def _warn_of_what_is_lost(self) -> None:
        """Warn at the end of the program if records were not stored, because `close` was never called."""
        lost = len(self._block) + (self._pending is not None)
        if lost and not self._ended:
            print(
                f"train_dynamics: {self.path} lost {pluralise(lost, 'record')}; use 'with td.Recorder(...)', "
                "or call close()",
                file=sys.stderr,
            )

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except Exception as later:  # the user's own exception passes through, whatever else goes wrong
            error.add_note(f"The recording could not be closed: {later}")


def outputs_of(task: Task, model: Model, example: Any) -> tuple[int, ...] | None:
    """Return the shape of a network's outputs for one example, or None if they are not a single array."""
    variables = model.variables
    check_loss(task.loss_with(variables), model.parameters, example)
    return getattr(jax.eval_shape(task.loss_with(variables), model.parameters, example)[1], "shape", None)


def compiled_when_called(function: Callable) -> Callable:
    """Compile a function with our options, once for each combination of argument shapes and types."""
    programs: dict[Any, Any] = {}

    def call(*arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        key = structure, *((leaf.shape, leaf.dtype, getattr(leaf, "sharding", None)) for leaf in leaves)
        if key not in programs:
            platform = next(iter(leaves[-1].devices())).platform
            programs[key] = compiled(jax.jit(function).lower(*arguments), platform)
        return programs[key](*arguments)

    return call


def _of_examples(record: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """List the arrays of a record that hold floating-point numbers for each example, to check that they are finite."""
    for kind, of in sorted(record.items(), key=lambda item: item[0] != "loss"):
        if kind not in ("parameters", "variables"):
            for array in of.values() if isinstance(of, dict) else [of]:
                if array.dtype.kind == "f":
                    yield kind, array


def _over_seeds(of_seed: Callable) -> Callable:
    def over(parameters: Any, variables: Any, hidden: Any, examples: Any) -> Any:
        if jax.default_backend() != "cpu":
            return jax.vmap(of_seed, (0, 0, 0, None))(parameters, variables, hidden, examples)
        return jax.lax.map(lambda arrays: of_seed(*arrays, examples), (parameters, variables, hidden))

    return over


def _levels_to_the_loop() -> int:
    """Count the stack levels between the caller and the user's own line, for `warnings.warn`."""
    frames = list(stack.walk_stack(sys._getframe(1)))
    ours = [level for level, (frame, _) in enumerate(frames, 1) if frame.f_code.co_filename.startswith(PACKAGE)]
    return ours[-1] + 1


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)


def _config_of(loss: Callable, seeds: Sequence[int], **fields: Any) -> StudyConfig:
    """Make the configuration of a user's own loop, as far as its settings are known."""
    return StudyConfig(
        dataset="arrays",
        model=name_of(loss),
        input_scaling="none",
        optimizer=UNKNOWN,
        num_seeds=len(seeds),
        first_seed=min(seeds),
        **{name: int(value) if isinstance(value, np.integer) else value for name, value in fields.items()},
    )
