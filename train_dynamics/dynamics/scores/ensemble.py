"""What an ensemble predicts for an example at the end of training: whether it agrees, and how confident it is.

Carlini, Erlingsson and Papernot, "Distribution Density, Tails, and Outliers in Machine Learning" (2019). Not checked
against the published text.
"""

import numpy as np
from jaxtyping import Float

from train_dynamics.dynamics.agreement import resampled_agreement
from train_dynamics.dynamics.scores.score import EnsembleScore, Latest, Records, StreamedScore

SOURCE = 'Carlini, Erlingsson and Papernot, "Distribution Density, Tails, and Outliers in Machine Learning" (2019)'


def confidence(records: Records) -> Float[np.ndarray, "s t n"]:
    """Compute the largest class probability, whether or not it is the label's."""
    return np.exp(np.maximum(-records.margin, 0) - records.loss)  # ln p of the label, plus how far it is behind


# Not a measure of correctness: what all seeds get wrong in the same way is typical.
AGR = EnsembleScore(
    name="agr",
    hard="high",
    unit="nats",
    formula="mean Jensen-Shannon divergence between two seeds' class probabilities, over all pairs, at the end",
    source=SOURCE,
    needs=lambda study: "" if study.num_seeds > 1 else "agreement needs two seeds or more",
    compute=resampled_agreement,
)
# Not `cumulative_confidence`, nor `cartography_confidence`: those are of the label, and over the whole of training.
CONFIDENCE = StreamedScore(
    name="confidence",
    hard="low",
    unit="probability",
    formula="largest class probability at the end",
    source=SOURCE,
    start=lambda study: Latest(study, confidence),
)
