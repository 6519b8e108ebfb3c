"""Where every example stands at an iteration: how large its gradient is, where it points, whether it is right."""

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
        iteration: Updates so far.
        norm: L2 norm of each example's gradient in each layer, in nats per unit of weight.
        cosine: Cosine between it and the mean gradient of the layer; 0 where either is zero.
        mean_norm: L2 norm of the mean gradient of each layer.
        correct: Whether each example is classified correctly; NaN of a regression.
    """

    iteration: int
    norm: Float[np.ndarray, "layer n"]
    cosine: Float[np.ndarray, "layer n"]
    mean_norm: Float[np.ndarray, " layer"]
    correct: Bool[np.ndarray, " n"] | Float[np.ndarray, " n"]

    @property
    def of_classes(self) -> bool:
        """Whether there is right and wrong, as there is not in a regression."""
        return not np.isnan(self.correct).any()

    @property
    def gradient_unit(self) -> str:
        """Unit of gradients; the loss of a regression has one of its own."""
        return "nats per unit of weight" if self.of_classes else "loss per unit of weight"

    @property
    def accuracy(self) -> float:
        """Share of the examples classified correctly."""
        return float(self.correct.mean())


def frames(
    recording: Recording, seed: int, iterations: Iterable[SupportsIndex], layers: Sequence[str] | None = None
) -> Iterator[Frame]:
    """Read one frame after the other, each when it is asked for.

    Args:
        recording: The recording, finished or not.
        seed: One of `recording.seeds`; the seed itself and not its position among them.
        iterations: The iterations, in any order.
        layers: Recorded layers; all of them by default.

    Raises:
        InputError: If the seed or a layer was not recorded; while reading, if the recording is damaged.
        IndexError: While reading, if there is no record of an iteration.

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
    """Find the recorded iterations nearest to some others, ascending and each once.

    Example:
        >>> nearest(np.array([0, 10, 20]), np.array([1, 2, 14, 99]))
        array([ 0, 10, 20])
    """
    later = np.searchsorted(iterations, wanted).clip(1 if len(iterations) > 1 else 0, len(iterations) - 1)
    earlier = np.maximum(later - 1, 0)
    closer = np.where(wanted - iterations[earlier] <= iterations[later] - wanted, earlier, later)
    return np.unique(iterations[closer])


def reach(frames: Iterable[Frame]) -> Float[np.ndarray, " layer"]:
    """Find a norm in each layer that all but a few examples stay below, in every frame.

    The largest over the frames of the 99.5th percentile over the examples: the largest norm itself would be that of
    one example at one moment, and an axis drawn up to it would crowd all others. 1 where all norms are zero.

    Example:
        >>> reach([Frame(0, np.array([[1.0, 3.0]]), np.zeros((1, 2)), np.zeros(1), np.ones(2, bool))])
        array([2.99])
    """
    edge = np.max([np.quantile(frame.norm, QUANTILE, axis=-1) for frame in frames], axis=0)
    return np.where(edge > 0, edge, 1.0).astype(float)


def each_alignment(
    recording: Recording, block: Block, layer: str, iterations: Int[np.ndarray, " some"] | None = None
) -> Iterator[Iterator[tuple[tuple[Float[np.ndarray, "n _"], ...], Alignment]]]:
    """Compare gradients with their mean: for each iteration, of one seed after the other, what they are made of, too.

    One seed at a time stays in the processor's cache.

    Args:
        recording: The recording.
        block: One of its blocks.
        layer: A recorded layer.
        iterations: Some of the block's iterations, ascending; all by default.
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
