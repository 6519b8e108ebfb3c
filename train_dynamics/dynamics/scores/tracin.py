"""Self-influence (TracInCP): how much steps taken on an example alone would lower its own loss.

Pruthi, Liu, Sundararajan and Kale, "Estimating Training Data Influence by Tracing Gradient Descent" (2020): the sum
over checkpoints of the learning rate times the inner product of two examples' loss gradients. For an example with
itself, that product is the squared norm. For the recorded layers every record is a checkpoint; for the whole network,
the iterations that are replayed. It is *not* what training did: batches and momentum are ignored, as in TracInCP.
Values from different numbers of checkpoints cannot be compared. Not checked against the published text.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from train_dynamics.data.trees import Tree
from train_dynamics.dynamics.scores.score import Mean, Network, ReplayedScore, StreamedScore, Study

SOURCE = 'Pruthi et al., "Estimating Training Data Influence by Tracing Gradient Descent" (2020)'


class SelfInfluence(Mean):
    """Sums the squared gradient norm over all records."""

    def __init__(self, study: Study) -> None:
        super().__init__(study, lambda records: np.square(records.gradient_norm))
        self._learning_rate = study.learning_rate

    def value(self) -> Float[np.ndarray, "s n"]:
        """Return the learning rate times the sum so far."""
        return self._learning_rate * self.total


def _needs(study: Study) -> str:
    return "" if np.isfinite(study.learning_rate) else "needs a learning rate that is the same in all updates"


def _tracin(
    checkpoints: Sequence[Network], inputs: Tree, labels: Int[np.ndarray, " n"], study: Study
) -> Float[np.ndarray, "checkpoint n"]:
    squares = [np.square(network.gradient_norm(inputs, labels)) for network in checkpoints]
    return study.learning_rate * np.cumsum(squares, axis=0, dtype=np.float64)


TRACIN_RECORDED = StreamedScore(
    name="tracin_recorded",
    hard="high",
    unit="nats",
    formula="learning rate x sum over records of the squared gradient norm of the recorded layers' kernels",
    source=SOURCE + ", of the recorded layers",
    start=SelfInfluence,
    needs=_needs,
)
TRACIN = ReplayedScore(
    name="tracin",
    hard="high",
    unit="nats",
    formula="learning rate x sum over checkpoints of the squared gradient norm of all kernels and biases",
    source=SOURCE,
    compute=_tracin,
    needs=_needs,
)
