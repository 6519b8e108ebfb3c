"""How often an example is forgotten, and when it is first learned.

Toneva et al., "An Empirical Study of Example Forgetting during Deep Neural Network Learning" (2019). As published, an
example is checked when it is presented, that is, when it is in a batch, just before the update. This happens once an
epoch, with the network that the update starts from. Under other names, the same is counted here at every record,
because between two presentations an example can be forgotten and learned again unseen. Checked against the code that
the authors published. From that code also comes the count for an example that is never learned: as many forgetting
events as presentations, more than any other example can have, instead of infinitely many. The paper leaves open when
such an example is first right; we use the number of presentations. In the table's plain count `forgotten`, an example
that is always wrong has no event.
"""

import numpy as np
from jaxtyping import Float, Int

from train_dynamics.dynamics.forgetting import Forgetting
from train_dynamics.dynamics.scores.score import Records, StreamedScore, Study

SOURCE = 'Toneva et al., "An Empirical Study of Example Forgetting during Deep Neural Network Learning" (2019)'
NEVER = np.iinfo(np.int64).max


class _InBatch:
    """Checks an example when it is in a batch. A last column stands for the padding of short batches."""

    def __init__(self, study: Study) -> None:
        shape = (study.num_seeds, study.num_examples + 1)
        self.before = np.zeros(shape, bool)
        self.presentations, self.events, self.first = (np.zeros(shape, np.int64) for _ in range(3))
        self.first[:] = NEVER
        self._seeds = np.arange(study.num_seeds)[:, None]
        self._epoch = study.epoch

    def add(self, records: Records) -> None:
        """Take in the next records."""
        epoch = records.iterations // self._epoch
        for part in (np.flatnonzero(epoch == k) for k in np.unique(epoch)):  # in which an example is in one batch only
            batch = records.batch[:, part]
            correct = np.take_along_axis(records.correct[:, part], batch.clip(0), axis=2).reshape(len(batch), -1)
            here = (self._seeds, batch.reshape(len(batch), -1))
            self.events[here] += self.before[here] & ~correct
            self.first[here] = np.where(
                correct, np.minimum(self.first[here], self.presentations[here]), self.first[here]
            )
            self.before[here] = correct
            self.presentations[here] += 1


class ForgettingInBatch(_InBatch):
    """Counts how often an example is wrong when presented, after it was right at the presentation before."""

    def value(self) -> Float[np.ndarray, "s n"]:
        """Return the events so far; the number of presentations if it was never right; NaN if never presented."""
        return _events(self.events, self.first, self.presentations)[:, :-1]


class FirstLearnedInBatch(_InBatch):
    """Counts an example's presentations before the first at which it is right."""

    def value(self) -> Float[np.ndarray, "s n"]:
        """Return that number; the number of presentations if it was never right; NaN if never presented."""
        return _first(self.first, self.presentations)[:, :-1]


class Followed:
    """Follows whether examples are right through all records."""

    def __init__(self, study: Study) -> None:
        self.found = Forgetting(study.num_seeds, study.num_examples)
        self.records = 0

    def add(self, records: Records) -> None:
        """Take in the next records."""
        self.found.add(records.correct, records.iterations)
        self.records += len(records.iterations)


class ForgettingEveryRecord(Followed):
    """Counts how often an example is wrong at a record, after it was right at the record before."""

    def value(self) -> Float[np.ndarray, "s n"]:
        """Return the events so far; the number of records if the example was never right."""
        return np.where(self.found.ever_correct, self.found.forgotten, self.records).astype(np.float64)


class FirstCorrect(Followed):
    """Finds the iteration of the first record at which an example is right."""

    def value(self) -> Float[np.ndarray, "s n"]:
        """Return that iteration; the one after the last record if the example was never right."""
        return self.found.first_correct.astype(np.float64)


def _events(
    events: Int[np.ndarray, "s n"], first: Int[np.ndarray, "s n"], presentations: Int[np.ndarray, "s n"]
) -> Float[np.ndarray, "s n"]:
    return np.where(presentations > 0, np.where(first == NEVER, presentations, events), np.nan)


def _first(first: Int[np.ndarray, "s n"], presentations: Int[np.ndarray, "s n"]) -> Float[np.ndarray, "s n"]:
    return np.where(presentations > 0, np.minimum(first, presentations), np.nan)


def _needs(study: Study) -> str:
    if study.of_loop:
        return "needs the examples of each batch, which a recording of your own training loop does not store"
    return "" if study.all_recorded else "batches can only be looked at if every iteration is recorded"


FORGETTING_IN_BATCH = StreamedScore(
    name="forgetting_in_batch",
    hard="high",
    unit="events",
    formula="how often wrong in a batch after right in its previous one; the number of its batches if never right",
    source=SOURCE,
    needs=_needs,
    start=ForgettingInBatch,
)
# Not the column `forgotten`, in which an example that is never right counts 0.
FORGETTING_EVERY_RECORD = StreamedScore(
    name="forgetting_every_record",
    hard="high",
    unit="events",
    formula="how often it is wrong at a record after right at the one before; the number of records if never right",
    source=SOURCE + ", but at every record",
    start=ForgettingEveryRecord,
)
FIRST_LEARNED_IN_BATCH = StreamedScore(
    name="first_learned_in_batch",
    hard="high",
    unit="presentations",
    formula="number of batches that hold it before the first in which it is right; all of them if never right",
    source=SOURCE,
    needs=_needs,
    start=FirstLearnedInBatch,
)
# Not `learned_for_good`: later mistakes do not count.
FIRST_CORRECT = StreamedScore(
    name="first_correct",
    hard="high",
    unit="updates",
    formula="iteration of the first record at which it is right; one past the last record if never right",
    source=SOURCE + ", but at every record",
    start=FirstCorrect,
)
