"""From when on the prediction stays: the iteration learned.

Baldock, Maennel and Neyshabur, "Deep Learning Through the Lens of Example Difficulty" (2021): the iteration from which on
the prediction is the final one. That is the *network's* final prediction and not the label: an example that is wrong from
the first update to the last is learned at once. The other reading, from when on the prediction is the label, is here
under a name of its own. Not checked against the published text.
"""

import numpy as np
from jaxtyping import Float

from train_dynamics.dynamics.scores.score import Records, StreamedScore, Study

SOURCE = 'Baldock, Maennel and Neyshabur, "Deep Learning Through the Lens of Example Difficulty" (2021)'


class IterationLearned:
    """Finds the record from which on the prediction stays what it is at the last one."""

    def __init__(self, study: Study) -> None:
        shape = (study.num_seeds, study.num_examples)
        self._prediction = np.full(shape, -1)
        self._since = np.full(shape, np.nan)

    def add(self, records: Records) -> None:
        """Take in the next records."""
        for t, iteration in enumerate(records.iterations):
            now = records.prediction[:, t]
            np.copyto(self._since, iteration, where=now != self._prediction)
            self._prediction = now

    def value(self) -> Float[np.ndarray, "s n"]:
        """Give the iteration of that record."""
        return self._since.copy()


class LearnedForGood:
    """Finds the record from which on the prediction is the label."""

    def __init__(self, study: Study) -> None:
        self._after = np.zeros((study.num_seeds, study.num_examples))
        self._following = dict(zip(study.iterations[:-1].tolist(), study.iterations[1:].tolist(), strict=True))

    def add(self, records: Records) -> None:
        """Take in the next records."""
        for t, iteration in enumerate(records.iterations.tolist()):
            np.copyto(self._after, self._following.get(iteration, iteration + 1), where=~records.correct[:, t])

    def value(self) -> Float[np.ndarray, "s n"]:
        """Give the iteration of that record; a later one than there is if the example is wrong at the last."""
        return self._after.copy()


# Not `learned_for_good`: what stays wrong is learned too.
ITERATION_LEARNED = StreamedScore(
    name="iteration_learned",
    hard="high",
    unit="updates",
    formula="iteration of the first record from which on the prediction is the final one",
    source=SOURCE,
    start=IterationLearned,
)
# Not `first_correct`, after which mistakes may come. One record after the column `last_mistake`.
LEARNED_FOR_GOOD = StreamedScore(
    name="learned_for_good",
    hard="high",
    unit="updates",
    formula="iteration of the first record from which on the prediction is the label; one after the last if never",
    source=SOURCE + ", of the label instead of the final prediction",
    start=LearnedForGood,
)
