"""When an example is learned, first and for good, and how often it is forgotten."""

import numpy as np
from jaxtyping import Bool, Float, Int


class Forgetting:
    """Follows whether each example is correct, record by record, one block at a time.

    Blocks must come in order and without gaps. Changes between two records are not seen.

    Attributes:
        first_correct: First iteration at which an example is classified correctly, in updates. Later mistakes do not
            reset it. If there is none: the iteration after the last record, so that sorting is total.
        last_mistake: Last iteration at which it is wrong. -1 if there is none.
        forgotten: How many times it goes from correct to wrong between two records: the forgetting events of Toneva et
            al., "An Empirical Study of Example Forgetting" (2019), but counted at every record and not only when the
            example is in the batch.

    Example:
        >>> found = Forgetting(num_seeds=1, num_examples=2)
        >>> found.add(np.array([[[False, True], [True, False], [False, True]]]), iterations=np.arange(3))
        >>> found.first_correct, found.last_mistake, found.forgotten
        (array([[1, 0]]), array([[2, 1]]), array([[1, 1]]))
    """

    def __init__(self, num_seeds: int, num_examples: int) -> None:
        self._end = 0
        self.last_mistake = np.full((num_seeds, num_examples), -1)
        self.forgotten = np.zeros((num_seeds, num_examples), np.int64)
        self._first_correct = np.full((num_seeds, num_examples), np.iinfo(np.int64).max)
        self._before: Bool[np.ndarray, "s n"] = np.zeros((num_seeds, num_examples), bool)

    @property
    def first_correct(self) -> Int[np.ndarray, "s n"]:
        """First iteration at which each example is correct. The one after the last record if there is none."""
        return np.minimum(self._first_correct, self._end)

    @property
    def ever_correct(self) -> Bool[np.ndarray, "s n"]:
        """Whether each example has been correct at any record."""
        return self._first_correct < self._end

    def add(self, correct: Bool[np.ndarray, "s t n"], iterations: Int[np.ndarray, " t"]) -> None:
        """Take in the next records, of these iterations."""
        if not len(iterations):
            return
        first = np.where(correct.any(axis=1), iterations[correct.argmax(axis=1)], np.iinfo(np.int64).max)
        self._first_correct = np.minimum(self._first_correct, first)
        last = iterations[::-1][(~correct[:, ::-1]).argmax(axis=1)]
        self.last_mistake = np.where(correct.all(axis=1), self.last_mistake, last)
        self.forgotten += self._before & ~correct[:, 0]
        self.forgotten += np.count_nonzero(correct[:, :-1] & ~correct[:, 1:], axis=1)
        self._before = correct[:, -1]
        self._end = int(iterations[-1]) + 1


def first_correct_curve(
    first_correct: Int[np.ndarray, "s n"], iterations: Int[np.ndarray, " t"]
) -> Float[np.ndarray, "s t"]:
    """Compute the share of examples that were correct at least once up to and including each iteration (FC).

    Example:
        >>> first_correct_curve(np.array([[1, 0, 3]]), iterations=np.arange(3))
        array([[0.33333333, 0.66666667, 0.66666667]])
    """
    counts = [np.searchsorted(np.sort(row), iterations, side="right") for row in first_correct]
    return np.stack(counts) / first_correct.shape[1]


def last_mistake_curve(
    last_mistake: Int[np.ndarray, "s n"], iterations: Int[np.ndarray, " t"]
) -> Float[np.ndarray, "s t"]:
    """Compute the share of examples that are never wrong from each iteration on (LM).

    Example:
        >>> last_mistake_curve(np.array([[-1, 1, 2]]), iterations=np.arange(3))
        array([[0.33333333, 0.33333333, 0.66666667]])
    """
    # Never wrong from t on: the last mistake is before t, that is its successor is at most t.
    return first_correct_curve(last_mistake + 1, iterations)
