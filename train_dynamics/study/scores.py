"""Computes all scores of a recording: from one pass over its records, and from networks that are run again."""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

from train_dynamics.config import InputError, pluralise
from train_dynamics.data.batches import batch_indices
from train_dynamics.data.scaling import network_inputs
from train_dynamics.data.trees import Tree
from train_dynamics.dynamics.scores.registry import SCORES
from train_dynamics.dynamics.scores.relu import ReluNetwork
from train_dynamics.dynamics.scores.score import (
    EnsembleScore,
    Further,
    FurtherScore,
    Network,
    Records,
    ReplayedScore,
    Score,
    StreamedScore,
    Study,
)
from train_dynamics.recording.code import how_to_run
from train_dynamics.recording.reader import Block, Recording
from train_dynamics.study.motion import nearest

EARLY = 0.1  # of the run, as epoch 20 of 200 in the paper of EL2N and GraNd
FEW_EXAMPLES, WORTH = 1000, 10


@runtime_checkable
class Networks(Protocol):
    """A recording's trained networks, run again: see `train_dynamics.training.replay.Networks`."""

    def of(self, t: int) -> Sequence[Network]:
        """Return the networks of all seeds after `t` updates."""


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """How to compute scores.

    Attributes:
        iteration: Iteration at which to compute scores that are defined early in training. None means a tenth of the
            run.
        checkpoints: Number of iterations, evenly spread and including the last, at which networks are run again, and at
            which every score is evaluated as if recording had stopped there.
    """

    iteration: int | None = None
    checkpoints: int = 10

    def __post_init__(self) -> None:
        if self.checkpoints < 1:
            raise InputError.flag("score_checkpoints", self.checkpoints, "must be 1 or more")


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """The scores of every example.

    Attributes:
        study: What the scores know about the recording.
        scores: The scores that could be computed.
        missing: Why each other score could not, by name.
        values: Value of the ensemble, by name: the mean over seeds, or what all seeds together give.
        of_seeds: Value of each seed, by name, for scores that single seeds have.
        stopped: Value of the ensemble by name, had recording stopped at each checkpoint. NaN where it is not defined
            yet.
        probabilities: Class probabilities at the end, from which ensemble scores are computed.
    """

    study: Study
    scores: tuple[Score, ...]
    missing: dict[str, str]
    values: dict[str, Float[np.ndarray, " n"]]
    of_seeds: dict[str, Float[np.ndarray, "s n"]]
    stopped: dict[str, Float[np.ndarray, "checkpoint n"]]
    probabilities: Float[np.ndarray, "s n c"]

    def resampled(self, score: Score, counts: Float[np.ndarray, "draw s"]) -> Float[np.ndarray, "draw n"]:
        """Compute a score of the ensemble from draws of seeds, counting each as often as it was drawn."""
        if isinstance(score, EnsembleScore):
            return score.compute(self.probabilities, counts)
        return counts @ self.of_seeds[score.name] / counts.sum(axis=1, keepdims=True)


def study_of(recording: Recording, options: ScoreOptions, networks: Networks | None = None) -> Study:
    """Collect what scores can know about a recording, and whether its networks can be run again.

    Raises:
        InputError: If the iteration asked for was not recorded.
    """
    iterations = recording.iterations
    last = int(iterations[-1])
    if options.iteration is None:
        early = iterations[np.searchsorted(iterations, round(EARLY * last), side="right") - 1]
    elif options.iteration in iterations:
        early = options.iteration
    else:
        (near,) = nearest(iterations, np.array([options.iteration]))
        right = f"must be a recorded iteration, from 0 to {last}; the nearest is {near}"
        raise InputError.flag("score_iteration", options.iteration, right)
    checkpoints = nearest(iterations, np.linspace(0, last, options.checkpoints + 1).round().astype(int)[1:])
    config, num_examples = recording.config, len(recording.labels)
    first = network_inputs(recording.data.take(np.arange(1)), config)
    return Study(
        num_seeds=len(recording.seeds),
        num_examples=num_examples,
        iterations=iterations,
        epoch=config.iterations_per_epoch(num_examples),
        early=int(early),
        checkpoints=checkpoints[checkpoints > 0],
        learning_rate=float("nan") if isinstance(config.learning_rate, str) else config.learning_rate,
        further=recording.further is not None,
        replayable=networks is not None or recording.replayable,
        how_to_run=how_to_run(recording),
        of_loop=recording.of_loop,
        continuous=isinstance(first, np.ndarray) and first.dtype.kind == "f",
    )


def replay_seconds(recording: Recording, options: ScoreOptions, networks: Networks) -> dict[str, float]:
    """Estimate how many seconds each score that runs networks again will take, from a few examples and one network.

    The scores use what is compiled for it. Returns nothing if the estimate would take long compared with the scores.
    """
    study = study_of(recording, options, networks)
    few = np.arange(min(FEW_EXAMPLES, study.num_examples))
    if study.num_examples * study.num_seeds * len(study.checkpoints) < WORTH * len(few):
        return {}
    inputs, labels = network_inputs(recording.data.take(few), recording.config), recording.labels[few]
    network, seconds = networks.of(int(study.checkpoints[len(study.checkpoints) // 2]))[0], {}
    for score in SCORES:
        if not isinstance(score, ReplayedScore) or score.missing(study):
            continue
        for _ in range(2):  # the first one compiles
            began = time.perf_counter()
            score.compute([network], _flat(inputs), labels, study)
            once = time.perf_counter() - began
        seconds[score.name] = once * study.num_examples / len(few) * len(score.at(study)) * study.num_seeds
    return seconds


def _flat(inputs: Tree) -> Tree:
    """Flatten inputs that are a single array, as scores expect."""
    return inputs.reshape(len(inputs), -1) if isinstance(inputs, np.ndarray) else inputs


class ScorePass:
    """Computes all scores from the records, in order. Memory does not grow with their number.

    Args:
        recording: The recording.
        options: How to compute scores.
        scores: The scores.
        networks: Runs the networks again, for the scores that need it. Not needed for the default network.

    Raises:
        InputError: If the iteration asked for was not recorded.
    """

    def __init__(
        self,
        recording: Recording,
        options: ScoreOptions,
        scores: Sequence[Score] = SCORES,
        networks: Networks | None = None,
    ) -> None:
        self._recording = recording
        self._networks = networks
        self.study = study_of(recording, options, networks)
        reasons = {score.name: score.missing(self.study) for score in scores}
        self._missing = {name: reason for name, reason in reasons.items() if reason}
        self._scores = tuple(score for score in scores if not reasons[score.name])
        self._accumulators = {
            score.name: score.start(self.study) for score in self._scores if isinstance(score, StreamedScore)
        }
        self._stopped: dict[str, list[np.ndarray]] = {score.name: [] for score in self._scores}

    def add(self, records: Records) -> None:
        """Take in the next records."""
        places = np.flatnonzero(np.isin(records.iterations, self.study.checkpoints)) + 1
        start = 0
        for stop in sorted({*places.tolist(), len(records.iterations)}):
            part = records.part(start, stop)
            for accumulator in self._accumulators.values():
                accumulator.add(part)
            if stop in places:
                for name, accumulator in self._accumulators.items():
                    self._stopped[name].append(accumulator.value().mean(axis=0))
            start = stop

    def finish(self, replayed: Callable[[str], object] = lambda words: None) -> Scores:
        """Compute what is replayed and what is of the ensemble, and hand over all scores.

        Args:
            replayed: Called with words on how far it is.

        Raises:
            InputError: If the recording is damaged.
        """
        of_seeds = {name: accumulator.value() for name, accumulator in self._accumulators.items()}
        stopped = {name: np.stack(values) for name, values in self._stopped.items() if values}
        for score in self._scores:
            if isinstance(score, ReplayedScore):
                of_seeds[score.name], stopped[score.name] = self._replay(score, replayed)
        probabilities = [self._recording.probabilities(t) for t in self.study.checkpoints]
        if (further := self._recording.further) is not None:
            trained = Further(self._recording.labels, probabilities[-1], further.retrained, further.private)
            for score in self._scores:
                if isinstance(score, FurtherScore):
                    of_seeds[score.name] = score.compute(trained)
                    stopped[score.name] = np.full((len(self.study.checkpoints), self.study.num_examples), np.nan)
                    stopped[score.name][-1] = of_seeds[score.name].mean(axis=0)  # it went on from the end alone
        values = {name: value.mean(axis=0) for name, value in of_seeds.items()}
        everyone = np.ones((1, self.study.num_seeds))
        for score in self._scores:
            if isinstance(score, EnsembleScore):
                with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
                    found = threads.map(lambda p, score=score: score.compute(p, everyone)[0], probabilities)
                    stopped[score.name] = np.stack(list(found))
                values[score.name] = stopped[score.name][-1]
        return Scores(self.study, self._scores, self._missing, values, of_seeds, stopped, probabilities[-1])

    def _replay(
        self, score: ReplayedScore, replayed: Callable[[str], object]
    ) -> tuple[Float[np.ndarray, "s n"], Float[np.ndarray, "checkpoint n"]]:
        """Compute a score of each seed, and of the ensemble had recording stopped at each checkpoint."""
        at = score.at(self.study)
        of = self._relu_networks if self._networks is None else self._networks.of
        networks = [of(int(t)) for t in at]
        labels, inputs = self._recording.labels, _flat(self._recording.inputs())

        def of_seed(s: int) -> Float[np.ndarray, "checkpoint n"]:
            return score.compute([of_seeds[s] for of_seeds in networks], inputs, labels, self.study)

        # Networks that are handed in share the processors among themselves.
        workers = (os.cpu_count() or 1) if self._networks is None else 1
        with threadpool_limits(1), ThreadPoolExecutor(workers) as threads:
            found = np.zeros((len(at), len(labels)))
            last = []
            for values in threads.map(of_seed, range(self.study.num_seeds)):
                found += values / self.study.num_seeds
                last.append(values[-1].astype(np.float64))
                replayed(f"{score.name}: {len(last)} of {pluralise(self.study.num_seeds, 'seed')}")
        reached = np.searchsorted(at, self.study.checkpoints, side="right") - 1
        stopped = np.where(reached[:, None] >= 0, found[reached.clip(0)], np.nan)
        return np.stack(last), stopped

    def _relu_networks(self, t: int) -> list[ReluNetwork]:
        """Read the default network of every seed."""
        layers = self._recording.parameters(t)
        return [
            ReluNetwork({name: {part: value[s] for part, value in of.items()} for name, of in layers.items()})
            for s in range(self.study.num_seeds)
        ]


def batches(recording: Recording, block: Block) -> Int[np.ndarray, "s t b"]:
    """List the examples of the update after each record of a block, for each seed; -1 for none."""
    if recording.of_loop:  # which has batches of its own
        return np.full((len(recording.seeds), len(block.iterations), 1), -1)
    first, last = map(int, block.iterations[[0, -1]])
    span = len(recording.labels), first, min(last + 1, recording.num_iterations)
    found = np.stack([batch_indices(recording.config, int(seed), *span) for seed in recording.seeds])
    ended = np.full_like(found, -1, shape=(len(found), 1, found.shape[2]))  # no update follows the last record
    return np.concatenate([found, ended], axis=1)[:, block.iterations - first]
