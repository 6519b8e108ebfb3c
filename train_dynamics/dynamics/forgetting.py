"""When an example is learned, for the first time and for good, and how often it is forgotten."""

import numpy as np
from jaxtyping import Bool, Float, Int


class Forgetting:
    """Follows the correctness of every example through the records, a block at a time.

    Blocks must come in order and without gaps.

    Attributes:
        first_correct: First iteration at which an example is classified correctly, in updates; later mistakes do not
            reset it. The number of records if there is none, so that sorting is total.
        last_mistake: Last iteration at which it is wrong; -1 if there is none.
        forgotten: How many times it goes from correct to wrong from one iteration to the next: the forgetting events of
            Toneva et al., "An Empirical Study of Example Forgetting" (2019), but counted at every iteration and not
            only when the example is in the batch.

    Example:
        >>> found = Forgetting(num_seeds=1, num_examples=2)
        >>> found.add(np.array([[[False, True], [True, False], [False, True]]]))
        >>> found.first_correct, found.last_mistake, found.forgotten
        (array([[1, 0]]), array([[2, 1]]), array([[1, 1]]))
    """

    def __init__(self, num_seeds: int, num_examples: int) -> None:
        self.num_records = 0
        self.last_mistake = np.full((num_seeds, num_examples), -1)
        self.forgotten = np.zeros((num_seeds, num_examples), np.int64)
        self._first_correct = np.full((num_seeds, num_examples), np.iinfo(np.int64).max)
        self._before: Bool[np.ndarray, "s n"] = np.zeros((num_seeds, num_examples), bool)

    @property
    def first_correct(self) -> Int[np.ndarray, "s n"]:
        """First iteration at which each example is correct; the number of records if there is none."""
        return np.minimum(self._first_correct, self.num_records)

    def add(self, correct: Bool[np.ndarray, "s t n"]) -> None:
        """Take in the next records."""
        if not correct.shape[1]:
            return
        length = correct.shape[1]
        first = np.where(correct.any(axis=1), correct.argmax(axis=1) + self.num_records, np.iinfo(np.int64).max)
        self._first_correct = np.minimum(self._first_correct, first)
        last = self.num_records + length - 1 - (~correct[:, ::-1]).argmax(axis=1)
        self.last_mistake = np.where(correct.all(axis=1), self.last_mistake, last)
        self.forgotten += self._before & ~correct[:, 0]
        self.forgotten += np.count_nonzero(correct[:, :-1] & ~correct[:, 1:], axis=1)
        self._before = correct[:, -1]
        self.num_records += length


def first_correct_curve(first_correct: Int[np.ndarray, "s n"], num_records: int) -> Float[np.ndarray, "s t"]:
    """Compute the share of examples that have been correct at least once up to and including iteration t (FC).

    Example:
        >>> first_correct_curve(np.array([[1, 0, 3]]), num_records=3)
        array([[0.33333333, 0.66666667, 0.66666667]])
    """
    return np.stack([_counts(row, num_records).cumsum() for row in first_correct]) / first_correct.shape[1]


def last_mistake_curve(last_mistake: Int[np.ndarray, "s n"], num_records: int) -> Float[np.ndarray, "s t"]:
    """Compute the share of examples that are never wrong from iteration t on (LM).

    Example:
        >>> last_mistake_curve(np.array([[-1, 1, 2]]), num_records=3)
        array([[0.33333333, 0.33333333, 0.66666667]])
    """
    # Never wrong from t on: the last mistake is before t, that is its successor is at most t.
    return first_correct_curve(last_mistake + 1, num_records)


def _counts(iterations: Int[np.ndarray, " n"], num_records: int) -> Int[np.ndarray, " t"]:
    return np.bincount(iterations[iterations < num_records], minlength=num_records)
