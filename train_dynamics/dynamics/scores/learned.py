"""Iteration learned: from which iteration on the prediction stays the same.

Baldock, Maennel and Neyshabur, "Deep Learning Through the Lens of Example Difficulty" (2021): the iteration from which
on the prediction is the final one. That is the *network's* final prediction and not the label: an example that is wrong
in the same way from the first update to the last is learned at once. The other reading, the iteration from which on the
prediction is the label, has its own name here. Not checked against the published text.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from train_dynamics.dynamics.scores.forgetting import Followed
from train_dynamics.dynamics.scores.score import Records, StreamedScore, Study

SOURCE = 'Baldock, Maennel and Neyshabur, "Deep Learning Through the Lens of Example Difficulty" (2021)'


class IterationLearned:
    """Finds the record from which on the prediction equals that at the last record."""

    def __init__(self, study: Study) -> None:
        self._before = np.full((study.num_seeds, 1, study.num_examples), -1)
        self._since = np.full((study.num_seeds, study.num_examples), np.nan)

    def add(self, records: Records) -> None:
        """Take in the next records."""
        now = records.prediction
        changed = np.concatenate([self._before != now[:, :1], now[:, 1:] != now[:, :-1]], axis=1)
        _put_last(self._since, changed, records.iterations)
        self._before = now[:, -1:]

    def value(self) -> Float[np.ndarray, "s n"]:
        """Return the iteration of that record."""
        return self._since.copy()


class LearnedForGood(Followed):
    """Finds the record from which on the prediction is the label."""

    def __init__(self, study: Study) -> None:
        super().__init__(study)
        self._iterations = np.append(study.iterations, study.iterations[-1] + 1)

    def value(self) -> Float[np.ndarray, "s n"]:
        """Return the iteration of that record; that of the next record if the example is still wrong."""
        after = np.searchsorted(self._iterations, self.found.last_mistake, side="right")
        return self._iterations[after].astype(np.float64)


def _put_last(place: Float[np.ndarray, "s n"], holds: Bool[np.ndarray, "s t n"], values: Int[np.ndarray, " t"]) -> None:
    """Store the value of the last record at which a condition holds, if there is one."""
    last = holds.shape[1] - 1 - holds[:, ::-1].argmax(axis=1)
    np.copyto(place, values[last], where=holds.any(axis=1))


# Not `learned_for_good`: what stays wrong is learned too.
ITERATION_LEARNED = StreamedScore(
    name="iteration_learned",
    hard="high",
    unit="updates",
    formula="iteration of the first record from which on the prediction no longer changes",
    source=SOURCE,
    start=IterationLearned,
)
# Not `first_correct`, after which mistakes may come. One record after the column `last_mistake`.
LEARNED_FOR_GOOD = StreamedScore(
    name="learned_for_good",
    hard="high",
    unit="updates",
    formula="iteration of the first record from which on it stays right; one past the last record if never",
    source=SOURCE + ", of the label instead of the final prediction",
    start=LearnedForGood,
)
