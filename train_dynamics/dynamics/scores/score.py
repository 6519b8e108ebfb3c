"""What a score is, what it is computed from, and the parts of most scores: a mean over records, or the last one."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from train_dynamics.data.trees import Tree

Weights = Mapping[str, Mapping[str, np.ndarray]]
"""The parameters of one seed, {layer: {"kernel": [in, out], "bias": [out]}}, from input to output."""


@runtime_checkable
class Network(Protocol):
    """One seed's network at one iteration, run again.

    `relu.ReluNetwork` is one, in NumPy; `train_dynamics.training.replay` has one for any classifier, in JAX. Inputs are
    flattened to [n, i] if they are a single array, and nested as recorded if they are several. Labels are classes.
    """

    def gradient_norm(self, inputs: Tree, labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Compute the L2 norm of each example's loss gradient with respect to all parameters together."""

    def input_gradient(self, inputs: Float[np.ndarray, "n i"], labels: Int[np.ndarray, " n"]) -> np.ndarray:
        """Compute the gradient of the label's logit with respect to each input, [n, i], as a new array."""

    def curvature(self, inputs: Float[np.ndarray, "n i"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Compute the trace of the squared Hessian of each example's loss with respect to its input."""

    def adversarial_distance(self, inputs: Float[np.ndarray, "n i"]) -> Float[np.ndarray, " n"]:
        """Find how far each example is from another predicted class, in units of input."""


class Study(NamedTuple):
    """What a score can know before it sees the first record.

    Attributes:
        num_seeds: Number of seeds.
        num_examples: Number of examples.
        iterations: Iteration of each record, rising. The last is the end of training.
        epoch: Number of updates in one pass over the examples.
        early: Iteration of the record used by scores that are defined early in training.
        checkpoints: Iterations at which replayed scores run the networks, and at which every score is evaluated as if
            recording had stopped there. The last is the end of training.
        learning_rate: Learning rate of the updates. NaN if it is not constant.
        further: Whether `train_dynamics.further` was run.
        replayable: Whether the networks can be run again.
        how_to_run: If they cannot, what the user must do so that they can.
        of_loop: Whether training was a user's own loop, whose batches are not known.
        continuous: Whether the inputs are one array of floating-point numbers, so that gradients with respect to them
            exist.
    """

    num_seeds: int
    num_examples: int
    iterations: Int[np.ndarray, " t"]
    epoch: int
    early: int
    checkpoints: Int[np.ndarray, " checkpoint"]
    learning_rate: float
    further: bool = False
    replayable: bool = True
    how_to_run: str = ""
    of_loop: bool = False
    continuous: bool = True

    @property
    def all_recorded(self) -> bool:
        """Whether there is a record of every iteration."""
        return bool((np.diff(self.iterations) == 1).all())


class Records(NamedTuple):
    """Consecutive records in the form that scores need.

    Attributes:
        iterations: Iteration of each record.
        loss: Cross-entropy of each example, in nats.
        prediction: Most likely class.
        correct: Whether the prediction is the label.
        margin: Label's logit minus the largest other logit.
        error_norm: L2 norm of the class probabilities minus the one-hot label.
        gradient_norm: L2 norm of the loss gradient with respect to the kernels of all recorded layers together.
        batch: Examples in the batch of the update after each record; -1 for none. Meaningful only if every iteration is
            recorded.
    """

    iterations: Int[np.ndarray, " t"]
    loss: Float[np.ndarray, "s t n"]
    prediction: Integer[np.ndarray, "s t n"]
    correct: Bool[np.ndarray, "s t n"]
    margin: Float[np.ndarray, "s t n"]
    error_norm: Float[np.ndarray, "s t n"]
    gradient_norm: Float[np.ndarray, "s t n"]
    batch: Integer[np.ndarray, "s t b"]

    def part(self, start: int, stop: int) -> "Records":
        """Return the records from position `start` up to `stop`, without copying."""
        iterations, *of_seeds = self
        return Records(iterations[start:stop], *(value[:, start:stop] for value in of_seeds))


Signal = Callable[[Records], Float[np.ndarray, "s t n"]]


class Accumulator(Protocol):
    """Follows all examples of all seeds through the records."""

    def add(self, records: Records) -> None:
        """Take in the next records. They come in order, at least one at a time."""

    def value(self) -> Float[np.ndarray, "s n"]:
        """Return the score as if recording had stopped here. NaN if it is not defined yet."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """A score: its name, its meaning, and its source.

    Attributes:
        name: Name of its column in tables.
        hard: Which values are hard: `high` or `low`.
        unit: Unit of its values. 1 for plain numbers.
        formula: The formula, in one line.
        source: The paper.
        needs: Function that explains why the score cannot be computed for a study. It returns an empty text if it can.
    """

    name: str
    hard: Literal["high", "low"]
    unit: str
    formula: str
    source: str
    needs: Callable[[Study], str] = lambda study: ""

    def missing(self, study: Study) -> str:
        """Explain why the score cannot be computed for a study. Empty if it can."""
        return self.needs(study)

    def difficulty(self, values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Turn values so that high means hard. NaN stays NaN."""
        return values if self.hard == "high" else -values


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamedScore(Score):
    """A score of each seed, computed from all records in order. The ensemble's value is the mean over seeds.

    Attributes:
        start: Function that makes its accumulator.
    """

    start: Callable[[Study], Accumulator]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayedScore(Score):
    """A score of each seed, computed from networks that are run again at a few iterations.

    Attributes:
        compute: Function from one seed's networks at those iterations, the inputs and the labels to the score of each
            example, [checkpoint, n], as if each checkpoint had been the last.
        at: Function that returns those iterations. Default: the checkpoints of the study.
        of_inputs: Whether it needs gradients with respect to the inputs.
    """

    compute: Callable[[Sequence[Network], Tree, np.ndarray, Study], Float[np.ndarray, "checkpoint n"]]
    at: Callable[[Study], Int[np.ndarray, " checkpoint"]] = lambda study: study.checkpoints
    of_inputs: bool = False

    def missing(self, study: Study) -> str:
        """Explain why the score cannot be computed for a study. Empty if it can."""
        if not study.replayable:
            return f"runs the network again; {study.how_to_run}"
        if self.of_inputs and not study.continuous:
            return "needs gradients with respect to the inputs, which are not one array of numbers with a point"
        return self.needs(study)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnsembleScore(Score):
    """A score of what all seeds together predict for an example at one iteration. A single seed has none.

    Attributes:
        compute: Function from class probabilities [s, n, c], and how often each seed counts [draw, s], to the score
            [draw, n].
    """

    compute: Callable[[Float[np.ndarray, "s n c"], Float[np.ndarray, "draw s"]], Float[np.ndarray, "draw n"]]


class Further(NamedTuple):
    """What further training computed, in addition to what was recorded.

    Attributes:
        labels: Class of each example.
        probabilities: Class probabilities at the end of training.
        retrained: Class probabilities of the same networks after training on held-out examples.
        private: Most likely class according to networks trained with different amounts of noise.
    """

    labels: Int[np.ndarray, " n"]
    probabilities: Float[np.ndarray, "s n c"]
    retrained: Float[np.ndarray, "s n c"]
    private: Integer[np.ndarray, "s level n"]


def _needs_further(study: Study) -> str:
    if study.of_loop:
        return "needs networks trained further, and of a loop nothing is known that could train them"
    return "" if study.further else "run train_dynamics.further first"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FurtherScore(Score):
    """A score of each seed, computed from what `train_dynamics.further` trained.

    Attributes:
        compute: Function from `Further` to the score.
    """

    compute: Callable[[Further], Float[np.ndarray, "s n"]]
    needs: Callable[[Study], str] = _needs_further


class Mean:
    """The mean of a signal over all records, in float64.

    Example:
        >>> Mean(study, lambda records: records.loss)
    """

    def __init__(self, study: Study, signal: Signal) -> None:
        self._signal = signal
        self._count = 0
        self.total = np.zeros((study.num_seeds, study.num_examples))

    def add(self, records: Records) -> None:
        """Take in the next records."""
        self._count += len(records.iterations)
        self.total += self._signal(records).sum(axis=1)

    def value(self) -> Float[np.ndarray, "s n"]:
        """Return the mean so far."""
        return self.total / self._count if self._count else np.full_like(self.total, np.nan)


class Latest:
    """A signal at the last record so far; or at the last record up to an iteration, after which it stays the same."""

    def __init__(self, study: Study, signal: Signal, until: int | None = None) -> None:
        self._signal = signal
        self._until = until
        self._value = np.full((study.num_seeds, study.num_examples), np.nan)

    def add(self, records: Records) -> None:
        """Take in the next records."""
        seen = records.iterations if self._until is None else records.iterations[records.iterations <= self._until]
        if len(seen):
            self._value = self._signal(records.part(len(seen) - 1, len(seen)))[:, 0].astype(np.float64)

    def value(self) -> Float[np.ndarray, "s n"]:
        """Return the signal at that record."""
        return self._value
