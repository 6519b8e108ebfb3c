"""The main findings, in a few sentences with numbers, at the top of the page."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from train_dynamics.config import pluralise
from train_dynamics.recording.layers import TOGETHER
from train_dynamics.recording.reader import Recording
from train_dynamics.study.claims import EARLY, LEARNED, reaches
from train_dynamics.study.contention import Contention
from train_dynamics.study.results import NUM_CHUNKS, SHARE, Results, metric_name


def found(recording: Recording, results: Results, contention: Contention | None) -> list[str]:
    """List the main findings: how far training came, in which order, what made up the gradient, and who fights.

    Findings that a recording has no data for are left out.
    """
    return [
        *_learned(recording, results),
        *_order(results),
        *_gradient(recording, results),
        *_fights(contention, recording),
    ]


def _learned(recording: Recording, results: Results) -> Iterator[str]:
    networks = "The network" if len(recording.seeds) == 1 else f"The {len(recording.seeds)} networks"
    last = f"{recording.num_iterations:,}"
    if results.forgetting is None:
        loss = results.curves["loss"][..., 0].mean(axis=0)
        yield f"{networks} brought the mean loss from {loss[0]:.3g} to {loss[-1]:.3g} in {last} updates."
        return
    accuracy = results.curves["accuracy"][..., 0].mean(axis=0)
    half = reaches(accuracy, 0.5)
    when = "" if half is None else f"; half of them were right from update {results.iterations[half]:,} on"
    verb = "classifies" if len(recording.seeds) == 1 else "classify"
    yield (
        f"{networks} {verb} {accuracy[-1]:.1%} of {pluralise(len(recording.labels), 'example')} correctly after {last} "
        f"updates{when}."
    )
    never = int((~results.forgetting.ever_correct).all(axis=0).sum())
    forgotten = (results.forgetting.forgotten > 0).mean()
    by = "" if len(recording.seeds) == 1 else " by any of them"
    yield (
        f"{never:,} {'was' if never == 1 else 'were'} never learned{by}; on average a network forgot "
        f"{forgotten:.1%} of all examples at least once: right at one record, wrong at the next."
    )


def _order(results: Results) -> Iterator[str]:
    if "accuracy" not in results.curves or results.num_chunks < NUM_CHUNKS or results.ranked_by == "cumulative_loss":
        return
    mean = results.curves["accuracy"].mean(axis=0)
    times = [reaches(mean[:, column], LEARNED) for column in (1, NUM_CHUNKS)]
    level = f"{LEARNED:.0%}"
    first, last = (
        f"never reached {level}" if t is None else f"reached {level} at update {results.iterations[t]:,}" for t in times
    )
    yield f"The most typical tenth of them {first}, the least typical {last}."


def _gradient(recording: Recording, results: Results) -> Iterator[str]:
    if results.num_chunks < NUM_CHUNKS or not results.iterations[-1] > EARLY:
        return
    layer = recording.layers[-1]
    of = "all weights together" if layer == TOGETHER else layer
    share = (
        results.curves[metric_name(recording.layers, layer, SHARE)].mean(axis=0)[:, 1 : 1 + NUM_CHUNKS // 2].sum(axis=1)
    )
    early = share[results.iterations < EARLY].mean()
    yield (
        f"The more typical half of the examples made up {early:.0%} of the mean gradient of {of} in the first "
        f"{EARLY} updates, and {share[-1]:.0%} at the end."
    )


def _fights(contention: Contention | None, recording: Recording) -> Iterator[str]:
    if contention is None:
        return
    fights = contention.fights
    if not fights:
        yield "No two groups of examples pulled against each other strongly enough to be called in contention."
        return
    tested = [fight for fight in fights if fight.p is not None]
    more = sum(fight.survives for fight in tested)
    words = f"{pluralise(len(fights), 'pair')} of groups pulled against each other"
    if tested:
        words += f", {more:,} of {len(tested):,} tested more than matched groups do"
    if recording.contents.classes:
        labels, names = recording.classes
        both = Counter(
            tuple(sorted(int(np.bincount(labels[group]).argmax()) for group in (f.pair.left, f.pair.right)))
            for f in fights
        )
        (one, other), count = both.most_common(1)[0]
        words += f"; most often {names[one]} against {names[other]} ({count:,})"
    yield f"{words}."
