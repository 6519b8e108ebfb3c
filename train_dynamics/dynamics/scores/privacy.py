"""At how strong a privacy guarantee an example can still be learned.

Carlini, Erlingsson and Papernot, "Distribution Density, Tails, and Outliers in Machine Learning" (2019): networks are
trained by DP-SGD (Abadi et al., "Deep Learning with Differential Privacy", 2016), which clips gradients and adds noise,
at several levels of privacy. A typical example is learned even where no single example can make a difference. The score
is the share of the noise levels at which the network classifies the example correctly. If more noise never helps, this
gives the same order as the strongest noise under which it is learned. It is *not* the privacy that the example has
lost. Not checked against the published text.
"""

import numpy as np
from jaxtyping import Float

from train_dynamics.dynamics.scores.ensemble import SOURCE
from train_dynamics.dynamics.scores.score import Further, FurtherScore


def _privacy(further: Further) -> Float[np.ndarray, "s n"]:
    return (further.private == further.labels).mean(axis=1)


PRIVACY = FurtherScore(
    name="privacy",
    hard="low",
    unit="share",
    formula="share of the noise levels of DP-SGD (private training) at which it is right at the end",
    source=SOURCE + ", but the share of the levels",
    compute=_privacy,
)
