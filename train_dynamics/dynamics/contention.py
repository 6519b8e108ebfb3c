"""Contention: pairs of groups whose gradients oppose each other, and whether they really fight.

After the contentions of "An Empirical Study of Neural Network Training Dynamics" (2022). The test against matched
groups is ours: two examples with the same activation and different labels oppose each other by construction, so
contention has to be shown to be more than that.
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from train_dynamics.dynamics.cones import Directions, cosines, products

SAME = 0.5


def opponents(
    directions: Directions,
    members: Int[np.ndarray, " m"],
    cosine: float,
    to: str = "centre",
    others: tuple[Float[np.ndarray, "k _"], ...] | None = None,
) -> Bool[np.ndarray, " k"]:
    """Tell which examples oppose a cone: those whose gradients have a cosine below minus `cosine` to it.

    Args:
        directions: Directions of all gradients.
        members: The cone.
        cosine: The threshold, positive.
        to: What must be opposed: the cone's `centre`, the mean of its members' directions, or all of its `members`.
        others: Directions of the examples asked about. Default: all.

    Example:
        >>> opponents((np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]),), np.array([0]), 0.95)
        array([False, False,  True])
    """
    others = directions if others is None else others
    if to == "members":
        return (products(tuple(factor[members] for factor in directions), others) < -cosine).all(axis=0)
    centre = group_gradient(directions, members)
    first, *rest = others
    product = (np.matmul(first, centre.reshape(first.shape[1], -1)) * rest[0] if rest else first * centre).sum(axis=1)
    return product < -cosine * np.linalg.norm(centre)


def least_to_member(cosine: float, cover: str, to: str = "centre") -> float:
    """Bound the smallest cosine between an example opposed to a cone and the cone's members, from above.

    An example's cosine to the centre is the mean of its cosines to all members, divided by the centre's length. So if
    its cosine to the centre is below -c, its cosine to some member is below -c times that length. The length is at
    least the square root of the smallest cosine between members: c in a clique, 2 c^2 - 1 in a star.

    Example:
        >>> least_to_member(0.95, "clique")
        -0.9259...
    """
    if to == "members":
        return -cosine
    return -cosine * np.sqrt(cosine if cover == "clique" else max(2 * cosine**2 - 1, 0))


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """Two groups of examples in contention, as they were when first found.

    Attributes:
        seed: Index of the seed.
        layer: The layer whose gradients oppose.
        iteration: Iteration at which it was first found.
        left: The cone.
        right: The examples opposed to it.
        cosine: Cosine between the mean gradients of the two groups.
        strength: How much of the mean gradient the two groups cancel: the length of the smaller one's share of it, in
            nats per unit of weight.
        last: Iteration at which it was last found.
        sightings: Number of examined iterations at which it was found.
    """

    seed: int
    layer: str
    iteration: int
    left: Int[np.ndarray, " a"]
    right: Int[np.ndarray, " b"]
    cosine: float
    strength: float
    last: int
    sightings: int = 1


def overlap(a: Int[np.ndarray, " a"], b: Int[np.ndarray, " b"]) -> float:
    """Compute which share of the smaller of two sets is in the other.

    Example:
        >>> overlap(np.array([1, 2]), np.array([2, 3, 4]))
        0.5
    """
    return np.intersect1d(a, b, assume_unique=True).size / min(len(a), len(b))


def merge(sightings: Iterable[Iterable[Pair]]) -> list[Pair]:
    """Join pairs that were found again: the same two groups, in the same seed and layer, at neighbouring iterations.

    Two findings are of the same groups if, for both groups, at least half of the smaller one is in its counterpart,
    whichever is called left. (One fight is found once for each cone on either side.) A pair keeps the groups of its
    first finding, the strongest if there are several at once; the next finding is compared with the latest one.

    Args:
        sightings: The pairs found at each examined iteration, in order.

    Returns:
        Pairs, the strongest first.
    """
    merged: list[Pair] = []
    before: list[tuple[int, Pair]] = []  # where in `merged`, and the latest sighting
    for found in sightings:
        now: list[tuple[int, Pair]] = []
        for pair in sorted(found, key=lambda pair: -pair.strength):
            known = next((k for k, seen in now if _same(seen, pair)), None)
            if known is not None:  # seen from the other side, or as another cone of the same examples
                continue
            known = next((k for k, seen in before if _same(seen, pair)), None)
            if known is None:
                known = len(merged)
                merged.append(pair)
            else:
                old = merged[known]
                if old.last != pair.iteration:
                    merged[known] = dataclasses.replace(old, last=pair.iteration, sightings=old.sightings + 1)
            now.append((known, pair))
        before = now
    return sorted(merged, key=lambda pair: -pair.strength)


def _same(one: Pair, other: Pair) -> bool:
    return (one.seed, one.layer) == (other.seed, other.layer) and any(
        overlap(one.left, left) >= SAME and overlap(one.right, right) >= SAME
        for left, right in ((other.left, other.right), (other.right, other.left))
    )


def group_gradient(
    factors: tuple[Float[np.ndarray, "n _"], ...], members: Int[np.ndarray, " m"]
) -> Float[np.ndarray, " k"]:
    """Compute the mean gradient of a group, flat.

    Args:
        factors: Activations and cotangents, or the gradients themselves, flat.
        members: The group.
    """
    if len(factors) == 1:
        return factors[0][members].mean(axis=0)
    activation, cotangent = factors
    return (activation[members].T @ cotangent[members]).ravel() / len(members)


def norm_bins(labels: Int[np.ndarray, " n"], norm: Float[np.ndarray, " n"], bins: int = 5) -> Int[np.ndarray, " n"]:
    """Divide the examples of each label into bins of about equal size, by gradient norm.

    Example:
        >>> norm_bins(np.array([0, 0, 1, 1]), np.array([0.3, 0.1, 5.0, 7.0]), bins=2)
        array([1, 0, 2, 3])
    """
    bin_of = np.empty(len(labels), int)
    for label in np.unique(labels):
        of_label = np.flatnonzero(labels == label)
        order = of_label[np.argsort(norm[of_label], kind="stable")]
        bin_of[order] = label * bins + np.arange(len(order)) * bins // len(order)
    return bin_of


class Drawn(NamedTuple):
    """Groups drawn at random. Each is stored only once, however often it was drawn.

    Attributes:
        groups: The distinct groups.
        draws: Index of the group of each draw.
    """

    groups: Int[np.ndarray, "r m"]
    draws: Int[np.ndarray, " count"]


def matched_groups(
    left: Int[np.ndarray, " a"],
    right: Int[np.ndarray, " b"],
    bin_of: Int[np.ndarray, " n"],
    directions: Directions,
    count: int,
    rng: np.random.Generator,
) -> tuple[Drawn, Drawn] | None:
    """Draw random pairs of groups that match a pair in size, labels, gradient norm and similarity of their members.

    Each group is drawn around a random example as its start. From each bin of `norm_bins` it takes the examples nearest
    to the start in direction, as many as the group has there, and none of the pair itself. Groups put together purely
    at random would not be a fair comparison: their members' losses average out, while those of a cone's members do not.

    Args:
        left: One group.
        right: The other.
        bin_of: Bin of each example, by label and norm.
        directions: Direction of each example's gradient.
        count: Number of pairs to draw.
        rng: Random generator.

    Returns:
        The groups on either side. None if some bin has fewer than twice as many examples left as needed.
    """
    free = np.ones(len(bin_of), bool)
    free[left] = free[right] = False
    drawn: list[Drawn] = []
    for group in (left, right):
        needed = np.bincount(bin_of[group], minlength=bin_of.max() + 1)
        pools = {int(k): np.flatnonzero(free & (bin_of == k)) for k in np.flatnonzero(needed)}
        if any(len(pool) < 2 * needed[k] for k, pool in pools.items()):
            return None
        everyone = np.concatenate(list(pools.values()))
        starts = rng.choice(everyone, count)
        taken = np.zeros((1, len(bin_of)), bool)  # no example is in both groups
        if drawn and np.isin(drawn[0].groups, everyone).any():  # the second depends on the first
            taken = np.zeros((len(drawn[0].groups), len(bin_of)), bool)
            np.put_along_axis(taken, drawn[0].groups, True, axis=1)
            others = drawn[0].draws
        else:
            others = np.zeros(count, int)
        _, first, draws = np.unique(starts * len(taken) + others, return_index=True, return_inverse=True)
        distance = -cosines(directions, starts[first], everyone)
        if taken.any():
            distance[taken[others[first]][:, everyone]] = np.inf
        of_pool = np.split(distance, np.cumsum([len(pool) for pool in pools.values()])[:-1], axis=1)
        nearest = [
            pool[columns.argpartition(needed[k] - 1, axis=1)[:, : needed[k]]]
            for (k, pool), columns in zip(pools.items(), of_pool, strict=True)
        ]
        drawn.append(Drawn(np.concatenate(nearest, axis=1), draws))
    return drawn[0], drawn[1]


def antiphase(left: Float[np.ndarray, "t *g"], right: Float[np.ndarray, "t *g"]) -> Float[np.ndarray, "*g"]:
    """Correlate the changes of two curves between iterations. Near -1, one gains what the other loses.

    Returns:
        Pearson's correlation. NaN where a curve does not change, or always changes by the same amount.

    Example:
        >>> antiphase(np.array([0.0, 1.0, 0.0, 1.0]), np.array([1.0, 0.0, 1.0, 0.0]))
        array(-1.)
    """
    x, y = (np.diff(curve, axis=0) for curve in (left, right))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    lengths = np.sqrt((x * x).sum(axis=0) * (y * y).sum(axis=0))
    return np.divide((x * y).sum(axis=0), lengths, out=np.full_like(lengths, np.nan), where=lengths > 0)


def p_value(observed: float, controls: Float[np.ndarray, " r"]) -> float:
    """Compute how often matched groups are at least as much in antiphase. The pair itself counts as one of them.

    A control whose correlation is NaN counts against the pair. Under the hypothesis that the pair is like its controls,
    it is one more draw, so p is never 0: Phipson and Smyth, "Permutation P-values Should Never Be Zero" (2010).

    Example:
        >>> p_value(-0.5, np.array([-0.6, 0.0, 0.1]))
        0.5
    """
    return float((1 + np.count_nonzero(~(controls > observed))) / (1 + len(controls)))
