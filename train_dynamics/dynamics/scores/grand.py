"""The length of the gradient early in training (GraNd).

Paul, Ganguli and Dziugaite, "Deep Learning on a Data Diet: Finding Important Examples Early in Training" (2021): the
expectation over networks of the L2 norm of an example's loss gradient with respect to all weights, after a few epochs,
or even at initialisation. For the recorded layers alone it is computed exactly from the recording. For the whole
network, kernels and biases, it is computed again from the stored weights. Neither is `el2n`, which is the norm at the
logits. Checked against the code that the authors published.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from train_dynamics.data.trees import Tree
from train_dynamics.dynamics.scores.el2n import SOURCE
from train_dynamics.dynamics.scores.score import Latest, Network, ReplayedScore, StreamedScore, Study


def _grand(
    checkpoints: Sequence[Network], inputs: Tree, labels: Int[np.ndarray, " n"], study: Study
) -> Float[np.ndarray, "checkpoint n"]:
    return np.stack([network.gradient_norm(inputs, labels) for network in checkpoints])


GRAND_RECORDED = StreamedScore(
    name="grand_recorded",
    hard="high",
    unit="nats per unit of weight",
    formula="L2 norm of the loss gradient of the recorded layers' kernels, early in training",
    source=SOURCE + ", of the recorded layers",
    start=lambda study: Latest(study, lambda records: records.gradient_norm, until=study.early),
)
GRAND = ReplayedScore(
    name="grand",
    hard="high",
    unit="nats per unit of weight",
    formula="L2 norm of the loss gradient of all kernels and biases, early in training",
    source=SOURCE,
    compute=_grand,
    at=lambda study: np.array([study.early]),
)
