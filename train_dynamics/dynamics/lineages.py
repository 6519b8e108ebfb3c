"""Lineages: cones followed from one cover to the next, with what befalls them, and how far that is no chance.

A cover divides the examples of one moment into cones; a lineage is a cone that is recognised in later covers by its
members. Matching with a least Jaccard index, against where each lineage was seen last, and the events are those of
Greene, Doyle and Cunningham, "Tracking the Evolution of Communities in Dynamic Social Networks" (2010); ours is that
all cones of a cover are matched at once, one to one.

Covers are arrays as `cones.clique_cover` gives them: the cone of each example, -1 for none, without gaps in numbers.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

LEAST_SHARED = 1 / 3  # Jaccard index of two cones of one lineage: of two of one size, half of the members
MOST = 0.5  # share of the members that makes a cone come out of another, or go into it
CHANGED = 1.5  # times as large, or as small, makes an event
PATIENCE = (
    2  # covers in a row that a lineage may be missing: greedy covers give up a cone at one moment and find it again
)

ENDS = ("merge", "death")

Cones = Int[np.ndarray, " cone"]
Pairs = tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"], Int[np.ndarray, " pair"]]
"""The groups of two divisions that share members: the one, the other, and how many they share."""


class Event(NamedTuple):
    """What befell a lineage from one cover to another.

    Attributes:
        step: Place of the later cover; the earlier one is that in which the lineage was seen last.
        kind: `birth`; `split`, a birth of a cone at least half of which comes out of one cone; `growth` or `shrinkage`
            by half or more; `merge`, an end of a cone at least half of which goes into one cone; `death`.
        lineage: The lineage.
        other: That which it came out of, or went into; -1 otherwise.
        before: Members of the earlier of the two cones compared: of a split those of `other`; 0 of a birth.
        after: Members of the later: of a merge those of `other`; 0 of a death.
        shared: Members that these two have in common.
    """

    step: int
    kind: str
    lineage: int
    other: int
    before: int
    after: int
    shared: int


class Followed(NamedTuple):
    """Covers whose cones know whose successors they are.

    Attributes:
        lineage: The lineage of each example in each cover, the one with most members over all covers being 0; -1 for
            examples without a cone.
        events: What befell them, in the order of covers. Every lineage begins with a birth or a split, and ends with a
            merge or a death, at the first cover that it is missing from for good, unless it is there at the end.
    """

    lineage: Int[np.ndarray, "t n"]
    events: list[Event]


def at_least(cone: Int[np.ndarray, " n"], smallest: int) -> Int[np.ndarray, " n"]:
    """Take the cones of fewer members out of a cover whose cones are numbered by size.

    Example:
        >>> at_least(np.array([0, 1, 0, -1]), 2)
        array([ 0, -1,  0, -1])
    """
    sizes = np.bincount(cone[cone >= 0], minlength=1)
    return np.where((cone >= 0) & (sizes[cone] >= smallest), cone, -1)


def overlaps(before: Int[np.ndarray, " n"], after: Int[np.ndarray, " n"]) -> Pairs:
    """Count the members that groups of one division share with those of another, for the pairs that share any.

    Returns:
        The group of either division, and the number shared, sorted by the first and then the second.

    Example:
        >>> overlaps(np.array([0, 0, 1, -1]), np.array([0, 0, 0, 0]))
        (array([0, 1]), array([0, 0]), array([2, 1]))
    """
    both = (before >= 0) & (after >= 0)
    width = int(after.max(initial=-1)) + 1
    pair, shared = np.unique(before[both].astype(np.int64) * width + after[both], return_counts=True)
    one, other = np.divmod(pair, max(width, 1))
    return one, other, shared


def link(before: Int[np.ndarray, " n"], after: Int[np.ndarray, " n"]) -> Cones:
    """Find which cone of the cover before each cone of a cover continues.

    Of all ways to give every cone at most one predecessor and one successor, with a Jaccard index of at least
    `LEAST_SHARED` each, the one with the largest sum of Jaccard indices. A cone has at most three such candidates,
    whatever their sizes, so that time is linear in the number of cones.

    Args:
        before: The earlier cover.
        after: The later cover, of the same examples.

    Returns:
        For each cone of the later cover, the cone of the earlier one, or -1.

    Example:
        >>> link(np.array([0, 0, 0, 1, 1]), np.array([1, 1, 0, 0, 0]))
        array([1, 0])
    """
    return _match(overlaps(before, after), _sizes(before), _sizes(after))


def _match(pairs: Pairs, sizes_before: Int[np.ndarray, " group"], sizes: Int[np.ndarray, " cone"]) -> Cones:
    """Link cones with earlier groups, which may overlap, as `link` does."""
    # A third of a second to import, which few need.
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    one, other, shared = pairs
    jaccard = shared / (sizes_before[one] + sizes[other] - shared)
    near = jaccard >= LEAST_SHARED
    one, other, jaccard = one[near], other[near], jaccard[near]
    found = np.full(len(sizes), -1)
    if not len(one):
        return found
    # SciPy matches every row. So each has a column of its own too, of weight 1, where a match with a cone weighs one
    # more than its Jaccard index: the largest sum is then that of the Jaccard indices, and the number of rows.
    cones, count = np.arange(len(sizes)), len(sizes_before)
    places = np.append(other, cones), np.append(one, count + cones)
    values = np.append(1 + jaccard, np.ones(len(cones)))
    weights = csr_array((values, places), shape=(len(cones), count + len(cones)))
    rows, columns = min_weight_full_bipartite_matching(weights, maximize=True)
    real = columns < count
    found[rows[real]] = columns[real]
    return found


def follow(covers: Iterable[Int[np.ndarray, " n"]], patience: int = PATIENCE) -> Followed:
    """Follow cones through covers of the same examples, one after the other; linear in their number.

    Each cover is linked, as by `link`, with the cones at which the lineages were seen last.

    Args:
        covers: The covers.
        patience: In how many covers in a row a lineage may be missing without having ended.

    Example:
        >>> found = follow([np.array([0, 0, 0, 0, 0]), np.array([0, 0, 0, 1, 1]), np.array([-1, -1, -1, 0, 0])])
        >>> found.lineage
        array([[ 0,  0,  0,  0,  0],
               [ 0,  0,  0,  1,  1],
               [-1, -1, -1,  1,  1]])
        >>> [(event.step, event.kind, event.lineage) for event in found.events]
        [(0, 'birth', 0), (1, 'shrinkage', 0), (1, 'split', 1), (2, 'death', 0)]
    """
    count, rows = 0, []
    events: list[Event] = []
    missing: dict[int, Event] = {}  # how each lineage ended that was not seen again so far
    fronts: dict[int, Int[np.ndarray, " _"]] = {}  # members of each lineage where it was seen last
    for step, cover in enumerate(covers):
        fronts = {
            name: members
            for name, members in fronts.items()
            if name not in missing or step - missing[name].step <= patience
        }
        names, members = np.array([*fronts], int), np.concatenate([*fronts.values(), np.empty(0, int)])
        sizes = np.array([*map(len, fronts.values())], int), _sizes(cover)
        pairs = overlaps(np.repeat(np.arange(len(names)), sizes[0]), cover[members])
        parent = _match(pairs, *sizes)
        of_cone = np.where(parent >= 0, np.append(names, -1)[parent], -1)
        born = np.flatnonzero(parent < 0)
        of_cone[born] = count + np.arange(len(born))
        count += len(born)
        here = _events(step, names, of_cone, parent, pairs, *sizes)
        events += [event for event in here if event.kind not in ENDS]
        ends = {event.lineage: event for event in here if event.kind in ENDS}
        missing = {name: event for name, event in (ends | missing).items() if name not in of_cone}
        fronts |= {name: np.flatnonzero(cover == cone) for cone, name in enumerate(of_cone.tolist())}
        rows.append(np.append(of_cone, -1)[cover])
    events = sorted([*events, *missing.values()], key=lambda event: (event.step, event.kind in ENDS, event.lineage))
    return _largest_first(np.array(rows), events, count)


def _sizes(cover: Int[np.ndarray, " n"]) -> Int[np.ndarray, " cone"]:
    return np.bincount(cover[cover >= 0])


def _events(
    step: int,
    old: Int[np.ndarray, " group"],
    new: Cones,
    parent: Cones,
    pairs: Pairs,
    sizes_before: Int[np.ndarray, " group"],
    sizes: Cones,
) -> list[Event]:
    """Tell what befell lineages `old`, as they were seen last, in a cover whose cones are of the lineages `new`."""
    one, other, shared = pairs
    in_common = dict(zip(zip(one.tolist(), other.tolist(), strict=True), shared.tolist(), strict=True))
    source, sink = _largest(other, one, shared, len(sizes)), _largest(one, other, shared, len(old))
    events = []
    for cone, (size, lineage, came) in enumerate(zip(sizes.tolist(), new.tolist(), parent.tolist(), strict=True)):
        origin = came if came >= 0 else int(source[cone])
        was, both = (int(sizes_before[origin]), in_common[origin, cone]) if origin >= 0 else (0, 0)
        if origin < 0 or (came < 0 and both < MOST * size):
            events.append(Event(step, "birth", lineage, -1, 0, size, 0))
        elif came < 0:
            events.append(Event(step, "split", lineage, int(old[origin]), was, size, both))
        elif max(size / was, was / size) >= CHANGED:
            events.append(Event(step, "growth" if size > was else "shrinkage", lineage, -1, was, size, both))
    for cone in np.setdiff1d(np.arange(len(old)), parent).tolist():
        went, was = int(sink[cone]), int(sizes_before[cone])
        both = in_common[cone, went] if went >= 0 else 0
        if both >= MOST * was:
            events.append(Event(step, "merge", int(old[cone]), int(new[went]), was, int(sizes[went]), both))
        else:
            events.append(Event(step, "death", int(old[cone]), -1, was, 0, 0))
    return events


def _largest(
    of: Int[np.ndarray, " pair"], among: Int[np.ndarray, " pair"], shared: Int[np.ndarray, " pair"], count: int
) -> Int[np.ndarray, " group"]:
    """Find for each group the one that shares most members with it; -1 if none does. Of equals, the lowest number."""
    found = np.full(count, -1)
    order = np.lexsort((-among, shared))
    found[of[order]] = among[order]  # the last one stays
    return found


def _largest_first(lineage: Int[np.ndarray, "t n"], events: Sequence[Event], count: int) -> Followed:
    """Number lineages by their members over all covers, and by birth where these are equal."""
    rank = np.empty(count, int)
    rank[np.argsort(-np.bincount(lineage[lineage >= 0], minlength=count), kind="stable")] = np.arange(count)
    named = np.append(rank, -1)
    renamed = [event._replace(lineage=int(named[event.lineage]), other=int(named[event.other])) for event in events]
    return Followed(named[lineage], renamed)


def shuffled(
    cover: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], rng: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """Draw groups at random that have the sizes and the labels of the cones of a cover, among the examples in cones.

    All groups at once, no example in two: within each label, examples in cones change places. That they are in some
    cone, and of that label, is so kept; which others they are with is left to chance.

    Args:
        cover: The cover.
        labels: The label of each example.
        rng: Source of chance.
    """
    drawn = cover.copy()
    covered = np.flatnonzero(cover >= 0)
    for label in np.unique(labels[covered]):
        here = covered[labels[covered] == label]
        drawn[here] = cover[rng.permutation(here)]
    return drawn


def together(groups: Int[np.ndarray, " n"], cover: Int[np.ndarray, " n"]) -> Float[np.ndarray, " group"]:
    """Compute which share of each group's members are in one cone of a cover: in that which has most of them.

    Example:
        >>> together(np.array([0, 0, 0, 1]), np.array([0, 1, 1, -1]))
        array([0.66666667, 0.        ])
    """
    sizes = _sizes(groups)
    one, _, shared = overlaps(groups, cover)
    most = np.zeros(len(sizes))
    np.maximum.at(most, one, shared)
    return most / sizes


def half_life(lifetime: Float[np.ndarray, " m"], ended: Bool[np.ndarray, " m"]) -> float:
    """Estimate the median lifetime where some have not ended when they are last seen.

    The first time that at most half outlive, by the estimate of Kaplan and Meier, "Nonparametric Estimation from
    Incomplete Observations" (1958).

    Args:
        lifetime: For how long each was seen.
        ended: Whether it ended then; if not, it lived at least so long.

    Returns:
        The median, infinite if more than half outlive all that was seen; NaN of none.

    Example:
        >>> half_life(np.array([1.0, 2.0, 2.0, 3.0]), np.array([True, False, True, True]))
        2.0
    """
    times, place = np.unique(lifetime, return_inverse=True)
    leaving, ends = (np.bincount(place[of], minlength=len(times)) for of in (slice(None), ended))
    return float(half_lives(times, leaving, ends))


def half_lives(
    times: Float[np.ndarray, " time"], leaving: Int[np.ndarray, "*of time"], ends: Int[np.ndarray, "*of time"]
) -> Float[np.ndarray, "*of"]:
    """Estimate the median lifetimes of several sets, as `half_life` does, from counts.

    Args:
        times: Lifetimes, ascending.
        leaving: How many of each set were seen for so long.
        ends: How many of these ended then.
    """
    watched = leaving[..., ::-1].cumsum(axis=-1)[..., ::-1]
    outlived = np.cumprod(1 - ends / np.maximum(watched, 1), axis=-1)
    before = np.count_nonzero(outlived > 0.5 + 1e-9, axis=-1)
    return np.where(leaving.sum(axis=-1) > 0, np.append(times, np.inf)[before], np.nan)
