"""Dataset cartography: how confident the network is of the label, how steadily, and how often it is right.

Swayamdipta et al., "Dataset Cartography: Mapping and Diagnosing Datasets with Training Dynamics" (2020): the mean and
standard deviation of the label's probability over the ends of epochs, and the share of epochs whose final prediction is
right. The initialisation does not count. Hard-to-learn examples have a low confidence, and *ambiguous* ones a high
variability. Examples with a low variability are either easy or never learned, so variability alone does not rank by
difficulty; `high` here means ambiguous. Not checked against the published text.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

from train_dynamics.dynamics.scores.score import Records, StreamedScore, Study

SOURCE = 'Swayamdipta et al., "Dataset Cartography: Mapping and Diagnosing Datasets with Training Dynamics" (2020)'


def epoch_ends(study: Study) -> Bool[np.ndarray, " t"]:
    """Find the records that stand for the end of an epoch: the last one up to it, but never the initialisation.

    Example:
        >>> epoch_ends(study)  # with records at 0, 2, 4, 6, 8 and an epoch of 3 updates
        array([False,  True, False,  True, False])
    """
    ends = np.arange(study.epoch, study.iterations[-1] + 1, study.epoch)
    found = np.zeros(len(study.iterations), bool)
    found[np.searchsorted(study.iterations, ends, side="right") - 1] = True
    return found & (study.iterations > 0)


class Cartography:
    """Accumulates the mean and variance of the label's probability over the ends of epochs."""

    def __init__(self, study: Study, statistic: Callable[["Cartography"], Float[np.ndarray, "s n"]]) -> None:
        self._ends = study.iterations[epoch_ends(study)]
        self._statistic = statistic
        self.count = 0
        self.mean, self.squares, self.correct = (np.zeros((study.num_seeds, study.num_examples)) for _ in range(3))

    def add(self, records: Records) -> None:
        """Take in the next records."""
        for t in np.flatnonzero(np.isin(records.iterations, self._ends)):
            probability = np.exp(-records.loss[:, t].astype(np.float64))
            self.count += 1
            self.correct += records.correct[:, t]
            before = probability - self.mean  # Welford's recurrence, which does not cancel
            self.mean += before / self.count
            self.squares += before * (probability - self.mean)

    def value(self) -> Float[np.ndarray, "s n"]:
        """Return the statistic over the epochs so far. NaN before the first has ended."""
        return self._statistic(self) if self.count else np.full_like(self.mean, np.nan)


# Not `confidence`, which is of the likeliest class; `cumulative_confidence` is the same at every record.
CONFIDENCE = StreamedScore(
    name="cartography_confidence",
    hard="low",
    unit="probability",
    formula="mean over the ends of epochs of p of the label",
    source=SOURCE,
    start=lambda study: Cartography(study, lambda found: found.mean.copy()),
)
VARIABILITY = StreamedScore(
    name="cartography_variability",
    hard="high",
    unit="probability",
    formula="standard deviation over the ends of epochs of p of the label",
    source=SOURCE,
    start=lambda study: Cartography(study, lambda found: np.sqrt(found.squares / found.count)),
)
CORRECTNESS = StreamedScore(
    name="cartography_correctness",
    hard="low",
    unit="share",
    formula="share of the ends of epochs at which it is right",
    source=SOURCE,
    start=lambda study: Cartography(study, lambda found: found.correct / found.count),
)
