"""Follows the cones of all seeds through a recording, and compares how long groups stay together with chance."""

import dataclasses
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from threadpoolctl import threadpool_limits

from train_dynamics.config import InputError
from train_dynamics.dynamics import cones, lineages
from train_dynamics.dynamics.lineages import PATIENCE, Event
from train_dynamics.dynamics.tiles import apart, tiles
from train_dynamics.recording.reader import Recording
from train_dynamics.study.claims import RESAMPLES
from train_dynamics.study.cones import COVERS, read_factors
from train_dynamics.study.contention import drawn

MOST_FOLLOWED = 10_000  # examples; of more, as many drawn at random: the pairs that are compared grow as their square
LAGS = 20  # covers after its birth at which a group is looked at: as many for each cover, however many there are
HALF = 0.5


@dataclasses.dataclass(frozen=True)
class LineageOptions:
    """Which cones to follow.

    Attributes:
        cosine: Smallest cosine between the members of a cone, or between a member and the star's centre.
        cover: `clique` or `star`.
        smallest: Fewest members of a cone that is followed.
        covers: Largest number of records, per seed, at which to look for them: every k-th one, from the first on.
    """

    cosine: float = 0.95
    cover: str = "clique"
    smallest: int = 10
    covers: int = 48

    def __post_init__(self) -> None:
        if self.smallest < 2:
            raise InputError.flag("smallest_group", self.smallest, "must be at least 2")
        if self.covers < 2:
            raise InputError.flag("lineage_covers", self.covers, "must be 2 or more")


@dataclasses.dataclass(frozen=True, eq=False)
class Lineages:
    """The cones of one seed and layer, followed.

    Attributes:
        seed: The seed.
        layer: The layer whose gradients they are made from.
        iterations: The examined iterations.
        lineage: The lineage of each example at these, numbered from 0 for the one with most members over all; -1 for
            examples in no cone that is followed.
        events: What happened to them; `step` is an index into `iterations`.
        step: For all cones of all covers: the cover at which each was found.
        together: For each of these, the share of its members that are in one cone, whichever it is, at that cover and
            at the `LAGS` covers after it. NaN after the last cover.
        by_chance: The same for groups drawn at random at that cover, by `shuffled`, each with the size and labels of a
            cone.
        continued: Share of the cones of each cover, except the last, that the next one continues.
        continued_by_chance: Share of groups drawn at random at that cover that the next one would continue.
    """

    seed: int
    layer: str
    iterations: Int[np.ndarray, " t"]
    lineage: Int[np.ndarray, "t n"]
    events: Sequence[Event]
    step: Int[np.ndarray, " group"]
    together: Float[np.ndarray, "group lag"]
    by_chance: Float[np.ndarray, "group lag"]
    continued: Float[np.ndarray, " step"]
    continued_by_chance: Float[np.ndarray, " step"]

    @property
    def count(self) -> int:
        """Number of lineages."""
        return int(self.lineage.max(initial=-1)) + 1

    @property
    def sizes(self) -> Int[np.ndarray, "t lineage"]:
        """Number of members of each lineage at each cover. 0 before its birth and after its end."""
        return np.stack([np.bincount(row[row >= 0], minlength=self.count) for row in self.lineage])

    def span(self) -> tuple[Int[np.ndarray, " lineage"], Int[np.ndarray, " lineage"]]:
        """Find the first and the last cover of each lineage. It may be missing from some covers between them."""
        there = self.sizes > 0
        return there.argmax(axis=0), len(there) - 1 - there[::-1].argmax(axis=0)

    def lifetimes(self) -> tuple[Float[np.ndarray, " lineage"], Bool[np.ndarray, " lineage"]]:
        """Compute after how many updates each lineage was gone, counted from its first cover, and whether it was.

        For lineages that may come back, or exist at the end: after how many updates they were last seen.
        """
        first, last = self.span()
        ended = last + PATIENCE < len(self.iterations) - 1
        return (self.iterations[last + ended] - self.iterations[first]).astype(float), ended

    def stayed(self, share: Float[np.ndarray, "group lag"]) -> tuple[np.ndarray, np.ndarray]:
        """Compute after how many updates fewer than half of each group are in one cone, and whether that happened.

        Just as a lineage may be missing for a while, so may the half: it counts as gone if it is missing for more than
        `PATIENCE` covers.

        Args:
            share: `together` or `by_chance`.
        """
        below, last = share < HALF, share.shape[1] - PATIENCE
        gone = np.logical_and.reduce([below[:, k : last + k] for k in range(PATIENCE + 1)])
        lags = np.arange(share.shape[1])
        ended, seen = gone.any(axis=1), np.where(share >= HALF, lags, 0).max(axis=1)
        then = self.step + np.where(ended, gone.argmax(axis=1), seen)
        return (self.iterations[then] - self.iterations[self.step]).astype(float), ended


class Estimate(NamedTuple):
    """A number for all seeds, with its 95 % interval by a percentile bootstrap over seeds; for one seed no interval."""

    value: float
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class Persistence:
    """How long the cones of one layer stay together, over all seeds, compared with groups drawn at random.

    Attributes:
        layer: The layer.
        updates: Number of updates of each lag, if it is the same at all covers.
        groups: Number of cones that were watched that long, over all covers.
        together: Mean share of the members that are in one cone, over all cones of a seed and then over seeds.
        interval: Its 95 % interval, by a percentile bootstrap over seeds; for one seed, the mean itself.
        by_chance: The same for groups drawn at random.
        chance_interval: The interval of that.
        lifetime: Median number of updates that lineages live, whatever their members are by then.
        lifetime_of_cones: The same, counting a lineage once for each of its cones; those that live long have more.
        stayed: Median number of updates until fewer than half of a cone's members are in one cone.
        stayed_by_chance: The same for groups drawn at random.
    """

    layer: str
    updates: Int[np.ndarray, " lag"] | None
    groups: Int[np.ndarray, " lag"]
    together: Float[np.ndarray, " lag"]
    interval: Float[np.ndarray, "2 lag"]
    by_chance: Float[np.ndarray, " lag"]
    chance_interval: Float[np.ndarray, "2 lag"]
    lifetime: Estimate
    lifetime_of_cones: Estimate
    stayed: Estimate
    stayed_by_chance: Estimate


def find_lineages(recording: Recording, options: LineageOptions) -> list[Lineages]:
    """Cover the examples at every k-th record, in all seeds and layers, and follow the cones, in linear time.

    If there are more than `MOST_FOLLOWED` examples, that many are drawn at random and followed.
    """
    every = -(-recording.num_records // options.covers)
    times = recording.iterations[::every]
    count = len(recording.labels)
    among = drawn(count, MOST_FOLLOWED)

    def covers_at(t: int) -> dict[tuple[str, int], Int[np.ndarray, " n"]]:
        found = {}
        for layer in recording.gradient_layers:
            for s, factors in enumerate(read_factors(recording, layer, t)):
                found[layer, s] = np.full(count, -1)
                found[layer, s][among] = _cover(tuple(part[among] for part in factors), options)
        return found

    # Our threads share the work already; BLAS threads on products this small only get in their way.
    with threadpool_limits(1), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        found = list(threads.map(covers_at, times.tolist()))
    seeds, labels = recording.seeds.tolist(), recording.classes[0]
    return [
        followed(seed, layer, times, [covers[layer, s] for covers in found], labels)
        for layer in recording.gradient_layers
        for s, seed in enumerate(seeds)
    ]


def _cover(factors: tuple[np.ndarray, ...], options: LineageOptions) -> Int[np.ndarray, " n"]:
    directions = cones.directions(*factors)
    sets = apart(tiles(directions), options.cosine)
    cover = cones.cover_apart(directions, sets, options.cosine, COVERS[options.cover], options.smallest)
    return lineages.at_least(cover, options.smallest)


def followed(
    seed: int,
    layer: str,
    iterations: Int[np.ndarray, " t"],
    covers: Sequence[Int[np.ndarray, " n"]],
    labels: Int[np.ndarray, " n"],
) -> Lineages:
    """Follow the cones of one seed and layer, and random groups for comparison."""
    rng = np.random.default_rng(seed)
    lineage, events = lineages.follow(covers)
    drawn_groups = [lineages.shuffled(cover, labels, rng) for cover in covers]
    shares: list[list[np.ndarray]] = [[], []]
    for step, divisions in enumerate(zip(covers, drawn_groups, strict=True)):
        for groups, found in zip(divisions, shares, strict=True):
            rows = np.full((int(groups.max(initial=-1)) + 1, LAGS + 1), np.nan)
            for lag, later in enumerate(covers[step : step + LAGS + 1]):
                rows[:, lag] = lineages.together(groups, later)
            found.append(rows)
    step = np.repeat(np.arange(len(covers)), [*map(len, shares[0])])
    continued = [_continued(one, other) for one, other in itertools.pairwise(covers)]
    by_chance_continued = [_continued(one, other) for one, other in zip(drawn_groups, covers[1:], strict=False)]
    return Lineages(
        *(seed, layer, iterations, lineage, events, step, *map(np.concatenate, shares)),
        *(np.array(share, float) for share in (continued, by_chance_continued)),
    )


def _continued(before: Int[np.ndarray, " n"], after: Int[np.ndarray, " n"]) -> float:
    """Compute the share of groups that a cover continues. NaN if there are none."""
    count = int(before.max(initial=-1)) + 1
    return np.count_nonzero(lineages.link(before, after) >= 0) / count if count else np.nan


def persistence(found: Sequence[Lineages]) -> list[Persistence]:
    """Compare how long cones stay together with groups drawn at random, in each layer.

    Args:
        found: The lineages of all seeds and layers.
    """
    return [
        _persistence([one for one in found if one.layer == layer]) for layer in dict.fromkeys(x.layer for x in found)
    ]


def _persistence(found: Sequence[Lineages]) -> Persistence:
    times = found[0].iterations
    lags = np.arange(min(LAGS + 1, len(times)))
    steps = np.unique(np.diff(times))
    shares = []
    for share in ("together", "by_chance"):
        of_seeds = np.array([_mean(getattr(one, share)[:, : len(lags)]) for one in found])
        shares += mean_over_seeds(of_seeds)
    return Persistence(
        found[0].layer,
        lags * steps[0] if len(steps) == 1 else None,
        sum(np.count_nonzero(~np.isnan(one.together[:, : len(lags)]), axis=0) for one in found),
        *shares,
        half_life([one.lifetimes() for one in found]),
        half_life([_of_cones(one) for one in found]),
        half_life([one.stayed(one.together) for one in found]),
        half_life([one.stayed(one.by_chance) for one in found]),
    )


def _of_cones(one: Lineages) -> tuple[np.ndarray, np.ndarray]:
    """Return the lifetime of a lineage, and whether it ended, once for each cover at which it exists."""
    times = np.count_nonzero(one.sizes, axis=0)
    return tuple(np.repeat(values, times) for values in one.lifetimes())


def _mean(values: Float[np.ndarray, "m k"]) -> Float[np.ndarray, " k"]:
    """Average the values in each column. NaN if there are none."""
    there = ~np.isnan(values)
    count = there.sum(axis=0)
    return np.divide(np.where(there, values, 0).sum(axis=0), count, out=np.full(count.shape, np.nan), where=count > 0)


def half_life(of_seeds: Sequence[tuple[Float[np.ndarray, " _"], Bool[np.ndarray, " _"]]]) -> Estimate:
    """Estimate the median lifetime over all seeds, with its interval.

    Args:
        of_seeds: For each seed, the lifetimes and whether they ended.
    """
    lifetime, ended = (np.concatenate([one[k] for one in of_seeds]) for k in (0, 1))
    count = len(of_seeds)
    times, place = np.unique(lifetime, return_inverse=True)
    place += np.repeat(np.arange(count) * len(times), [len(one[0]) for one in of_seeds])
    leaving, ends = (
        np.bincount(place[of], minlength=count * len(times)).reshape(count, len(times)) for of in (slice(None), ended)
    )
    value = float(lineages.half_lives(times, leaving.sum(axis=0), ends.sum(axis=0)))
    if count == 1 or np.isnan(value):
        return Estimate(value, None, None)
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    resampled = np.sort(lineages.half_lives(times, weights @ leaving, weights @ ends))
    # No mean of two neighbours: between a number and infinity there is none.
    low, high = resampled[[int(0.025 * RESAMPLES), int(0.975 * RESAMPLES)]]
    return Estimate(value, float(low), float(high))


def mean_over_seeds(values: Float[np.ndarray, "s k"]) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "2 k"]]:
    """Average over the seeds that have a value, with 95 % intervals by a percentile bootstrap over seeds.

    Returns:
        The means (NaN where no seed has a value) and the interval's ends; for one seed these are the mean itself.
    """
    count = len(values)
    chosen = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    resampled = np.stack([_mean(values[seeds]) for seeds in chosen])
    ends = np.full((2, values.shape[1]), np.nan)
    known = ~np.isnan(values).all(axis=0)
    ends[:, known] = np.nanquantile(resampled[:, known], (0.025, 0.975), axis=0)
    return _mean(values), ends
