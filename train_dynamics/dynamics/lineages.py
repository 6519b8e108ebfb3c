"""Lineages: cones followed from cover to cover, what happens to them, and how far that is not chance.

A cover divides the examples at one moment into cones. A lineage is a cone that is recognised in later covers by its
members. The matching by a smallest Jaccard index, against where each lineage was last seen, and the events are those of
Greene, Doyle and Cunningham, "Tracking the Evolution of Communities in Dynamic Social Networks" (2010). Matching all
cones of a cover at once, one to one, is ours.

Covers are arrays as `cones.clique_cover` returns them: the cone of each example, numbered without gaps, or -1 for none.
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
    """What happened to a lineage between two covers.

    Attributes:
        step: Index of the later cover. The earlier one is where the lineage was last seen.
        kind: `birth`; `split`: a new cone, at least half of whose members come from one cone; `growth` or `shrinkage`
            by half or more; `merge`: an end, where at least half of the members go into one cone; `death`.
        lineage: The lineage.
        other: The lineage that it came from or went into. -1 otherwise.
        before: Members of the earlier of the two cones compared: for a split those of `other`; 0 for a birth.
        after: Members of the later one: for a merge those of `other`; 0 for a death.
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
    """Covers whose cones are linked into lineages.

    Attributes:
        lineage: The lineage of each example in each cover, numbered from 0 for the one with most members over all
            covers; -1 for examples without a cone.
        events: What happened to them, in the order of covers. Every lineage begins with a birth or a split. Unless it
            is there at the end, it ends with a merge or a death, at the first cover from which on it is missing.
    """

    lineage: Int[np.ndarray, "t n"]
    events: list[Event]


def at_least(cone: Int[np.ndarray, " n"], smallest: int) -> Int[np.ndarray, " n"]:
    """Remove the smaller cones from a cover whose cones are numbered by size.

    Example:
        >>> at_least(np.array([0, 1, 0, -1]), 2)
        array([ 0, -1,  0, -1])
    """
    sizes = np.bincount(cone[cone >= 0], minlength=1)
    return np.where((cone >= 0) & (sizes[cone] >= smallest), cone, -1)


def overlaps(before: Int[np.ndarray, " n"], after: Int[np.ndarray, " n"]) -> Pairs:
    """Count the members shared by each pair of groups from two divisions, for pairs that share any.

    Returns:
        The group in either division, and the number shared, sorted by the first group and then the second.

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
    """Find which cone of the previous cover each cone continues.

    Every cone has at most one predecessor and one successor, with a Jaccard index of at least `LEAST_SHARED`. Of all
    such assignments it takes the one with the largest sum of Jaccard indices. A cone has at most three candidates,
    whatever its size, so time is linear in the number of cones.

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
    """Link cones with earlier groups, which may overlap, like `link`."""
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
    """Follow cones through successive covers of the same examples. Time is linear in the number of covers.

    Each cover is linked, by `link`, with the cones at which the lineages were last seen.

    Args:
        covers: The covers.
        patience: How many covers in a row a lineage may be missing before it counts as ended.

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
    """Find what happened to lineages `old`, as last seen, in a cover whose cones belong to the lineages `new`."""
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
    """Find for each group the one that shares most members with it. -1 if none does. Ties go to the lowest number."""
    found = np.full(count, -1)
    order = np.lexsort((-among, shared))
    found[of[order]] = among[order]  # the last one stays
    return found


def _largest_first(lineage: Int[np.ndarray, "t n"], events: Sequence[Event], count: int) -> Followed:
    """Number lineages by their members over all covers, and by birth if these are equal."""
    rank = np.empty(count, int)
    rank[np.argsort(-np.bincount(lineage[lineage >= 0], minlength=count), kind="stable")] = np.arange(count)
    named = np.append(rank, -1)
    renamed = [event._replace(lineage=int(named[event.lineage]), other=int(named[event.other])) for event in events]
    return Followed(named[lineage], renamed)


def shuffled(
    cover: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], rng: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """Draw random groups with the sizes and labels of a cover's cones, from the examples that are in cones.

    Within each label, the examples in cones swap places, so that no example is in two groups. Whether an example is in
    a cone, and the labels of each cone, stay the same; which others it is with is random.

    Args:
        cover: The cover.
        labels: The label of each example.
        rng: Random generator.
    """
    drawn = cover.copy()
    covered = np.flatnonzero(cover >= 0)
    for label in np.unique(labels[covered]):
        here = covered[labels[covered] == label]
        drawn[here] = cover[rng.permutation(here)]
    return drawn


def together(groups: Int[np.ndarray, " n"], cover: Int[np.ndarray, " n"]) -> Float[np.ndarray, " group"]:
    """Compute which share of each group's members is in the same cone of a cover: the cone with most of them.

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
    """Estimate the median lifetime if some have not ended when last seen.

    It is the first time that at most half survive, by the estimate of Kaplan and Meier, "Nonparametric Estimation from
    Incomplete Observations" (1958).

    Args:
        lifetime: How long each was seen.
        ended: Whether it ended then. If not, it lived at least that long.

    Returns:
        The median. Infinite if more than half survive everything seen; NaN if there are none.

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
    """Estimate the median lifetimes of several sets, like `half_life`, from counts.

    Args:
        times: Lifetimes, ascending.
        leaving: How many of each set were seen for exactly this long.
        ends: How many of these ended then.
    """
    watched = leaving[..., ::-1].cumsum(axis=-1)[..., ::-1]
    outlived = np.cumprod(1 - ends / np.maximum(watched, 1), axis=-1)
    before = np.count_nonzero(outlived > 0.5 + 1e-9, axis=-1)
    return np.where(leaving.sum(axis=-1) > 0, np.append(times, np.inf)[before], np.nan)
