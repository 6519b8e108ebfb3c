"""The state of every example at an iteration: how large its gradient is, where it points, whether it is right."""

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Bool, Float, Int

from train_dynamics.config import InputError
from train_dynamics.dynamics.alignment import Alignment, alignment_of, measured_alignment
from train_dynamics.recording.reader import Block, Recording

QUANTILE = 0.995


class Frame(NamedTuple):
    """All examples of one seed at one iteration.

    Attributes:
        iteration: Number of updates so far.
        norm: L2 norm of each example's gradient in each layer, in nats per unit of weight.
        cosine: Cosine between it and the mean gradient of the layer; 0 where either is zero.
        mean_norm: L2 norm of the mean gradient of each layer.
        correct: Whether each example is classified correctly. NaN for a regression.
    """

    iteration: int
    norm: Float[np.ndarray, "layer n"]
    cosine: Float[np.ndarray, "layer n"]
    mean_norm: Float[np.ndarray, " layer"]
    correct: Bool[np.ndarray, " n"] | Float[np.ndarray, " n"]

    @property
    def of_classes(self) -> bool:
        """Whether examples can be right or wrong, that is, whether this is not a regression."""
        return not np.isnan(self.correct).any()

    @property
    def gradient_unit(self) -> str:
        """Unit of gradients. The loss of a regression has a unit of its own."""
        return "nats per unit of weight" if self.of_classes else "loss per unit of weight"

    @property
    def accuracy(self) -> float:
        """Share of the examples that are classified correctly."""
        return float(self.correct.mean())


def frames(
    recording: Recording, seed: int, iterations: Iterable[SupportsIndex], layers: Sequence[str] | None = None
) -> Iterator[Frame]:
    """Read frames one after the other, on demand.

    Args:
        recording: The recording, finished or not.
        seed: One of `recording.seeds`: the seed itself, not its index.
        iterations: The iterations, in any order.
        layers: Recorded layers. Default: all.

    Raises:
        InputError: If the seed or a layer was not recorded; or, while reading, if the recording is damaged.
        IndexError: While reading, if an iteration was not recorded.

    Example:
        >>> recording = Recording("recordings/mini_mnist")
        >>> [frame.accuracy for frame in frames(recording, seed=0, iterations=[0, 1400])]
        [0.07416666666666667, 0.8991666666666667]
    """
    layers = recording.layers if layers is None else tuple(layers)
    if seed not in recording.seeds:
        first, last = recording.seeds[[0, -1]]
        known = f"seed {first}" if first == last else f"seeds {first} to {last}"
        raise InputError.flag("seed", seed, f"was not recorded; {recording.path} has {known}")
    if not layers or not set(layers) <= set(recording.layers) or len(set(layers)) < len(layers):
        known = ", ".join(recording.layers)
        raise InputError.flag("layers", layers, f"must be one or more of those recorded, each once: {known}")
    s = int(np.flatnonzero(recording.seeds == seed)[0])
    return (_frame(recording, s, operator.index(t), layers) for t in iterations)


def nearest(
    iterations: Int[np.ndarray, " t"], wanted: Float[np.ndarray, " w"] | Int[np.ndarray, " w"]
) -> Int[np.ndarray, " k"]:
    """Find the recorded iterations nearest to some others, in ascending order and without repetition.

    Example:
        >>> nearest(np.array([0, 10, 20]), np.array([1, 2, 14, 99]))
        array([ 0, 10, 20])
    """
    later = np.searchsorted(iterations, wanted).clip(1 if len(iterations) > 1 else 0, len(iterations) - 1)
    earlier = np.maximum(later - 1, 0)
    closer = np.where(wanted - iterations[earlier] <= iterations[later] - wanted, earlier, later)
    return np.unique(iterations[closer])


def reach(frames: Iterable[Frame]) -> Float[np.ndarray, " layer"]:
    """Find a norm in each layer that nearly all examples stay below, in every frame.

    It is the largest 99.5th percentile over the examples of any frame. The largest norm itself would be that of one
    example at one moment, and an axis up to it would crowd all others. It is 1 if all norms are zero.

    Example:
        >>> reach([Frame(0, np.array([[1.0, 3.0]]), np.zeros((1, 2)), np.zeros(1), np.ones(2, bool))])
        array([2.99])
    """
    edge = np.max([np.quantile(frame.norm, QUANTILE, axis=-1) for frame in frames], axis=0)
    return np.where(edge > 0, edge, 1.0).astype(float)


def each_alignment(
    recording: Recording, block: Block, layer: str, iterations: Int[np.ndarray, " some"] | None = None
) -> Iterator[Iterator[tuple[tuple[Float[np.ndarray, "n _"], ...], Alignment]]]:
    """Yield the alignment at each iteration, seed by seed, together with what the gradients are made from.

    One seed at a time fits into the processor's cache.

    Args:
        recording: The recording.
        block: One of its blocks.
        layer: A recorded layer.
        iterations: Some of the block's iterations, ascending. Default: all.
    """
    num_seeds, kept = len(recording.seeds), recording.kept(layer)
    if not kept.has_gradient:
        for rows in zip(*(block.each(f"{kind}.{kept.key}", iterations) for kind in ("norm", "product")), strict=True):
            yield (((), measured_alignment(*(row[s] for row in rows))) for s in range(num_seeds))
        return
    for parts in recording.each_gradient(block, layer, iterations):
        of_seeds = (tuple(part[s % len(part)] for part in parts) for s in range(num_seeds))
        yield ((of_seed, alignment_of(*of_seed)) for of_seed in of_seeds)


def _frame(recording: Recording, s: int, t: int, layers: Sequence[str]) -> Frame:
    found = [_alignment(recording, s, t, layer) for layer in layers]
    norm, cosine, mean_norm = (np.stack(values) for values in zip(*found, strict=True))
    return Frame(t, norm, cosine, mean_norm, recording.correct(t)[s])


def _alignment(recording: Recording, s: int, t: int, layer: str) -> Alignment:
    """Compare the gradients of one seed with their mean."""
    if not recording.kept(layer).has_gradient:
        return measured_alignment(*(measure[s] for measure in recording.measures(layer, t)))
    return alignment_of(
        *(part[s % len(part)] for part in recording.vectors(layer, t))
    )  # images are alike for all seeds
