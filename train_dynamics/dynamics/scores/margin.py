"""Area under the margin (AUM): by how much the label's logit leads during training.

Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin Ranking" (2020): the mean over epochs of the
label's logit minus the largest other logit, taken when the example is in a batch. Here it is the mean over every
record. The margin is a difference of logits and *not* of probabilities: it keeps growing after probabilities have
settled. Their threshold, from examples of an extra class, is not part of it. Not checked against the published text.
"""

import numpy as np
from jaxtyping import Float

from train_dynamics.dynamics.scores.score import Mean, StreamedScore

SMALLEST = np.finfo(np.float32).tiny


def margin(loss: Float[np.ndarray, "..."], largest_other: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Compute the label's logit minus the largest other logit, from probabilities.

    A difference of logits equals the difference of log-probabilities, because all logits share the same constant.

    Args:
        loss: -ln p of the label, in nats.
        largest_other: Largest probability of another class. If it was rounded to 0 in float32, the smallest positive
            number is used instead, so that the margin is at most 87.3.

    Example:
        >>> margin(np.log([4.0, 2.0]), np.array([0.5, 0.25]))  # p = 1/4 against 1/2, and 1/2 against 1/4
        array([-0.69314718,  0.69314718])
    """
    return -loss - np.log(np.maximum(largest_other, SMALLEST))


AREA_UNDER_MARGIN = StreamedScore(
    name="area_under_margin",
    hard="low",
    unit="logits",
    formula="mean over records of (z of the label - largest other z)",
    source='Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin Ranking" (2020), '
    "but at every record",
    start=lambda study: Mean(study, lambda records: records.margin),
)
