"""Runs a recording's trained networks again in JAX, for `verify` and for scores that need more than was recorded.

User code runs only if the user names it or passes it in: see `networks_of`.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from train_dynamics.config import InputError
from train_dynamics.data.imports import told
from train_dynamics.data.trees import Tree
from train_dynamics.gradients.evaluation import evaluate
from train_dynamics.gradients.parameters import named
from train_dynamics.recording.code import how_to_run, made_in_python, may_run
from train_dynamics.recording.layers import TOGETHER
from train_dynamics.recording.reader import Recording
from train_dynamics.recording.verification import FAINT, TOLERANCE, Replay
from train_dynamics.task.task import Task
from train_dynamics.training import of_inputs
from train_dynamics.training.code import code_of, code_of_loss
from train_dynamics.training.setup import task_of
from train_dynamics.training.sweep import compiled, enable_compilation_cache, enough_memory, local_devices
from train_dynamics.training.task_steps import by_dots

RERUN = ("model", "loss")
NUDGE = 1e-5  # a hundred times what rounding in float32 may move the input of a unit by
NUDGES = 2  # directions; a single one may happen not to move a unit
JUMP = 0.1 * TOLERANCE
VECTORS = 10  # as the code of Garg and Roy takes
FEW_INPUTS = 64  # up to which a vector for each is no great cost
FEW_CLASSES = 64  # up to which a Jacobian is none
EXAMPLES = 1024
ROOM = 2**27  # bytes of what a slice of the examples needs
PART = 2**26  # bytes of the inputs of which ways to other classes are looked for at a time


def networks_of(
    recording: Recording, model: str | None = None, loss: str | None = None, task: Task | None = None
) -> "Networks":
    """Build a recording's networks again, from the code that they were made with.

    Only the code named here is run, and only if its text has not changed.

    Args:
        recording: The recording.
        model: The recording's `--model`, if it is the user's own code.
        loss: The recording's `--loss`, if it is the user's own code.
        task: Instead of both, the task that `train_dynamics.sweep` was given. For a recording of your own training
            loop: a task with its loss, whose `init` returns parameters of the same names and shapes.

    Raises:
        InputError: If the code named is not the recorded code, is incomplete, has changed, or does not fit.

    Example:
        >>> networks = networks_of(Recording("recordings/cnn"), model="configs/networks.py:cnn")
        >>> verify(recording, samples=100, networks=networks).problems
        []
    """
    if task is None and not may_run(recording, model, loss):
        raise InputError.flag("recording", recording.path, how_to_run(recording))
    if task is not None and not made_in_python(recording):
        raise InputError.flag("recording", recording.path, "was not made from a task in Python; give its model instead")
    if task is None or "task" in recording.code:
        now = code_of(recording.config, task, RERUN)
    else:
        now = code_of_loss(task.loss)
    for name, before in recording.code.items():
        if name in (*RERUN, "task") and before["sha256"] != now.get(name, {}).get("sha256"):
            of = f"--{name}={before['import']}" if task is None else f"the {name}"
            raise InputError(f"{of}: it has changed since {recording.path} was made, so it is not run")
    if task is None:
        task = task_of(recording.config, recording.data)
    return Networks(recording, task)


def for_command(recording: Recording, model: str | None, loss: str | None) -> "Networks":
    """Do the same as `networks_of` for a command, and let JAX cache what it compiles.

    Raises:
        InputError: As `networks_of` does.
    """
    enable_compilation_cache()
    return networks_of(recording, model, loss)


class Program:
    """A function, compiled once for each shape of its arguments, with the same options as training."""

    def __init__(self, function: Callable) -> None:
        self._function = function
        self._compiled: dict[Any, Callable] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Run it, and return NumPy arrays."""
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arguments))
        with enough_memory():
            if shapes not in self._compiled:
                lowered = jax.jit(self._function).lower(*arguments)
                self._compiled[shapes] = compiled(lowered, local_devices()[0].platform)
            return jax.tree.map(np.asarray, self._compiled[shapes](*arguments))


class Networks:
    """The networks of all seeds at all iterations.

    `verify` and the analysis take it as their `networks`.

    Args:
        recording: The recording.
        task: The task that it was made from.

    Attributes:
        precision: What `again` computes in: float64, or float32 if the network does not run in float64.

    Raises:
        InputError: If the task's parameters differ from the recording's, or if it does not run on its examples.
    """

    def __init__(self, recording: Recording, task: Task) -> None:
        self.recording, self.task = recording, task
        self.inputs, self.labels = recording.inputs(), recording.labels
        with _numbers("float32"):
            key = jax.random.key(0)
            self._like = jax.eval_shape(lambda: (task.init(key), task.variables(key)))
        _check_names(self._like[0], recording.contents.parameters, recording)
        self._evaluated = functools.partial(_evaluated, task, recording.contents.outputs)
        self.precision = self._precision()
        self._again = Program(self._evaluated)
        self.gradient_norms = Program(functools.partial(_gradient_norms, task))
        self.logit_gradients = self._of_inputs(of_inputs.logit_gradients)
        self.predictions = self._of_inputs(of_inputs.predictions)
        self.leads = self._of_inputs(of_inputs.leads)
        self.steps = self._of_inputs(of_inputs.steps)
        self._curvatures = self._of_inputs(of_inputs.curvatures)
        self._curvatures_of_pieces = self._of_inputs(of_inputs.curvatures_of_pieces)

    def _of_inputs(self, function: Callable) -> Program:
        def with_weights(weights: Any, examples: Any, *rest: Any) -> Any:
            return function(_fixed(self.task, weights), examples, *rest)

        return Program(with_weights)

    def weights(self, t: int) -> list[tuple[Any, Any]]:
        """Read parameters and variables of every seed after `t` updates, in the task's own structure."""
        recorded = self.recording.parameters(t), self.recording.variables(t)
        both = [_restored(stored, like, self.recording) for stored, like in zip(recorded, self._like, strict=True)]
        return [jax.tree.map(lambda leaf, s=s: leaf[s], tuple(both)) for s in range(len(self.recording.seeds))]

    def of(self, t: int) -> list["Network"]:
        """Return the networks of all seeds after `t` updates, for scores."""
        return [Network(self, weights) for weights in self.weights(t)]

    def again(self, s: int, t: int, examples: Int[np.ndarray, " k"]) -> Replay:
        """Evaluate examples one by one by the definition, `grad`, in float64 if the network runs in it.

        An example is at a kink if moving the weights up and down by a hundred-thousandth gives gradients whose mean
        differs from the gradient at the weights by more than a tenth of what `verify` tolerates. There, rounding
        decides which gradient is recorded. Its `clearance` is then 0, and infinite elsewhere.

        Args:
            s: Index of the seed.
            t: Iteration.
            examples: Indices of the examples.
        """
        batch = jax.tree.map(lambda leaf: leaf[examples], (self.inputs, self.labels))
        with _numbers(self.precision):
            weights = _cast((self.weights(t)[s], batch), self.precision)
            loss, outputs, gradients, jumps = self._again(*weights)
        wide = {name: value.astype(np.float64) for name, value in gradients.items()}
        return Replay(outputs.astype(np.float64), loss.astype(np.float64), wide, np.where(jumps, 0.0, np.inf))

    def _precision(self) -> str:
        """Find the precision by trying: code that names float32 may fail in float64, or compute in float32 anyway."""
        batch = jax.tree.map(lambda leaf: leaf[:1], (self.inputs, self.labels))
        for precision in ("float64", "float32"):
            with _numbers(precision):
                try:
                    found = jax.eval_shape(self._evaluated, *_cast((self._like, batch), precision))
                except Exception as error:  # of the user's own code
                    reason = told(error)
                    continue
            if precision == "float32" or all(value.dtype == precision for value in found[:2]):
                return precision
        config = self.recording.config
        raise InputError.flag("model", config.model, f"does not run on the recorded examples: {reason}")

    def curvatures(self, weights: Any, examples: Any) -> Float[np.ndarray, " n"]:
        """Compute the curvature of each example's loss: exactly if that is cheap, otherwise as `of_inputs` says."""
        if self._of_pieces:
            return self._curvatures_of_pieces(weights, examples)
        return self._curvatures(weights, examples, self._vectors)

    @functools.cached_property
    def _vectors(self) -> Float[np.ndarray, "m *input"]:
        """Return the vectors for the curvature: one per input if there are few, else random ones, always the same."""
        shape = self.inputs.shape[1:]
        size = int(np.prod(shape))
        if size <= FEW_INPUTS:
            return np.float32(size**0.5) * np.eye(size, dtype=np.float32).reshape(size, *shape)
        return np.random.default_rng(0).choice(np.float32([-1, 1]), (VECTORS, *shape))

    @functools.cached_property
    def _of_pieces(self) -> bool:
        """Whether the network is piecewise linear, checked on a few examples before and after training."""
        if not 1 < len(self.recording.class_names) <= FEW_CLASSES:
            return False
        few = jax.tree.map(lambda leaf: leaf[:8], (self.inputs, self.labels))
        look = self._of_inputs(of_inputs.is_of_pieces)
        vector = np.random.default_rng(0).normal(size=self.inputs.shape[1:]).astype(np.float32)
        return all(look(self.weights(int(t))[0], few, vector) for t in self.recording.iterations[[0, -1]])


class Network:
    """One seed's network at one iteration, as scores use it: `train_dynamics.dynamics.scores.score.Network`.

    Args:
        networks: The networks of all seeds.
        weights: The parameters and variables of this one.
    """

    def __init__(self, networks: Networks, weights: tuple[Any, Any]) -> None:
        self._networks, self._weights = networks, weights

    def gradient_norm(self, inputs: Tree, labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Compute the L2 norm of each example's loss gradient with respect to all parameters together."""
        return self._in_slices(self._networks.gradient_norms, inputs, labels)

    def input_gradient(
        self, inputs: Float[np.ndarray, "n i"], labels: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n i"]:
        """Compute the gradient of the label's logit with respect to each input."""
        return self._in_slices(self._networks.logit_gradients, inputs, labels).reshape(len(inputs), -1)

    def curvature(self, inputs: Float[np.ndarray, "n i"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Compute the trace of the squared Hessian of each example's loss with respect to its input.

        It is exact for piecewise linear networks with softmax cross-entropy and at most 64 classes, and for any network
        with at most 64 inputs. Otherwise it is an estimate from ten random vectors.
        """
        return self._in_slices(self._networks.curvatures, inputs, labels)

    def adversarial_distance(self, inputs: Float[np.ndarray, "n i"]) -> Float[np.ndarray, " n"]:
        """Find how far each example is from another predicted class; if there is none, the largest distance."""
        if len(self._networks.recording.class_names) == 1:
            return np.zeros(len(inputs), np.float32)  # one class has no boundary
        of, like = self._networks, self._networks.inputs
        inputs = inputs.reshape(len(inputs), *like.shape[1:])
        size = self._size(len(inputs))

        def of_rows(program: Callable) -> of_inputs.OfRows:
            return lambda rows, labels: self._in_slices(program, rows, labels.astype(of.labels.dtype), size)

        programs = [of_rows(program) for program in (of.predictions, of.leads, of.steps)]
        length = max(size, PART // max(inputs[0].nbytes, 1))
        parts = [inputs[start : start + length] for start in range(0, len(inputs), length)]
        found = np.concatenate([of_inputs.distances(part, *programs) for part in parts])
        return np.where(np.isfinite(found), found, found.max(where=np.isfinite(found), initial=0))

    def _in_slices(
        self, program: Callable, inputs: Tree, labels: Int[np.ndarray, " n"], size: int | None = None
    ) -> Any:
        """Run a program on so many examples at a time; the last one fills up what is left, so that few shapes occur."""
        like, found = self._networks.inputs, []
        if isinstance(like, np.ndarray):
            inputs = inputs.reshape(len(labels), *like.shape[1:])
        size = size or self._size(len(labels))
        with _numbers("float32"):
            for start in range(0, len(labels), size):
                rows = np.minimum(np.arange(start, start + size), len(labels) - 1)
                examples = jax.tree.map(lambda leaf, rows=rows: leaf[rows], (inputs, labels))
                left = slice(len(labels) - start)
                found.append(jax.tree.map(lambda values, left=left: values[left], program(self._weights, examples)))
        return jax.tree.map(lambda *values: np.concatenate(values), *found)

    def _size(self, num_examples: int) -> int:
        """Give how many of so many examples are taken at a time."""
        return min(self._slice_length(), 1 << (num_examples - 1).bit_length())

    def _slice_length(self) -> int:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self._weights))
        inputs = sum(leaf[0].size for leaf in jax.tree.leaves(self._networks.inputs))
        vectors = VECTORS + len(self._networks.recording.class_names)
        most = self._networks.recording.config.eval_batch_size or EXAMPLES
        return max(1, min(most, EXAMPLES, ROOM // (4 * (parameters + vectors * inputs))))


def _evaluated(
    task: Task, has_outputs: bool, weights: Any, examples: Any
) -> tuple[Array, Array, dict[str, Array], Bool[Array, " k"]]:
    """Return each example's loss, gradients and outputs (if they are an array), and where gradients jump."""
    parameters, variables = weights

    def at(nudge: Array, key: Array) -> Any:
        leaves, structure = jax.tree.flatten(parameters)
        keys = jax.random.split(key, len(leaves))
        moved = [
            leaf * (1 + nudge.astype(leaf.dtype) * jax.random.rademacher(key, leaf.shape, leaf.dtype))
            for leaf, key in zip(leaves, keys, strict=True)
        ]
        moved = jax.tree.unflatten(structure, moved)

        def one(example: Any) -> Any:
            (loss, outputs), gradient = jax.value_and_grad(task.loss_with(variables), has_aux=True)(moved, example)
            return loss, outputs if has_outputs else loss, named(gradient)

        return jax.lax.map(one, examples)  # `vmap` takes 350 times as long of convolutions in float64 on CPUs

    keys = jax.random.split(jax.random.key(0), NUDGES)
    nudges = jnp.array([0.0, *[NUDGE, -NUDGE] * NUDGES])
    of_nudges = jnp.maximum(jnp.arange(len(nudges)) - 1, 0) // 2
    loss, outputs, gradients = jax.lax.map(lambda of: at(*of), (nudges, keys[of_nudges]))
    jumps = jnp.zeros(loss.shape[1], bool)
    faint = FAINT * jnp.max(jnp.array([jnp.abs(value[0]).max(initial=0) for value in gradients.values()]))
    for value in gradients.values():
        bends = jnp.abs(value[1::2] + value[2::2] - 2 * value[0])
        largest = bends.max(axis=(0, *range(2, bends.ndim)), initial=0)
        jumps |= largest > JUMP * jnp.maximum(jnp.abs(value[0]).max(initial=0), faint)
    return loss[0], outputs[0], {name: value[0] for name, value in gradients.items()}, jumps


def _gradient_norms(task: Task, weights: Any, examples: Any) -> Float[Array, " n"]:
    """Compute the L2 norm of each example's gradient over all parameters, without keeping the gradients."""
    parameters, variables = weights
    first = next(iter(named(parameters)))
    return evaluate(task.loss_with(variables), parameters, examples, {first: "measures"}).kept[f"norm.{TOGETHER}"]


def _fixed(task: Task, weights: Any) -> of_inputs.Loss:
    """Return the loss of one example for a network with fixed parameters."""
    parameters, variables = weights
    loss = task.loss_with(variables)
    return lambda value, label: loss(parameters, (value, label))


@contextlib.contextmanager
def _numbers(precision: str) -> Iterator[None]:
    """Compute in this precision, whatever the environment says. This includes matrix products."""
    with jax.enable_x64(precision == "float64"), jax.default_matmul_precision("highest"):
        yield


def _cast(tree: Any, precision: str) -> Any:
    """Convert all floating-point arrays, or shapes of such, to a precision."""

    def cast(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, precision)
        return leaf.astype(precision)

    return jax.tree.map(cast, tree)


def _check_names(like: Any, recorded: tuple[str, ...], recording: Recording) -> None:
    """Check that a task has the parameters of a recording.

    Raises:
        InputError: If it has not.
    """
    if wrong := sorted(set(by_dots(like)) ^ set(recorded)):
        raise InputError.flag(
            "model", recording.config.model, f"has other parameters than {recording.path}: {wrong[0]}"
        )


def _restored(stored: dict[str, Any], like: Any, recording: Recording) -> Any:
    """Put recorded arrays, `[s, ...]`, into the structure of the task.

    Raises:
        InputError: If they have other shapes.
    """
    if not jax.tree.leaves(like):
        return like
    leaves = []
    for name, leaf in by_dots(like).items():
        found = functools.reduce(lambda node, part: node[part], name.split("."), stored)
        if found.shape[1:] != leaf.shape:
            raise InputError.flag(
                "model", recording.config.model, f"has {name} with another shape than {recording.path}"
            )
        leaves.append(found)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
