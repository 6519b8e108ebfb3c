"""A recorder for any training loop: three lines in it, and all that reads recordings reads what it was."""

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
UNKNOWN = "unknown"  # of a loop that does not say


class Recorder:
    """Records what every example asks of the weights, in a training loop of any kind.

    Nothing of the loop changes: `record` looks at the weights, and computes and stores beside it. At most two records
    are in memory; of small ones, two blocks of at most 32 MB. What is in a block is lost if the process is killed, and
    a block is stored once a minute at least.

    Args:
        path: Directory of the recording; made if it does not exist.
        loss: `loss(params, example) -> (loss, outputs)` of one example, without an axis of examples: a scalar, and what
            the network says, of a classifier the logits; `()` if nothing. With `variables`, they are a third argument.
        examples: The examples, arrays with a leading axis, or dicts, tuples and lists of such. They are recorded as
            they are given, whatever the loop does to them before it trains on them.
        labels: Class of each example, whole numbers or words, or its target. If not given, and examples are a pair
            `(inputs, labels)`, the second of these.
        ids: Name of each example; its index if not given.
        class_names: Name of each class.
        layers: Parameters whose gradients are recorded, by path, with wildcards; or `all`.
        gradient_layout: What is kept of them: `factored`, `dense`, `sketch` or `measures`, or by layer as in
            `conv*:measures,head/*:factored`.
        every: Record every so many iterations.
        records_per_doubling: Record more and more rarely instead, as `--records_per_doubling` does.
        when: Or a function that tells of an iteration whether to record it.
        seed: The seed of this run, which tells recordings of the same examples apart. Several, if every array of the
            parameters has a leading axis of seeds.
        resume: Whether to go on after the last record of a recording that is there.
        on_error: What becomes of the loop if recording fails, for example since the disk or memory is full: `raise`
            ends it with that error, `warn` goes on without recording.
        batch_size: Examples in a batch of the loop, by which the analysis counts epochs; 128 if not given.
        learning_rate: Learning rate of the loop, if it is the same always; one score needs it.
        eval_batch_size: Examples to evaluate at a time, which bounds memory; all at once if None.
        sketch_size: Numbers in the sketch of a gradient.
        dataset: A `Dataset` of the examples as they are to be stored and shown, if not as they are given: with raw
            images, names of columns or a vocabulary, in place of `labels`, `ids` and `class_names`.
        config: What the recording is to say of the run, in place of `layers` and all that is named like its fields;
            errors then name flags.
        log: Takes the lines to show the user.

    Attributes:
        path: The directory.

    Raises:
        InputError: If these will not do, or the directory holds something else.

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
            raise InputError("when is a schedule of its own; leave out every and records_per_doubling")
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
        """Note where recording goes on, and that nothing is computed yet."""
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
        """Find what is recorded already, and see whether recording can go on after it."""
        if not is_begun(self.path, self._config):
            check_writable(self.path)
            return None
        found = Recording(self.path)
        if not found.of_loop:
            raise InputError(f"{self.path} was written by train_dynamics.train, which alone goes on with it")
        if not resume and found.num_records:
            raise InputError(
                f"{self.path} holds a recording up to iteration {found.num_iterations}: Recorder(..., resume=True) "
                "goes on after it, or choose another directory"
            )
        check_code(found.code, self._code, self.path)
        return found

    @property
    def next_iteration(self) -> int:
        """The iteration after the last one recorded; 0 if there is none."""
        return self._last + 1

    @property
    def seconds(self) -> float:
        """Seconds that recording has taken so far, compilation included.

        Records are computed while the loop goes on. So a few are waited for, ever more rarely, and their median stands
        for all of them.
        """
        return self._compiling + float(np.median(self._sampled or [0.0])) * self._records

    @property
    def share(self) -> float:
        """Share of the loop's time that this is, from the first call of `record` on."""
        return min(1.0, self.seconds / (time.perf_counter() - self._began)) if self._began else 0.0

    def record(self, t: SupportsIndex, params: Any, variables: Any = None) -> bool:
        """Record an iteration, if it is to be recorded.

        It returns as soon as the computation is under way; what goes wrong with storing it, a later call raises.

        Args:
            t: The iteration, that is how many updates there were; it rises from call to call.
            params: The parameters: a pytree of arrays, or a module of Flax NNX, Equinox and so on as it is. bfloat16
                is computed with in float32.
            variables: Whatever else the network is made of, as the statistics of batch normalisation: a pytree of
                arrays, which `loss` takes as third argument.

        Returns:
            Whether its computation was begun; not, for example, if `every` or `when` leaves it out, or if it was
            recorded before the loop was resumed. If it turns out not to be finite, or cannot be stored, it is not in
            the recording all the same, and a later call or `close` says so.

        Raises:
            InputError: If iterations do not rise, or if the network, its layers or its loss will not do.
            RecordingError: If a record could not be stored.
        """
        try:
            t = operator.index(t)
        except TypeError:
            raise InputError(f"the iteration t must be a whole number, and is a {type(t).__name__}") from None
        if not 0 <= t < 2**63:
            raise InputError(f"iteration {t}: must be 0 or more, and below 2**63")
        if self._closed:
            raise InputError(f"{self.path} was closed; record iteration {t} before, or resume it")
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
        """Tell whether an iteration is to be recorded, and was not before the loop was resumed."""
        return t >= self._first and bool(self._when(t))

    def _check_same(self, t: int, model: Model) -> None:
        """See whether a network is made as the one of the first record was.

        Raises:
            InputError: If it has other arrays, or something else in it has changed.
        """
        leaves, structure = jax.tree.flatten(model.arrays)
        form = structure, [(leaf.shape, leaf.dtype) for leaf in leaves]
        if self._form is None:
            self._form = form, model.fixed, model.described
        before, fixed, described = self._form
        if form != before:
            changed = difference(described, model.described) or "the parameters are nested otherwise"
            raise InputError(f"iteration {t}: not the network of the first record: {changed}")
        if model.fixed != fixed:
            raise InputError(
                "something in the parameters that is no array has changed since the first record; make it an array"
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
        """Find what there is to record of the network, compile that, and begin the recording."""
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
        """See whether a recording that is resumed is of such a network, and of such a loop.

        Raises:
            InputError: If not.
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
                raise InputError(f"{self.path}: was begun with a loss of other outputs, or other layers")
        for name, value in loop.items():
            if told[name] != value:
                raise InputError(f"{self.path}: was begun with {name}={told[name]}, and goes on with {name}={value}")

    def _announce(self, record: Any) -> None:
        """Say what is recorded, and how much of it the disk can hold."""
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(record))
        free = shutil.disk_usage(self.path).free
        self._log(
            f"Recording {self._setup.contents.described} of {pluralise(count(self._given.examples), 'example')} into "
            f"{self.path}: {bytes_in_words(size)} an iteration, where {bytes_in_words(free)} are free"
        )

    def _check_seeds(self, model: Model) -> None:
        for name, leaf in model.by_name.items():
            if leaf.shape[:1] != (len(self._seeds),):
                raise InputError(
                    f"seed={self._seeds}: every array has a leading axis of {len(self._seeds)} seeds, but {name} is "
                    f"{list(leaf.shape)}"
                )

    def _take(self) -> None:
        """Bring the record that is pending to the host, and store the block if it is whole."""
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
                    "ends before it"
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
        """End recording, and with it the loop unless that was not wanted."""
        self._ended = True
        if self._writer is not None:
            with contextlib.suppress(*FAILURES), contextlib.closing(self._writer):
                self._store()
        if self._on_error == "raise":
            raise error
        warnings.warn(f"recording has ended, and the loop goes on: {error}", stacklevel=_levels_to_the_loop())

    def close(self) -> None:
        """Store what is left, and let others write to the recording.

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
        """Say at the end of the program that nobody closed it: it is too late then to store anything."""
        lost = len(self._block) + (self._pending is not None)
        if lost and not self._ended:
            print(
                f"train_dynamics: {self.path} lost {pluralise(lost, 'record')}; write 'with td.Recorder(...)', "
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
    """Give the shape of a network's outputs for one example; None if they are no single array."""
    variables = model.variables
    check_loss(task.loss_with(variables), model.parameters, example)
    return getattr(jax.eval_shape(task.loss_with(variables), model.parameters, example)[1], "shape", None)


def compiled_when_called(function: Callable) -> Callable:
    """Compile a function with our options, once for each kind of arguments."""
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
    """Give the arrays of a record that have a number for each example, and could be no number."""
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
    """Count the calls between a function and the user's line that they come from, for `warnings.warn`."""
    frames = list(stack.walk_stack(sys._getframe(1)))
    ours = [level for level, (frame, _) in enumerate(frames, 1) if frame.f_code.co_filename.startswith(PACKAGE)]
    return ours[-1] + 1


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)


def _config_of(loss: Callable, seeds: Sequence[int], **fields: Any) -> StudyConfig:
    """Say of a loop what a configuration can: little of what decides a study is known."""
    return StudyConfig(
        dataset="arrays",
        model=name_of(loss),
        input_scaling="none",
        optimizer=UNKNOWN,
        num_seeds=len(seeds),
        first_seed=min(seeds),
        **{name: int(value) if isinstance(value, np.integer) else value for name, value in fields.items()},
    )
