"""Adversarial distance: how far an example is from being classified as another class.

Carlini, Erlingsson and Papernot, "Distribution Density, Tails, and Outliers in Machine Learning" (2019), rank examples
by the size of the smallest change to the image that changes the prediction. Not checked against the published text, so
the attack is our choice: DeepFool (Moosavi-Dezfooli, Fawzi and Frossard 2016). It repeatedly goes to the nearest
boundary of the network, linearised at the current point, until it has crossed one. Because the boundary it finds is
really crossed, the nearest boundary is at most that far away; for a linear model it is the exact distance. It is *not*
the margin to the label, which is `area_under_margin`: for a misclassified example it is the distance to any other
class, right or wrong.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from train_dynamics.dynamics.scores.ensemble import SOURCE
from train_dynamics.dynamics.scores.network import onward, slices, slopes
from train_dynamics.dynamics.scores.score import Network, ReplayedScore, Study, Weights

STEPS = 50
OVERSHOOT = 0.02
HALVINGS = 10


def adversarial_distance(weights: Weights, images: Float[np.ndarray, "n i"]) -> Float[np.ndarray, " n"]:
    """Find how far each example is from where the network predicts another class.

    The network sees an image only through the outputs of its first layer, and every step is a combination of that
    layer's columns. So the outputs are moved instead of the image, and lengths are computed from the inner products of
    the columns.

    Args:
        weights: Parameters of one seed.
        images: Inputs, flattened.

    Returns:
        L2 norm of the change, in units of the standardised input. If no step leads to a boundary, for example because
        no unit is active: the largest distance of any other example, or 0 if there is none.

    Example:
        >>> weights = {"fc1": {"kernel": np.array([[3.0, 0.0], [4.0, 0.0]]), "bias": np.zeros(2)}}
        >>> adversarial_distance(weights, np.array([[1.0, 3.0]])).round(3)
        array([3.])
    """
    weights = {
        name: {part: value.astype(np.float64) for part, value in layer.items()} for name, layer in weights.items()
    }
    first = next(iter(weights.values()))
    gram = first["kernel"].T @ first["kernel"]
    widths = [len(layer["bias"]) for layer in weights.values()]
    if widths[-1] == 1:
        return np.zeros(len(images))  # one class has no boundary, and so no step leads to one
    outputs = np.empty((len(images), widths[0]))
    for part in slices(len(images), 8 * images.shape[1]):  # which become float64 only there
        outputs[part] = images[part] @ first["kernel"] + first["bias"]
    found = np.empty(len(images))
    for part in slices(len(images), 8 * max(widths) * widths[-1]):
        found[part] = _distance(weights, gram, outputs[part])
    return np.where(np.isfinite(found), found, found.max(where=np.isfinite(found), initial=0))


def _distance(
    weights: Weights, gram: Float[np.ndarray, "o o"], outputs: Float[np.ndarray, "n o"]
) -> Float[np.ndarray, " n"]:
    """Find each example's distance from its first-layer outputs. Infinite if no step leads to a boundary."""
    class_of = onward(weights, outputs)[2].argmax(axis=1)
    way = np.zeros_like(outputs)  # the change of the image, in columns of the first kernel
    going = np.arange(len(outputs))  # examples whose class is still what it was
    for _ in range(STEPS):
        _, active, logits = onward(weights, outputs[going] + way[going] @ gram)
        lead = _lead(logits, class_of[going])
        inside = lead.min(axis=1) > 0
        going, lead = going[inside], lead[inside]
        if not len(going):
            break
        toward = slopes(weights, [above[inside] for above in active], len(going))
        rows = np.arange(len(going))
        toward -= toward[rows, class_of[going]][:, None]
        squares = ((toward @ gram) * toward).sum(axis=2)
        lengths = np.divide(lead, np.sqrt(squares), out=np.full_like(lead, np.inf), where=squares > 0)
        nearest = lengths.argmin(axis=1)
        leads = squares[rows, nearest] > 0  # else no unit is active, and nothing changes the class
        going, rows, nearest = going[leads], rows[leads], nearest[leads]
        step = (1 + OVERSHOOT) * lead[rows, nearest] / squares[rows, nearest]
        way[going] += step[:, None] * toward[rows, nearest]
    change = way @ gram

    def ahead(share: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Compute by how much the class leads the next one, part of the way along."""
        return _lead(onward(weights, outputs + share[:, None] * change)[2], class_of).min(axis=1)

    low, high = np.zeros(len(outputs)), np.ones(len(outputs))
    for _ in range(HALVINGS):  # back to where it crosses
        middle = (low + high) / 2
        inside = ahead(middle) > 0
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    before, after = ahead(low), ahead(high)  # between kinks, a straight line
    share = np.divide(before, before - after, out=np.zeros_like(before), where=before > after)
    length = (low + share * (high - low)) * np.sqrt((way * change).sum(axis=1).clip(0))
    return np.where(after <= 0, length, np.inf)


def _lead(logits: Float[np.ndarray, "n c"], class_of: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n c"]:
    """Compute by how much a class leads each other one."""
    rows = np.arange(len(logits))
    lead = logits[rows, class_of][:, None] - logits
    lead[rows, class_of] = np.inf
    return lead


def _last(
    checkpoints: Sequence[Network], images: Float[np.ndarray, "n i"], labels: Int[np.ndarray, " n"], study: Study
) -> Float[np.ndarray, "checkpoint n"]:
    return np.stack([network.adversarial_distance(images) for network in checkpoints])


ADVERSARIAL_DISTANCE = ReplayedScore(
    name="adversarial_distance",
    hard="low",
    unit="units of input",
    formula="L2 norm of the smallest input change found (DeepFool) that changes the predicted class, at the end",
    source=SOURCE + ", by DeepFool",
    compute=_last,
    of_inputs=True,
)
