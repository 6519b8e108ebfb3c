"""How well a score finds wrong labels: how many are among the hardest examples, and how many pairs it orders."""

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata


def precision_at_noise_rate(difficulty: Float[np.ndarray, " n"], noisy: Bool[np.ndarray, " n"]) -> float:
    """Compute the share of wrong labels among the k hardest examples, where k is the number of wrong labels.

    At this k, precision and recall are the same. Ties at the border count as a random choice among them would on
    average, so the order of the examples has no effect.

    Args:
        difficulty: Score of each example, high being hard.
        noisy: Whether its label is wrong.

    Returns:
        From 0 to 1. Chance level is the share of wrong labels. NaN if no label is wrong, or if a value is NaN.

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
    """Compute the probability that a wrong label looks harder than a right one. Ties count half.

    The area under the receiver operating characteristic (Hanley and McNeil, "The Meaning and Use of the Area under a
    Receiver Operating Characteristic (ROC) Curve", 1982), from the sum of ranks.

    Returns:
        From 0 to 1; 1/2 is chance. NaN if all labels or none are wrong, or if a value is NaN.

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
    """Compute the receiver operating characteristic: which share of each kind is above a falling threshold.

    Equal values are passed together. The area under the curve, by trapezoids, is `auc`.

    Returns:
        At each threshold, the share of right labels taken for wrong, and the share of wrong labels found, from (0, 0)
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
