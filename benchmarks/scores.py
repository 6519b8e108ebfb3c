"""Time what each score, and group dynamics, cost in an analysis: processor seconds, all threads together.

    python -m benchmarks.scores [--recording=recordings/mini_mnist]

What scores have in common, above all reading the recording and the norms of the gradients, is in the line "the pass and
the replay, all in all", which the study's own curves need too.
"""

import dataclasses
import functools
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from absl import app, flags

from train_dynamics.dynamics.scores.registry import SCORES
from train_dynamics.dynamics.scores.score import Accumulator, Records, Score, StreamedScore, Study
from train_dynamics.recording.reader import Recording
from train_dynamics.study import results
from train_dynamics.study.groups import GroupStudy
from train_dynamics.study.scores import ScorePass

RECORDING = flags.DEFINE_string("recording", "recordings/mini_mnist", "A finished recording.")
SECONDS: dict[str, list[float]] = defaultdict(list)


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Note the processor time of every call, in whatever thread."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        began = time.thread_time()
        try:
            return function(*arguments, **options)
        finally:
            SECONDS[name].append(time.thread_time() - began)

    return call


@dataclasses.dataclass
class TimedAccumulator:
    """An accumulator that is timed."""

    name: str
    accumulator: Accumulator

    def add(self, records: Records) -> None:
        """Take in the next records."""
        timed(self.name, self.accumulator.add)(records)

    def value(self) -> Any:
        """Give the score."""
        return timed(self.name, self.accumulator.value)()


def timed_score(score: Score) -> Score:
    """Make a score that is timed."""
    if not isinstance(score, StreamedScore):
        return dataclasses.replace(score, compute=timed(score.name, score.compute))

    def start(study: Study) -> Accumulator:
        return TimedAccumulator(score.name, score.start(study))

    return dataclasses.replace(score, start=start)


def main(_: list[str]) -> None:
    results.ScorePass = functools.partial(ScorePass, scores=tuple(map(timed_score, SCORES)))
    for method in ("sums", "measure"):
        setattr(GroupStudy, method, timed("group dynamics", getattr(GroupStudy, method)))
    results.OpposingSignals.add = timed("opposing signals", results.OpposingSignals.add)
    began = time.process_time()
    results.compute(Recording(RECORDING.value))
    print(f"{'the pass and the replay, all in all':36}{time.process_time() - began:8.2f} s")
    for name in (*(score.name for score in SCORES), "group dynamics", "opposing signals"):
        print(f"{name:36}{sum(SECONDS[name]):8.2f} s" if name in SECONDS else f"{name:36}       -")


if __name__ == "__main__":
    app.run(main)
