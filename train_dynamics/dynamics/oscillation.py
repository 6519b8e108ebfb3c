"""Oscillation: whether two groups in contention take turns, as the study explains it, and what happens if not.

"An Empirical Study of Neural Network Training Dynamics" (2022) compares such groups with binary stars. At first the
gradients of one group are larger and dominate the batch: its accuracy rises, that of the other group falls, and the
other's gradients grow until they dominate, and so on. Each step of this explanation is measured here as one number, for
a pair and for the matched pairs it is compared with: every function keeps the axes `*g`.

The axis of two groups is the difference of the directions of their mean gradients, recomputed at every record, so that
what a group adds to the mean gradient always points to its own side. An axis fixed at the discovery would stay one
direction in the space of weights, but the gradients turn away from it within hundreds of updates, and then the leader
along it says nothing about the two groups. A group leads if the mean gradient of *all* examples points to its side.
What the two groups alone add up to is something else, because one of them may be larger throughout; whether that
dominates the mean gradient is a step of the explanation that has to be shown.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Course(NamedTuple):
    """What happens to pairs of groups from record to record. The first group of each pair is called left.

    Attributes:
        lead: How far the mean gradient of all examples points to the left group's side: along their axis, in nats per
            unit of weight. Positive where the left group leads.
        own: The same for the part of the mean gradient that the two groups alone contribute.
        step: How far the weights moved to that side until the next record, down the gradient. NaN if not known.
        norm: Length of the part that each group contributes to the mean gradient.
        loss: Mean loss of each group.
        accuracy: Share of each group that is correct; NaN where there are no classes.
    """

    lead: Float[np.ndarray, "t *g"]
    own: Float[np.ndarray, "t *g"]
    step: Float[np.ndarray, "t *g"]
    norm: Float[np.ndarray, "2 t *g"]
    loss: Float[np.ndarray, "2 t *g"]
    accuracy: Float[np.ndarray, "2 t *g"]


def along_axis(
    norm: Float[np.ndarray, "2 *g"], product: Float[np.ndarray, "*g"], other: Float[np.ndarray, "2 *g"]
) -> Float[np.ndarray, "*g"]:
    """Project a vector onto the axis of two others: the unit vector along the difference of their directions.

    Only inner products are needed, whatever space the vectors are in.

    Args:
        norm: Lengths of the two.
        product: Their inner product.
        other: Inner product of the vector with each of the two.

    Returns:
        Positive on the side of the first. If one of the two is zero, the axis is the direction of the other, or its
        opposite. 0 if both are zero, or if they have the same direction and so no axis.

    Example:
        >>> norm, product = np.array([2.0, 1.0]), np.array(-2.0)  # of (2, 0) and (-1, 0)
        >>> along_axis(norm, product, np.array([6.0, -3.0]))  # of (3, 1)
        array(3.)
    """
    unit = np.divide(other, norm, out=np.zeros_like(other), where=norm > 0)
    lengths = norm[0] * norm[1]
    cosine = np.divide(product, lengths, out=np.zeros_like(product), where=lengths > 0)
    squared = (norm > 0).sum(axis=0) - 2 * cosine
    apart = squared > 1e-6  # float32 has no more digits of a cosine
    return np.divide(unit[0] - unit[1], np.sqrt(np.where(apart, squared, 1)), out=np.zeros_like(product), where=apart)


def _of_sides(values: Float[np.ndarray, "2 t *g"], lead: Float[np.ndarray, "t *g"]) -> tuple[np.ndarray, np.ndarray]:
    """Return the change of a curve until the next record, for the group that leads before it and for the other."""
    change, left = np.diff(values, axis=1), lead[:-1] > 0
    return np.where(left, *change), np.where(left, *change[::-1])


def _share(moves: Float[np.ndarray, "t *g"]) -> Float[np.ndarray, "*g"]:
    """Compute the share of upward moves among all moves. NaN if there is none."""
    up, down = np.count_nonzero(moves > 0, axis=0), np.count_nonzero(moves < 0, axis=0)
    return np.divide(up, up + down, out=np.full(np.shape(up), np.nan), where=up + down > 0)


def carried(course: Course) -> Float[np.ndarray, "*g"]:
    """Compute the share of records at which the leader is the group that contributes more along their axis."""
    return _share(course.own * course.lead)


def follows(course: Course) -> Float[np.ndarray, "*g"]:
    """Correlate what the two groups contribute to the mean gradient along their axis with the lead."""
    return correlation(course.own, course.lead)


def leader_falls(course: Course) -> Float[np.ndarray, "*g"]:
    """Compute the share of records after which the leader's loss falls, among those after which it changes."""
    return _share(-_of_sides(course.loss, course.lead)[0])


def leader_gains(course: Course) -> Float[np.ndarray, "*g"]:
    """Compute the share of records after which the leader's accuracy rises, among those after which it changes."""
    return _share(_of_sides(course.accuracy, course.lead)[0])


def other_rises(course: Course) -> Float[np.ndarray, "*g"]:
    """Compute the share of records after which the other group's loss rises."""
    return _share(_of_sides(course.loss, course.lead)[1])


def other_loses(course: Course) -> Float[np.ndarray, "*g"]:
    """Compute the share of records after which the other group's accuracy falls."""
    return _share(-_of_sides(course.accuracy, course.lead)[1])


def other_grows(course: Course) -> Float[np.ndarray, "*g"]:
    """Compute the share of records after which the other group's gradient is longer."""
    return _share(_of_sides(course.norm, course.lead)[1])


def lead_changes(course: Course) -> Float[np.ndarray, "*g"]:
    """Count how often the lead changes. While the lead is zero, the last leader keeps it."""
    sign = np.sign(course.lead)
    place = np.arange(len(sign)).reshape(-1, *[1] * (sign.ndim - 1))
    last = np.maximum.accumulate(np.where(sign != 0, place, 0))
    sign = np.take_along_axis(sign, last, axis=0)
    return np.asarray(np.count_nonzero(sign[1:] * sign[:-1] < 0, axis=0), float)


def correlation(x: Float[np.ndarray, "t *g"], y: Float[np.ndarray, "t *g"]) -> Float[np.ndarray, "*g"]:
    """Compute Pearson's correlation along the first axis. NaN where a curve does not change."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    lengths = np.sqrt((x * x).sum(axis=0) * (y * y).sum(axis=0))
    return np.divide((x * y).sum(axis=0), lengths, out=np.full_like(lengths, np.nan), where=lengths > 0)


def without_trend(curve: Float[np.ndarray, "t *g"]) -> Float[np.ndarray, "t *g"]:
    """Subtract the straight line that fits best.

    Example:
        >>> without_trend(np.array([1.0, 3.0, 2.0, 4.0, 5.0])).round(12)
        array([-0.2,  0.9, -1. ,  0.1,  0.2])
    """
    t = np.linspace(-1, 1, len(curve))
    curve = curve - curve.mean(axis=0)
    return curve - np.multiply.outer(t, np.tensordot(t, curve, 1) / (t @ t))


def correlogram(x: Float[np.ndarray, "t *g"], y: Float[np.ndarray, "t *g"], most: int) -> Float[np.ndarray, "lag *g"]:
    """Correlate two curves, each without its trend, at lags of -`most` to `most` records. Positive: y is later.

    Sums over fewer records are not scaled up, so that large lags, about which less is known, count for less.

    Example:
        >>> y = np.array([1.0, -1.0] * 10)
        >>> correlogram(y, y, 2).round(2)
        array([ 0.9 , -0.95,  1.  , -0.95,  0.9 ])
    """
    x, y = without_trend(x), without_trend(y)
    size = 2 * len(x)  # the transform is periodic: as many zeros, and nothing meets its own end
    spectrum = np.conj(np.fft.rfft(x, size, axis=0)) * np.fft.rfft(y, size, axis=0)
    sums = np.fft.irfft(spectrum, size, axis=0)
    lengths = np.sqrt((x * x).sum(axis=0) * (y * y).sum(axis=0))
    sums = np.concatenate([sums[size - most :], sums[: most + 1]])
    return np.divide(sums, lengths, out=np.full_like(sums, np.nan), where=lengths > 0)


def rhythm(curve: Float[np.ndarray, "t *g"]) -> tuple[Float[np.ndarray, "*g"], Float[np.ndarray, "*g"]]:
    """Measure how regularly a curve swings: the highest peak of its autocorrelation after that first falls below 0.

    Lags go up to half of the records, so that there are at least two periods.

    Returns:
        The height of the peak, from -1 to 1, and its lag in records: the period. NaN where the curve does not change,
        or its autocorrelation stays above 0.

    Example:
        >>> height, period = rhythm(np.sin(2 * np.pi * np.arange(200) / 20))
        >>> round(float(height), 2), float(period)
        (0.9, 20.0)
    """
    most = len(curve) // 2
    found = correlogram(curve, curve, most)[most:]
    swung = np.logical_or.accumulate(found < 0)
    after = np.where(swung, found, -np.inf)
    period = after.argmax(axis=0)
    height = np.take_along_axis(after, period[None], axis=0)[0]
    some = swung.any(axis=0)
    return np.where(some, height, np.nan), np.where(some, period, np.nan)


def memory(curve: Float[np.ndarray, "t *g"], most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measure for how long a curve stays where it is, and whether it swings to the other side.

    A curve that is pulled back to the middle and pushed at random forgets exponentially, and does not swing.

    Returns:
        The lag, in records, at which the autocorrelation first falls below 1/e; then the lag of its lowest value, up to
        `most`, which is half a period if the curve swings, and that value. NaN where the curve does not change.

    Example:
        >>> lag, half_turn, value = memory(np.sin(2 * np.pi * np.arange(200) / 20), 30)
        >>> float(lag), float(half_turn), round(float(value), 2)
        (4.0, 10.0, -0.95)
    """
    found = correlogram(curve, curve, most)[most:]
    below = found < 1 / np.e
    lowest = found.argmin(axis=0)
    value = np.asarray(np.take_along_axis(found, lowest[None], axis=0)[0])
    lag = np.where(below.any(axis=0), below.argmax(axis=0), np.nan)
    return lag, np.where(np.isnan(value), np.nan, lowest), value


def regularity(course: Course) -> Float[np.ndarray, "*g"]:
    """Compute how regularly the lead changes: the height that `rhythm` returns for it."""
    return rhythm(course.lead)[0]


def best_lag(
    x: Float[np.ndarray, "t *g"], y: Float[np.ndarray, "t *g"], most: int
) -> tuple[Float[np.ndarray, "*g"], Float[np.ndarray, "*g"]]:
    """Find by how many records y is later than x: the lag of the strongest correlation, and the correlation.

    Returns:
        Lag, in records, and correlation; NaN where a curve does not change.

    Example:
        >>> x = np.sin(np.arange(100) / 2)
        >>> lag, found = best_lag(x, np.roll(x, 2), 3)
        >>> float(lag), bool(found > 0.9)
        (2.0, True)
    """
    found = correlogram(x, y, most)
    k = np.abs(np.nan_to_num(found)).argmax(axis=0)
    best = np.asarray(np.take_along_axis(found, k[None], axis=0)[0])
    return np.where(np.isnan(best), np.nan, k - most), best


def step_follows_lead(course: Course) -> Float[np.ndarray, "*g"]:
    """Correlate the lead with how far the weights then move to the leader's side."""
    return correlation(course.lead[:-1], course.step[:-1])


def step_goes_on(course: Course) -> Float[np.ndarray, "*g"]:
    """Correlate how far the weights move along the axis with how far they moved before."""
    return correlation(course.step[:-2], course.step[1:-1])


def step_decides(course: Course) -> Float[np.ndarray, "*g"]:
    """Correlate how far the weights move to a group's side with how much that group then gains in loss."""
    return correlation(course.step[:-1], -np.diff(course.loss[0] - course.loss[1], axis=0))
