"""Holdout retraining: how much a network changes its prediction for an example when it goes on to learn others.

Carlini, Erlingsson and Papernot, "Distribution Density, Tails, and Outliers in Machine Learning" (2019): a trained
network is trained further, on held-out examples. Its class probabilities for an example before and after are compared
by the symmetric Kullback-Leibler divergence. For a typical example they hardly change. It is *not* forgetting, where a
prediction changes while the example itself is still trained on, and it does not use the label. Not checked against the
published text; how long to train, and at which learning rate, is our choice: as in the recording.
"""

import numpy as np
from jaxtyping import Float

from train_dynamics.dynamics.scores.ensemble import SOURCE
from train_dynamics.dynamics.scores.score import Further, FurtherScore

SMALLEST = 1e-12


def symmetric_divergence(
    p: Float[np.ndarray, "*lead c"], q: Float[np.ndarray, "*lead c"]
) -> Float[np.ndarray, "*lead"]:
    """Compute the Kullback-Leibler divergence of two distributions in both directions, added up, in nats.

    Probabilities below 1e-12, which float32 may round to 0, are raised to 1e-12.

    Example:
        >>> symmetric_divergence(np.array([[0.5, 0.5]]), np.array([[0.2, 0.8]])).round(3)
        array([0.416])
    """
    logs = [np.log(of.astype(np.float64).clip(SMALLEST)) for of in (p, q)]
    return ((p - q) * (logs[0] - logs[1])).sum(axis=-1)


def _retraining(further: Further) -> Float[np.ndarray, "s n"]:
    return symmetric_divergence(further.probabilities, further.retrained)


HOLDOUT_RETRAINING = FurtherScore(
    name="holdout_retraining",
    hard="high",
    unit="nats",
    formula="symmetric KL divergence between class probabilities before and after training on held out examples",
    source=SOURCE,
    compute=_retraining,
)
