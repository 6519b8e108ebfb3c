"""Opposing signals: the examples whose loss rises most and falls most in the same update."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

SHARE = 100


class Extremes(NamedTuple):
    """Examples at both ends of a change of loss. Ties are broken arbitrarily.

    Attributes:
        risers: Those whose loss rose most, or fell least.
        fallers: Those whose loss fell most, or rose least.
    """

    risers: Int[np.ndarray, "*lead m"]
    fallers: Int[np.ndarray, "*lead m"]


def extremes(change: Float[np.ndarray, "*lead n"], size: int) -> Extremes:
    """Find the `size` examples whose loss rises most and the `size` whose loss falls most.

    After Rosenfeld and Risteski, "Outliers with Opposing Signals Have an Outsized Effect on Neural Network
    Optimization" (2023; not checked against the published text), who find paired groups by the most positive and the
    most negative change of loss between two steps. To first order the change of an example's loss is its gradient times
    the step, so that the two groups are on opposite sides of what the step does. That they share a feature, and that
    the two come back again and again in turns, is their finding and *not* part of this definition; nor need the mean
    gradients of the groups be opposed.

    Raises:
        ValueError: If the two groups would overlap.

    Example:
        >>> extremes(np.array([0.1, -0.5, 0.7, 0.0]), size=1)
        Extremes(risers=array([2]), fallers=array([1]))
    """
    n = change.shape[-1]
    if not 1 <= size <= n // 2:
        raise ValueError(f"two groups of {size} do not fit into {n} examples")
    order = np.argpartition(change, (size - 1, n - size), axis=-1)
    return Extremes(order[..., n - size :], order[..., :size])


class OpposingSignals:
    """Follows the losses through the records, block by block: how far the extremes move, and who they are.

    A change is from one record to the next; if every iteration was recorded, that is one update. Blocks must come in
    order and without gaps. Each group holds a hundredth of the examples, at least one. With a single example there are
    no groups, and the change is NaN.

    Attributes:
        size: Examples in a group.
        risen: How often each example was among the risers, for each seed.
        fallen: The same for the fallers.

    Example:
        >>> found = OpposingSignals(num_seeds=1, num_examples=4)
        >>> found.add(np.array([[[1.0, 1.0, 1.0, 1.0], [1.1, 0.5, 1.7, 1.0]]]))
        >>> found.curves["risers"], found.curves["fallers"], found.risen
        (array([[0.7]]), array([[-0.5]]), array([[0, 0, 1, 0]]))
    """

    def __init__(self, num_seeds: int, num_examples: int) -> None:
        self.size = min(max(num_examples // SHARE, 1), num_examples // 2)
        self.risen = np.zeros((num_seeds, num_examples), np.int64)
        self.fallen = np.zeros((num_seeds, num_examples), np.int64)
        self._last: Float[np.ndarray, "s n"] | None = None
        self._pieces: list[Float[np.ndarray, "group s t"]] = [np.empty((3, num_seeds, 0))]

    @property
    def curves(self) -> dict[str, Float[np.ndarray, "s t"]]:
        """Mean change of loss of `risers`, `fallers` and `all` examples; row t is from record t to the next."""
        return dict(zip(("risers", "fallers", "all"), np.concatenate(self._pieces, axis=-1), strict=True))

    def add(self, loss: Float[np.ndarray, "s t n"]) -> None:
        """Take in the next records."""
        means = np.full((3, len(self.risen), loss.shape[1]), np.nan)
        rows, first = np.arange(len(self.risen))[:, None], self._last is None
        for t in range(loss.shape[1]):  # one record at a time stays in the processor's cache
            now = loss[:, t]
            if self._last is not None:
                change = now - self._last
                found = extremes(change, self.size) if self.size else ()
                for k, (counts, chosen) in enumerate(zip((self.risen, self.fallen), found, strict=False)):
                    counts[rows, chosen] += 1
                    means[k, :, t] = change[rows, chosen].mean(axis=-1, dtype=np.float64)
                means[2, :, t] = change.mean(axis=-1, dtype=np.float64)
            self._last = now
        self._pieces.append(means[..., 1 if first else 0 :])
