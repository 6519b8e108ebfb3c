"""The published study's claims about moving points, cones and contention, measured in this recording."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from train_dynamics.data.showing import has_pictures
from train_dynamics.dynamics import cones
from train_dynamics.dynamics.contention import Pair
from train_dynamics.recording.layers import TOGETHER
from train_dynamics.recording.reader import Recording
from train_dynamics.study.claims import Claim, UndecidedError, decided, in_words
from train_dynamics.study.cones import ConeOptions, cover, half_learned, read_factors
from train_dynamics.study.contention import Contention, Fight
from train_dynamics.study.motion import frames

STEPS = 100
SMALLEST = 10
AFTER, SWINGS = 30, -0.5
FIGHTING = ((1, 2), (2, 6), (4, 9), (7, 9))  # the labels that the study names
PerSeed = Float[np.ndarray, "s 2"]
"""Of each seed a sum and what it is divided by; a value is that of all seeds' sums."""


def group_claims(
    recording: Recording, progress: Float[np.ndarray, "s t"], options: ConeOptions, contention: Contention | None
) -> list[Claim]:
    """Measure the claims about groups of examples, in each layer as those about its gradients.

    Args:
        recording: The recording, of a classifier, with gradients.
        progress: Accuracy of each seed and record.
        options: Which cones to look for.
        contention: The pairs in contention. None if they were not looked for.
    """
    definitions = [named for layer in recording.layers if layer != TOGETHER for named in _of_motion(recording, layer)]
    for layer in recording.gradient_layers:
        definitions += _of_cones(recording, layer, progress, options)
    for layer in recording.gradient_layers if contention is not None else ():
        definitions += _of_contention(recording, layer, [f for f in contention.fights if f.pair.layer == layer])
    return decided(definitions, lambda weights: weights, len(recording.seeds))


def _ratio(of_seeds: Callable[[], PerSeed], reason: str) -> Callable[[Float[np.ndarray, " s"]], float]:
    """Make a statistic of the seeds' weights. It is undecided where there is nothing to divide by."""
    known: list[PerSeed] = []

    def statistic(weights: Float[np.ndarray, " s"]) -> float:
        if not known:
            known.append(of_seeds())
        total, count = weights @ known[0]
        if not count:
            raise UndecidedError(reason)
        return total / count

    return statistic


def moves(
    norm: Float[np.ndarray, "t n"], correct: Bool[np.ndarray, "t n"]
) -> tuple[Float[np.ndarray, " 2"], Float[np.ndarray, " 2"]]:
    """Add up how gradient norms change between records, for examples that are right and for those that are wrong.

    Returns:
        Sum and number of changes, of examples that were right before and of those that were wrong.

    Example:
        >>> moves(np.array([[2.0, 1.0], [1.5, 3.0]]), np.array([[True, False], [True, True]]))
        (array([-0.5,  1. ]), array([2., 1.]))
    """
    change, right = np.diff(norm, axis=0), correct[:-1]
    return tuple(np.array([change[which].sum(dtype=np.float64), which.sum()]) for which in (right, ~right))


def _of_motion(recording: Recording, layer: str) -> Iterator[tuple]:
    """List the claims about how points of the scatter move, whose horizontal axis is the gradient norm."""
    suffix, of_layer = in_words(recording.layers, layer)
    times = recording.iterations[np.unique(np.linspace(0, recording.num_records - 1, STEPS).astype(int))]
    known: dict[int, np.ndarray] = {}

    def of_seeds(k: int) -> PerSeed:
        if not known:
            for s, seed in enumerate(recording.seeds):
                shown = list(frames(recording, int(seed), times, [layer]))
                found = moves(np.stack([f.norm[0] for f in shown]), np.stack([f.correct for f in shown]))
                known[s] = np.stack(found)
        return np.stack([known[s][k] for s in range(len(recording.seeds))])

    for k, (which, where, holds) in enumerate(
        (("right", "left", lambda value: value < 0), ("wrong", "right", lambda value: value > 0))
    ):
        yield (
            f"{which}_move_{where}{suffix}",
            f"Points that are {which} move {where}, to {'smaller' if k == 0 else 'larger'} gradients{of_layer}.",
            f"mean change of the gradient norm in {layer} of examples that are {which}, from one of {len(times)} "
            f"records to the next; holds {'below' if k == 0 else 'above'} 0",
            "nats per unit of weight",
            _ratio(lambda k=k: of_seeds(k), "no example is"),
            holds,
        )


def spread(inputs: Float[np.ndarray, "m p"]) -> float:
    """Compute the mean squared distance between every two of some inputs.

    Example:
        >>> spread(np.array([[0.0], [1.0], [3.0]]))  # 1, 9 and 4
        4.666666666666667
    """
    count = len(inputs)
    mean = inputs.mean(axis=0, dtype=np.float64)
    variance = np.square(inputs - mean).sum(dtype=np.float64) / count
    return float(2 * variance * count / (count - 1))


def _of_cones(
    recording: Recording, layer: str, progress: Float[np.ndarray, "s t"], options: ConeOptions
) -> Iterator[tuple]:
    """List the claims about cones of ten examples or more, of each seed when it gets half of the examples right."""
    suffix, of_layer = in_words(recording.layers, layer)
    labels = recording.classes[0]
    known: list[list[Int[np.ndarray, " m"]]] = []

    def groups() -> list[list[Int[np.ndarray, " m"]]]:
        for s in range(0 if known else len(recording.seeds)):
            t = int(recording.iterations[half_learned(progress[s], len(recording.class_names))])
            cone, _ = cover(cones.directions(*read_factors(recording, layer, t)[s]), options)
            sizes = np.bincount(cone[cone >= 0])
            known.append([np.flatnonzero(cone == k) for k in np.flatnonzero(sizes >= SMALLEST)])
        return known

    def of_one_label() -> PerSeed:
        return np.array([[sum(len(set(labels[g])) == 1 for g in of), len(of)] for of in groups()], float)

    few = f"no cone has {SMALLEST} examples"
    where = (
        f"of cones of {SMALLEST} examples or more in {layer}, of each seed when it gets half of the examples right, or "
        "at the end where it never does"
    )
    yield (
        f"cones_of_one_label{suffix}",
        f"A cone is examples of one label{of_layer}.",
        f"{where}, the share with one label; holds from 95 %",
        "share",
        _ratio(of_one_label, few),
        lambda value: value >= 0.95,
    )
    if not has_pictures(recording.data):
        return
    inputs = np.asarray(recording.data.inputs, np.float32).reshape(len(labels), -1)
    of_label = {c: spread(inputs[labels == c]) for c in set(labels.tolist()) if (labels == c).sum() > 1}

    def of_one_style() -> PerSeed:
        """For each seed, add up over cones of one label their spread as a share of their label's."""
        alike = [[g for g in of if len(set(labels[g])) == 1] for of in groups()]
        return np.array([[sum(spread(inputs[g]) / of_label[labels[g[0]]] for g in of), len(of)] for of in alike], float)

    yield (
        f"cones_of_one_style{suffix}",
        f"A cone is examples of one style{of_layer}.",
        f"{where}, and one label: mean squared pixel distance between two members, as a multiple of that between two "
        "random examples of the label; holds below 1",
        "ratio",
        _ratio(of_one_style, few),
        lambda value: value < 1,
    )


def _of_contention(recording: Recording, layer: str, fights: Sequence[Fight]) -> Iterator[tuple]:
    """List the claims about pairs in contention in a layer."""
    suffix, of_layer = in_words(recording.layers, layer)
    labels = recording.classes[0]

    def summed(values: Sequence[tuple[Pair, float, float]]) -> PerSeed:
        found = np.zeros((len(recording.seeds), 2))
        for pair, value, weight in values:
            found[pair.seed] += value, weight
        return found

    def swinging() -> PerSeed:
        after = [f for f in fights if f.pair.iteration > AFTER and f.loss_correlation is not None]
        return summed([(f.pair, float(f.loss_correlation < SWINGS), 1.0) for f in after])

    yield (
        f"clusters_oscillate{suffix}",
        f"After iteration 30, groups that oppose each other oscillate{of_layer}.",
        "of the pairs in contention found after iteration 30, the share whose mean losses change against each other "
        f"from one record to the next, with a correlation below {SWINGS:g}; holds from 50 %",
        "share",
        _ratio(swinging, "no pair in contention found after iteration 30 could be followed"),
        lambda value: value >= 0.5,
    )
    if recording.class_names != tuple("0123456789"):
        return  # the others are about digits
    both = [tuple(sorted((_main(labels, f.pair.left), _main(labels, f.pair.right)))) for f in fights]
    others = 45 - len(FIGHTING)  # pairs of two different digits

    def more_often(named: tuple[int, int]) -> PerSeed:
        """Of each seed, how many pairs have these labels, less how many the average pair of labels not named has."""
        found = np.zeros((len(recording.seeds), 2))
        found[:, 1] = bool(fights)
        for fight, here in zip(fights, both, strict=True):
            if here == named:
                found[fight.pair.seed, 0] += 1
            elif here not in FIGHTING and here[0] != here[1]:
                found[fight.pair.seed, 0] -= 1 / others
        return found

    for named in FIGHTING:
        words = f"{named[0]} and {named[1]}"
        yield (
            f"fights_{named[0]}_{named[1]}{suffix}",
            f"{words} are in contention more often than other labels{of_layer}.",
            f"pairs of mostly {words} in a network, less those of an average pair of digits that the study doesn't "
            "name; holds above 0",
            "pairs",
            _ratio(lambda named=named: more_often(named), "no pair in contention was found"),
            lambda value: value > 0,
        )
    two_and_six = [f.pair for f, here in zip(fights, both, strict=True) if here == (2, 6)]
    yield _of_mirrors(recording, layer, two_and_six, summed)


def _of_mirrors(recording: Recording, layer: str, pairs: Sequence[Pair], summed: Callable[[Any], PerSeed]) -> tuple:
    """Return the claim about 2 and 6, which the study sees as mirror images."""
    suffix, of_layer = in_words(recording.layers, layer)

    def mirrored() -> PerSeed:
        images = np.asarray(recording.data.inputs, np.float32)
        return summed([(pair, gain_by_mirror(images[pair.left], images[pair.right]), 1.0) for pair in pairs])

    return (
        f"mirrored_2_6{suffix}",
        f"Twos and sixes in contention are mirror images of each other{of_layer}.",
        "of pairs of mostly 2 and 6, the correlation of the mean images of both groups, one of them mirrored left to "
        "right, less the same of both as they are; holds above 0",
        "ratio",
        _ratio(mirrored, "there is no pair in contention of 2 and 6"),
        lambda value: value > 0,
    )


def gain_by_mirror(left: Float[np.ndarray, "a h w ..."], right: Float[np.ndarray, "b h w ..."]) -> float:
    """Compute how much better two groups' mean images correlate if one is mirrored left to right.

    Example:
        >>> gain_by_mirror(np.array([[[0.0, 1.0]]]), np.array([[[1.0, 0.0]]]))
        2.0
    """
    one, other = left.mean(axis=0), right.mean(axis=0)
    mirrored, as_it_is = (np.corrcoef(one.ravel(), x.ravel())[0, 1] for x in (other[:, ::-1], other))
    return float(mirrored - as_it_is)


def _main(labels: Int[np.ndarray, " n"], group: Int[np.ndarray, " m"]) -> int:
    return int(np.bincount(labels[group]).argmax())
