"""The text about lineages on the page."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from train_dynamics.config import pluralise
from train_dynamics.recording.reader import Recording
from train_dynamics.report.sections import LISTED, Picture, Section, sketch_words
from train_dynamics.study.lineages import MOST_FOLLOWED, Estimate, Lineages, Persistence
from train_dynamics.study.tables import label_counts


def lineages_section(
    recording: Recording,
    smallest: int,
    seed: int,
    found: Sequence[Lineages],
    beside_chance: Sequence[Persistence],
    pictures: Sequence[Picture],
) -> Section:
    """Write the section on how cones live, with a table of the largest lineages of a seed.

    Args:
        recording: The recording.
        smallest: Fewest members of a cone that is followed.
        seed: The seed that is shown.
        found: The lineages of all seeds and layers.
        beside_chance: How long they last, compared with chance, for each layer.
        pictures: The figures.
    """
    times, count = found[0].iterations, len(recording.labels)
    words = (
        f"Do the same groups stay together? Cones of at least {pluralise(smallest, 'example')} were looked for at "
        f"{pluralise(len(times), 'record')} of each seed, and each cover linked with those before it by shared "
        "members. A lineage is a cone that is found again; it may be missing from up to two covers in a row. "
    )
    if count > MOST_FOLLOWED:
        words += f"{MOST_FOLLOWED:,} of {count:,} examples were drawn at random and followed. "
    words += " ".join(_layer_words(recording, [x for x in found if x.layer == of.layer], of) for of in beside_chance)
    words += (
        " Lifetimes depend on the distance between covers, because greedy covers differ even from one update to the "
        "next, most in small cones; the share of members that are together does not. Random groups have the "
        f"same sizes{' and labels' if recording.contents.classes else ''}, and are drawn from all examples in cones at "
        "the same cover. cone_lineages.csv has every lineage at every cover, cone_events.csv its events, "
        "lineage_persistence.csv how far cones are together later, lineage_continuity.csv how many the next cover has."
    )
    words += sketch_words(recording)
    rows = [row for one in found if one.seed == seed for row in _rows(recording, one)]
    names = ("layer", "lineage", "first at", "last at", "largest", "label:count when largest", "began by", "ended by")
    if not recording.contents.classes:
        rows = [(*row[:5], *row[6:]) for row in rows]
        names = (*names[:5], *names[6:])
    table = {name: [row[k] for row in rows] for k, name in enumerate(names)} if rows else {}
    title = f"The largest lineages of seed {seed}" if rows else ""
    return Section("Lineages of cones", words, pictures=pictures, table=table, table_title=title)


def _layer_words(recording: Recording, found: Sequence[Lineages], of: Persistence) -> str:
    """Describe how many lineages a layer has, what happened to them, and how long they and their members last."""
    total = sum(one.count for one in found)
    if not total:
        return f"In {of.layer} there is no such cone."
    kinds = Counter(event.kind for one in found for event in one.events)
    events = ", ".join(pluralise(kinds[kind], kind) for kind in ("birth", "split", "merge", "death") if kinds[kind])
    seeds = pluralise(len(found), "seed")
    lag = len(of.groups) - 1
    after = f"{pluralise(int(of.updates[lag]), 'update')}" if of.updates is not None else pluralise(lag, "cover")
    return (
        f"In {of.layer}, {pluralise(total, 'lineage')} of {seeds}: {events}. Half of them live for "
        f"{_updates(of.lifetime)}; half of the cones at any one cover belong to lineages that live for "
        f"{_updates(of.lifetime_of_cones)}. The median cone stays together for "
        f"{_updates(of.stayed)}, the median random group for {_updates(of.stayed_by_chance)}; {after} later, "
        f"{of.together[lag]:.0%} of a cone's members are in one cone, and {of.by_chance[lag]:.0%} of a random "
        "group's."
    )


def _updates(found: Estimate) -> str:
    """Write a median with its interval."""
    value = "longer than it was watched" if np.isinf(found.value) else pluralise(int(found.value), "update")
    if found.low is None:
        return value
    low, high = ("more" if np.isinf(end) else f"{end:,.0f}" for end in (found.low, found.high))
    return f"{value} (95 % over seeds: {low} to {high})"


def _rows(recording: Recording, one: Lineages) -> list[tuple[str, ...]]:
    """Describe the largest lineages."""
    first, last = one.span()
    began = {event.lineage: event for event in one.events if event.kind in ("birth", "split")}
    ended = {event.lineage: event for event in one.events if event.kind in ("merge", "death")}
    rows = []
    for k in range(min(LISTED, one.count)):
        fullest = one.sizes[:, k].argmax()
        ends = ended.get(k)
        rows.append(
            (
                one.layer,
                str(k),
                f"{one.iterations[first[k]]:,}",
                f"{one.iterations[last[k]]:,}",
                f"{one.sizes[fullest, k]:,}",
                label_counts(recording, np.flatnonzero(one.lineage[fullest] == k)),
                "birth" if began[k].kind == "birth" else f"split from {began[k].other}",
                "" if ends is None else "death" if ends.kind == "death" else f"merge into {ends.other}",
            )
        )
    return rows
