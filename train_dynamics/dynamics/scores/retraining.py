"""How much the network changes its mind about an example when it goes on to learn others: holdout retraining.

Carlini, Erlingsson and Papernot, "Distribution Density, Tails, and Outliers in Machine Learning" (2019): a trained
network is trained on, on examples held out, and what it says of an example before and after is compared by the
symmetric Kullback-Leibler divergence: what it says of a typical one stays. It is *not* forgetting, which needs a
prediction to change while the example itself is still trained on, and it looks at no label. Not checked against the
published text; how long to go on, and at which learning rate, is our choice: as in the recording.
"""

import numpy as np
from jaxtyping import Float

from train_dynamics.dynamics.scores.ensemble import SOURCE
from train_dynamics.dynamics.scores.score import Further, FurtherScore

SMALLEST = 1e-12


def symmetric_divergence(
    p: Float[np.ndarray, "*lead c"], q: Float[np.ndarray, "*lead c"]
) -> Float[np.ndarray, "*lead"]:
    """Compute the Kullback-Leibler divergence of two distributions, one way plus the other, in nats.

    A probability below 1e-12, which float32 may round to 0, counts as that.

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
