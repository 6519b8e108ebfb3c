"""How well an example did over the whole of training: approximations of the C-score that need only one run.

Jiang, Zhang, Talwar and Mozer, "Characterizing Structural Regularities of Labeled Data in Overparameterized Models"
(2021), average over epochs; here it is over every record. They are *not* the C-score itself, which is the accuracy on
an example when networks are trained without it, on training sets of many sizes. Not checked against the published text.
"""

import numpy as np

from train_dynamics.dynamics.scores.score import Mean, StreamedScore

SOURCE = (
    'Jiang et al., "Characterizing Structural Regularities of Labeled Data in Overparameterized Models" (2021), '
    "but at every record"
)

# Not `cartography_correctness`, which looks once an epoch.
CUMULATIVE_ACCURACY = StreamedScore(
    name="cumulative_accuracy",
    hard="low",
    unit="share",
    formula="share of the records at which it is right",
    source=SOURCE,
    start=lambda study: Mean(study, lambda records: records.correct),
)
# Not `confidence`, which is of the likeliest class, and at the end.
CUMULATIVE_CONFIDENCE = StreamedScore(
    name="cumulative_confidence",
    hard="low",
    unit="probability",
    formula="mean over records of p of the label",
    source=SOURCE,
    start=lambda study: Mean(study, lambda records: np.exp(-records.loss)),
)
# The same by the geometric mean of p: a few records with a tiny p count for more.
CUMULATIVE_LOSS = StreamedScore(
    name="cumulative_loss",
    hard="high",
    unit="nats",
    formula="mean over records of the loss, -ln p of the label",
    source=SOURCE,
    start=lambda study: Mean(study, lambda records: records.loss),
)
