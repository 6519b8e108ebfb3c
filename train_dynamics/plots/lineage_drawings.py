"""Figures of lineages, each with the words that go with it."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from train_dynamics.config import pluralise
from train_dynamics.data.showing import has_pictures, shown
from train_dynamics.dynamics.lineages import overlaps
from train_dynamics.plots import lineages as plots
from train_dynamics.plots.figures import Drawing
from train_dynamics.recording.reader import Recording
from train_dynamics.study.lineages import Lineages, Persistence, mean_over_seeds
from train_dynamics.study.results import metric_name

FEWEST = 5  # examples that are drawn on their way from one lineage to another


def lineage_drawings(
    recording: Recording, found: Sequence[Lineages], persistence: Sequence[Persistence], seed: int
) -> Iterator[Drawing]:
    """Draw the largest lineages of a seed in each layer, and how long the groups of all seeds stay together."""
    for of_layer in persistence:
        one, *_ = (one for one in found if (one.seed, one.layer) == (seed, of_layer.layer))
        if one.count:
            yield _alluvial(recording, one)
            if len(one.iterations) > 1:
                yield _persistence(recording, [one for one in found if one.layer == of_layer.layer], of_layer)


def _alluvial(recording: Recording, one: Lineages) -> Drawing:
    """Draw the largest lineages, those of one label beside each other."""
    labels, names = recording.classes
    sizes, largest = one.sizes, range(min(one.count, len(plots.COLORS)))
    counts = [
        np.bincount(np.tile(labels, (len(one.lineage), 1))[one.lineage == k], minlength=len(names)) for k in largest
    ]
    first, last = one.span()
    order = sorted(largest, key=lambda k: (counts[k].argmax(), first[k], k))
    bands = []
    for k in order:
        steps, share = np.flatnonzero(sizes[:, k]), counts[k].max() / counts[k].sum()
        of_label = f"label {names[counts[k].argmax()]}" + ("" if share > 0.995 else f" ({share:.0%})")
        words = f"{k}" + (f": {of_label}" if recording.contents.classes else "")
        ends = (np.flatnonzero(one.lineage[step[k]] == k) for step in (first, last))
        bands.append(plots.Band(k, words, steps, sizes[steps, k], *(_some(recording, members) for members in ends)))
    lanes = {k: lane for lane, k in enumerate(order)}
    where = f"{one.layer}, seed {one.seed}"
    return Drawing(
        metric_name(recording.layers, one.layer, "cone_lineages").replace("/", "_"),
        f"What becomes of the {len(bands)} largest groups of {where}",
        "A band is a lineage: a cone that is found again, cover after cover, by its members. It is as thick as it has "
        f"members, and {'some of these are shown' if has_pictures(recording.data) else 'one of these is shown'} where "
        "it is born, on its left, and where it is seen last, on its right; they need not be the same ones. It is pale "
        f"where it is missing from a cover. Threads are members that go from one to another, {FEWEST} or more; most "
        "that leave go to smaller cones, or to none. Look what the members at both ends have in common, and when "
        "most are born and end.",
        plots.alluvial(
            one.iterations, bands, _flows(one, lanes), f"The {len(bands)} largest lineages of cones of {where}"
        ),
    )


def _flows(one: Lineages, lanes: dict[int, int]) -> list[plots.Flow]:
    """List which examples go from one drawn lineage to another, from a cover to the next."""
    lane, found = np.full(one.count + 1, -1), []
    lane[list(lanes)] = list(lanes.values())
    for step, (before, after) in enumerate(itertools.pairwise(lane[one.lineage])):
        for source, target, shared in zip(*overlaps(before, after), strict=True):
            if source != target and shared >= FEWEST:
                found.append(plots.Flow(int(source), int(target), step, int(shared)))
    return found


def _some(recording: Recording, members: Int[np.ndarray, " m"]) -> list[str] | np.ndarray:
    picked = np.unique(np.linspace(0, len(members) - 1, plots.PICTURES).astype(int))
    return shown(recording.data, members[picked])


def _persistence(recording: Recording, found: Sequence[Lineages], one: Persistence) -> Drawing:
    """Draw how long groups stay together, beside groups drawn at random."""
    seeds = f"{pluralise(len(found), 'seed')}"
    label, lags = "updates later", one.updates
    if lags is None:
        label, lags = "covers later", np.arange(len(one.groups))
    alike = "sizes and labels" if recording.contents.classes else "sizes"
    band = " Bands are 95 % intervals over seeds." if len(found) > 1 else ""
    return Drawing(
        metric_name(recording.layers, one.layer, "lineage_persistence").replace("/", "_"),
        f"How long groups stay together in {one.layer}, beside groups drawn at random",
        "Left: of the members of a cone, the share that are in one cone later, whichever it is. "
        f"Right: the share of the cones that the next cover continues. Dashed, the same of groups of the same {alike} "
        "drawn at random among all examples that were in cones: where the two lines meet, to have been in one cone "
        f"says no more than the {'label' if recording.contents.classes else 'size'}.{band}",
        plots.persistence(
            (label, lags, [(one.together, one.interval), (one.by_chance, one.chance_interval)]),
            found[0].iterations[:-1],
            [mean_over_seeds(np.array([getattr(x, of) for x in found])) for of in ("continued", "continued_by_chance")],
            alike,
            f"Cones of {one.layer}, {seeds}",
        ),
    )
