"""The cones of one seed at one iteration of a recording, and what happens to them."""

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, Int

from train_dynamics.config import InputError
from train_dynamics.dynamics import cones
from train_dynamics.dynamics.tiles import ROUNDING, apart, tiles
from train_dynamics.recording.reader import Recording
from train_dynamics.study.motion import Frame, frames

COVERS = {"clique": cones.clique_cover, "star": cones.star_cover}
HALF_LEARNED, TWO_LEARNED = 0.5, 0.75
NUM_TRACKED = 240


@dataclasses.dataclass(frozen=True)
class ConeOptions:
    """Which cones to look for.

    Attributes:
        cosine: Smallest cosine between the members of a cone, or between a member and the star's centre.
        cover: `clique` or `star`.
        seed: The seed. None means the first recorded one.
        iteration: The iteration. None means that of `half_learned`: at the start, gradients are alike because nothing
            has been learned, and at the end most have nearly vanished.
    """

    cosine: float = 0.95
    cover: str = "clique"
    seed: int | None = None
    iteration: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.cosine < 1:
            raise InputError.flag("cone_cosine", self.cosine, "must be between 0 and 1")
        if self.cover not in COVERS:
            raise InputError.flag("cone_cover", self.cover, f"must be one of {', '.join(COVERS)}")


@dataclasses.dataclass(frozen=True, eq=False)
class Cones:
    """The cones of one layer.

    Attributes:
        seed: The seed.
        layer: The layer whose gradients they are made from.
        frame: All examples in this layer, at the iteration of the cones.
        cone: The cone of each example, numbered from 0 for the largest; -1 for examples whose gradient is zero.
        smallest_cosine: Smallest cosine between two members of each cone; 1 in a cone of one.
        tracked: Frames of the layer, evenly spaced over the whole run.
    """

    seed: int
    layer: str
    frame: Frame
    cone: Int[np.ndarray, " n"]
    smallest_cosine: Float[np.ndarray, " cone"]
    tracked: Sequence[Frame]

    @property
    def sizes(self) -> Int[np.ndarray, " cone"]:
        """Number of members of each cone."""
        return np.bincount(self.cone[self.cone >= 0])

    def members(self, cone: int) -> Int[np.ndarray, " m"]:
        """List the examples of a cone."""
        return np.flatnonzero(self.cone == cone)


def read_factors(recording: Recording, layer: str, t: int) -> list[tuple[Float[np.ndarray, "n _"], ...]]:
    """Read what each seed's gradients are made from: activation and cotangent, or flat gradients."""
    parts = recording.vectors(layer, t)
    return [tuple(part[s % len(part)] for part in parts) for s in range(len(recording.seeds))]


def find_cones(recording: Recording, options: ConeOptions, accuracy: Float[np.ndarray, "s t"]) -> list[Cones]:
    """Cover the examples with cones, in each recorded layer.

    Args:
        recording: The recording.
        options: Which cones to look for.
        accuracy: Training accuracy of each seed and iteration. It decides the default iteration.

    Raises:
        InputError: If the seed or the iteration was not recorded.
    """
    check_options(recording, options)
    seed = shown_seed(recording, options)
    s = int(np.flatnonzero(recording.seeds == seed)[0])
    t = (
        int(recording.iterations[half_learned(accuracy[s], len(recording.class_names))])
        if options.iteration is None
        else options.iteration
    )
    times = recording.iterations[np.unique(np.linspace(0, recording.num_records - 1, NUM_TRACKED).astype(int))]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        read = list(threads.map(lambda time: next(frames(recording, seed, [time])), [t, *times]))
    found = []
    for k, layer in enumerate(recording.layers):
        if layer not in recording.gradient_layers:
            continue
        cone, smallest = cover(cones.directions(*read_factors(recording, layer, t)[s]), options)
        here, *tracked = (_of_layer(frame, k) for frame in read)
        found.append(Cones(seed, layer, here, cone, smallest, tracked))
    return found


def shown_seed(recording: Recording, options: ConeOptions) -> int:
    """Return the seed that is shown: the one asked for, or the first."""
    return int(recording.seeds[0]) if options.seed is None else options.seed


def check_options(recording: Recording, options: ConeOptions) -> None:
    """Check that the seed and the iteration asked for were recorded.

    Raises:
        InputError: If they were not.
    """
    if options.seed is not None and options.seed not in recording.seeds:
        known = ", ".join(map(str, recording.seeds))
        raise InputError.flag("cone_seed", options.seed, f"must be one of the seeds recorded: {known}")
    if options.iteration is not None and options.iteration not in recording.iterations:
        last = recording.iterations[-1]
        every = "" if recording.num_records == last + 1 else f", and one of the {recording.num_records} recorded"
        raise InputError.flag("cone_iteration", options.iteration, f"must be from 0 to {last}{every}")


def cover(
    directions: cones.Directions, options: ConeOptions
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " cone"]]:
    """Cover examples with cones, and measure how wide each opens. A clique below the threshold is an error."""
    sets = apart(tiles(directions), options.cosine)
    cone = cones.cover_apart(directions, sets, options.cosine, COVERS[options.cover])
    smallest = cones.smallest_cosines(directions, cone)
    if options.cover == "clique" and (smallest < options.cosine - ROUNDING).any():
        raise RuntimeError(f"a cone opens wider than {options.cosine}: {smallest.min()}")
    return cone, smallest


def half_learned(accuracy: Float[np.ndarray, " t"], num_classes: int = 0) -> int:
    """Find the first record at which half of the examples are correct; with two classes, three quarters.

    With two classes, half of the examples are correct by chance, before anything is learned. If there is no such
    record, the last one is returned. A number of classes of 0 stands for a regression.
    """
    learned = accuracy >= (TWO_LEARNED if num_classes == 2 else HALF_LEARNED)
    return int(learned.argmax()) if learned.any() else len(accuracy) - 1


def _of_layer(frame: Frame, k: int) -> Frame:
    one = slice(k, k + 1)
    return frame._replace(norm=frame.norm[one], cosine=frame.cosine[one], mean_norm=frame.mean_norm[one])
