"""Figures of pairs that take turns, or do not, each with the words that go with it."""

from collections.abc import Iterator

from train_dynamics.config import pluralise
from train_dynamics.plots import oscillation as plots
from train_dynamics.plots.figures import Drawing, composition
from train_dynamics.recording.reader import Recording
from train_dynamics.study.oscillation import Oscillation, most_typical, verdicts


def oscillation_drawings(recording: Recording, found: Oscillation) -> Iterator[Drawing]:
    """Draw in how many pairs each step holds, and the pair in which most do. Nothing if there is no pair."""
    k = most_typical(found)
    if k is None:
        return
    shown = [verdict for verdict in verdicts(found, len(recording.seeds)) if verdict.pairs]
    count = max(verdict.pairs for verdict in shown)
    yield Drawing(
        "oscillation_steps",
        "In how many pairs each step of the explanation of oscillation holds",
        "Pale: the share of the pairs of which the sentence is true in itself. Full: the share, of those that can be "
        "compared, of which it is also more true than of matched pairs. At the right the median pair and, in brackets, "
        "the median of matched pairs: where the two are alike, the sentence says nothing of contention.",
        plots.steps(shown, f"The steps of the explanation, in {pluralise(count, 'pair')}"),
    )
    pair, times = found.pairs[k], recording.iterations[list(found.records[k])]
    words = tuple(composition(recording, group) for group in (pair.left, pair.right))
    where = f"{pair.layer}, seed {recording.seeds[pair.seed]}, iterations {times[0]:,} to {times[-1]:,}"
    yield Drawing(
        "oscillation_pair",
        f"Pair {k}: who leads, {words[0]} or {words[1]}; {where}",
        "The pair of which most steps of the explanation hold. The background has the colour of the group that leads: "
        "the mean gradient of all examples points to its side. By the explanation its loss falls while it leads, "
        "that of the other rises, and then the other leads. Look whether the colours change in turns.",
        plots.turns(
            times, found.courses[k], words, f"Pair {k}: {where}", " (nats)" if recording.contents.classes else ""
        ),
    )
