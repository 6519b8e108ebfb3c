"""Groups of examples through training: how far batches, classes and all examples pull together."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from train_dynamics.dynamics.alignment import Alignment
from train_dynamics.dynamics.coherence import m_coherence
from train_dynamics.dynamics.confusion import confusion, fixed_batches
from train_dynamics.dynamics.groups import Groups, gradient_sums
from train_dynamics.dynamics.noise_scale import noise_scale
from train_dynamics.dynamics.opposing import OpposingSignals, extremes
from train_dynamics.dynamics.stiffness import stiffness, within_and_between
from train_dynamics.recording.reader import Recording
from train_dynamics.study.cones import read_factors

MOST_CHECKPOINTS = 500
MOST_CLASSES = 20
MOST_BATCHES = 200


class Measures(NamedTuple):
    """The measures of one layer, for all seeds at one record, or at several, `[s, t]`.

    Attributes:
        m_coherence: m-coherence of all examples.
        noise_scale: Gradient noise scale of all examples.
        gradient_confusion: Gradient confusion of fixed batches.
        smallest_cosine: Smallest cosine between fixed batches.
        stiffness_within: Mean cosine between two examples of one class.
        stiffness_between: Mean cosine between two examples of different classes.
        stiffness: Stiffness by pair of classes. Left empty if there are more than `MOST_CLASSES`.
    """

    m_coherence: Float[np.ndarray, "s *t"]
    noise_scale: Float[np.ndarray, "s *t"]
    gradient_confusion: Float[np.ndarray, "s *t"]
    smallest_cosine: Float[np.ndarray, "s *t"]
    stiffness_within: Float[np.ndarray, "s *t"]
    stiffness_between: Float[np.ndarray, "s *t"]
    stiffness: Float[np.ndarray, "s *t c c"]

    @classmethod
    def stacked(cls, of_records: Iterable["Measures"]) -> "Measures":
        """Stack records along axis `t`."""
        return cls(*(np.stack(values, axis=1) for values in zip(*of_records, strict=True)))


class Sums(NamedTuple):
    """What the gradients of one seed at one record are reduced to.

    Attributes:
        norm: L2 norm of each gradient.
        mean_norm: L2 norm of the mean gradient.
        of_batches: Inner products of the mean gradients of batches.
        of_classes: Inner products of the classes' sums of normalised gradients.
        directed: Number of nonzero gradients in each class.
    """

    norm: Float[np.ndarray, " n"]
    mean_norm: Float[np.ndarray, ""] | np.floating
    of_batches: Float[np.ndarray, "b b"]
    of_classes: Float[np.ndarray, "c c"]
    directed: Int[np.ndarray, " c"]


class GroupStudy:
    """Which iterations are examined, and which examples are compared with which, in every layer.

    Args:
        recording: The recording. Batches are as large as in its training, and there are at most `MOST_BATCHES`.

    Attributes:
        checkpoints: The measured iterations: those of all records, or `MOST_CHECKPOINTS` evenly spread ones including
            the first and the last. More would not show more in a curve, and would cost more.
        sizes: Examples of each class.
    """

    def __init__(self, recording: Recording) -> None:
        last = recording.num_records - 1
        spread = np.linspace(0, last, min(recording.num_records, MOST_CHECKPOINTS))
        self.checkpoints: Int[np.ndarray, " checkpoint"] = recording.iterations[np.unique(spread.round().astype(int))]
        self._labels, names = recording.classes
        labels, self._num_classes = self._labels, len(names)
        self._batch_size = recording.config.examples_per_batch(len(recording.labels))
        self.sizes: Int[np.ndarray, " c"] = np.bincount(labels, minlength=self._num_classes)
        self._classes = Groups.of([np.flatnonzero(labels == c) for c in range(self._num_classes)])
        self._batches = Groups.of(list(fixed_batches(len(labels), self._batch_size)[:MOST_BATCHES]))

    def sums(self, gradients: tuple[Float[np.ndarray, "..."], ...], found: Alignment) -> Sums:
        """Reduce the gradients of one seed at one record to what all measures here are computed from.

        Args:
            gradients: Activation and cotangent, or gradients alone, as `gradient_sums` takes them.
            found: Their alignment.
        """
        inverse = np.divide(1, found.norm, out=np.zeros_like(found.norm), where=found.norm > 0)
        directed = self.sizes if inverse.all() else np.bincount(self._labels[inverse > 0], minlength=self._num_classes)
        of_batches = gradient_sums(gradients, self._batches) / np.float32(self._batch_size)
        of_classes = gradient_sums(gradients, self._classes, inverse).astype(np.float64)
        return Sums(found.norm, found.mean_norm, of_batches @ of_batches.T, of_classes @ of_classes.T, directed)

    def measure(self, of_seeds: Sequence[Sums]) -> Measures:
        """Compute all measures of all seeds at one record."""
        norm, mean_norm, of_batches, of_classes, directed = map(np.stack, zip(*of_seeds, strict=True))
        opposed = confusion(of_batches)
        matrix = stiffness(of_classes, directed, self.sizes)
        shown = self._num_classes if self._num_classes <= MOST_CLASSES else 0
        return Measures(
            m_coherence(norm, mean_norm),
            noise_scale(norm, mean_norm),
            *opposed,
            *within_and_between(matrix, self.sizes),
            matrix[:, :shown, :shown],
        )


@dataclasses.dataclass(frozen=True, eq=False)
class GroupDynamics:
    """The result of following groups through a recording.

    Attributes:
        checkpoints: The measured iterations.
        layers: Measures of each recorded layer, `[s, t]`, with one `t` per checkpoint.
        opposing: The examples whose losses rise and fall most.
    """

    checkpoints: Int[np.ndarray, " checkpoint"]
    layers: dict[str, Measures]
    opposing: OpposingSignals


class Update(NamedTuple):
    """The update in which both extremes moved most.

    Attributes:
        seed: Index of the seed.
        record: Index of the record before it.
        risers: Examples whose loss rose most, in descending order.
        fallers: Examples whose loss fell most, in descending order.
        rise: Mean change of loss of the risers, in nats.
        fall: Mean change of loss of the fallers, in nats.
    """

    seed: int
    record: int
    risers: Int[np.ndarray, " m"]
    fallers: Int[np.ndarray, " m"]
    rise: float
    fall: float


def quartiles(curve: Float[np.ndarray, "s t"]) -> Float[np.ndarray, "quartile t"]:
    """Compute the quartiles over seeds; the second is the median. A seed without a value counts as infinite.

    Between two seeds they are interpolated. Infinite results become NaN.

    Example:
        >>> quartiles(np.array([[1.0], [2.0], [np.nan]])).ravel()
        array([1.5, 2. , nan])
    """
    infinite = 1e300  # which can be interpolated, unlike infinity; an eighth of it can come only of it
    found = np.quantile(np.nan_to_num(curve.astype(float), nan=infinite), (0.25, 0.5, 0.75), axis=0)
    return np.where(found > infinite / 8, np.nan, found)


def strongest_update(recording: Recording, opposing: OpposingSignals) -> Update:
    """Find the update, of any seed, in which the smaller of rise and fall is largest."""
    curves = opposing.curves
    both = np.minimum(curves["risers"], -curves["fallers"])
    s, t = (int(k) for k in np.unravel_index(both.argmax(), both.shape))
    before, after = (recording.loss(int(recording.iterations[record]))[s] for record in (t, t + 1))
    change = after - before
    risers, fallers = extremes(change, opposing.size)
    return Update(
        s,
        t,
        risers[np.argsort(-change[risers])],
        fallers[np.argsort(change[fallers])],
        float(change[risers].mean()),
        float(change[fallers].mean()),
    )


def mean_cosine(
    recording: Recording, layer: str, t: int, s: int, one: Int[np.ndarray, " m"], other: Int[np.ndarray, " k"]
) -> float:
    """Compute the cosine between the mean gradients of two groups of examples. 0 if one of them is zero."""
    sums = gradient_sums(read_factors(recording, layer, t)[s], Groups.of([one, other])).astype(np.float64)
    lengths = float(np.prod(np.linalg.norm(sums, axis=1)))
    return float(sums[0] @ sums[1]) / lengths if lengths else 0.0
