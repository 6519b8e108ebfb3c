"""Does a score find wrong labels? How many are among the hardest examples, and how many pairs it puts into order."""

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata


def precision_at_noise_rate(difficulty: Float[np.ndarray, " n"], noisy: Bool[np.ndarray, " n"]) -> float:
    """Compute the share of wrong labels among the k hardest examples, k being the number of wrong labels.

    Precision and recall are the same there. Of equal values at the border as many count as a random choice among them
    would bring on average: the order of the examples plays no part.

    Args:
        difficulty: Score of each example, high being hard.
        noisy: Whether its label is wrong.

    Returns:
        From 0 to 1; the share of wrong labels is chance. NaN if no label is wrong, or a value is NaN.

    Example:
        >>> precision_at_noise_rate(np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False]))
        0.75
    """
    count = np.count_nonzero(noisy)
    if not count or np.isnan(difficulty).any():
        return np.nan
    border = np.partition(difficulty, -count)[-count]
    above, tied = difficulty > border, difficulty == border
    places = count - np.count_nonzero(above)
    return float((np.count_nonzero(noisy & above) + places * noisy[tied].mean()) / count)


def auc(difficulty: Float[np.ndarray, " n"], noisy: Bool[np.ndarray, " n"]) -> float:
    """Compute the chance that a wrong label looks harder than a right one, equal values counting half.

    The area under the receiver operating characteristic (Hanley and McNeil, "The Meaning and Use of the Area under a
    Receiver Operating Characteristic (ROC) Curve", 1982), from the sum of ranks.

    Returns:
        From 0 to 1; 1/2 is chance. NaN if all labels are wrong or none, or a value is NaN.

    Example:
        >>> auc(np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False]))
        0.875
    """
    wrong, right = np.count_nonzero(noisy), np.count_nonzero(~noisy)
    if not wrong or not right or np.isnan(difficulty).any():
        return np.nan
    ranks = rankdata(difficulty)
    return float((ranks[noisy].sum() - wrong * (wrong + 1) / 2) / (wrong * right))


def roc(
    difficulty: Float[np.ndarray, " n"], noisy: Bool[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " point"], Float[np.ndarray, " point"]]:
    """Compute the receiver operating characteristic: what share of each kind is above a threshold, from high to low.

    Equal values are passed together. The area below, by trapezoids, is `auc`.

    Returns:
        Share of the right labels taken for wrong, and share of the wrong ones found, at each threshold, from (0, 0)
        to (1, 1).

    Example:
        >>> roc(np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False]))
        (array([0. , 0. , 0.5, 1. ]), array([0. , 0.5, 1. , 1. ]))
    """
    order = np.argsort(-difficulty, kind="stable")
    last = np.flatnonzero(np.append(np.diff(difficulty[order]) != 0, True))
    found = noisy[order].cumsum()[last]
    taken = last + 1 - found
    return np.append(0, taken) / np.count_nonzero(~noisy), np.append(0, found) / np.count_nonzero(noisy)
