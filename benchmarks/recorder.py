"""What recording costs a training loop: the loops of examples/, alone, and with records of every iteration.

    python -m benchmarks.recorder [--steps=60] [--rounds=3]

For each loop, seconds an iteration and as ratios to the loop alone: with one evaluation of all examples, which is the
floor of anything that looks at all of them; with the measures of all layers; with exact factors of the last layer.
Compilation is left out; all four take turns. Then how memory grows with iterations.
"""

import argparse
import importlib.util
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")  # for the loop over several

import jax

import train_dynamics as td
from train_dynamics.training.models import split

EXAMPLES = Path(__file__).parents[1] / "examples"
LOOPS = {
    "nnx_loop": "head/kernel",
    "equinox_loop": "mlp/layers/1/weight",
    "linen_loop": "head/kernel",
    "devices_loop": "head",
}
WARM = 10  # iterations before the clock starts


class Clock:
    """Stands for the recorder in a loop: times what happens from one call to the next."""

    def __init__(self, path: str, loss: Any, examples: Any, **options: Any) -> None:
        self.began = self.ended = self.calls = 0
        self.memory: list[int] = []

    def __enter__(self) -> "Clock":
        return self

    def __exit__(self, *_: Any) -> None:
        self.ended = time.perf_counter()

    def record(self, t: int, *model: Any) -> None:
        """Do what there is to do, between two looks at the clock."""
        if t == WARM:
            jax.block_until_ready(split(*model).arrays)
            self.began = time.perf_counter()
        self.calls = t
        self.do(t, *model)
        self.memory.append(resident())

    def do(self, t: int, *model: Any) -> None:
        """Do nothing."""


class Floor(Clock):
    """Evaluates all examples, and keeps nothing."""

    def __init__(self, path: str, loss: Any, examples: Any, **options: Any) -> None:
        super().__init__(path, loss, examples)
        self.loss, self.examples, self.program = loss, examples, None

    def do(self, t: int, *model: Any) -> None:
        """Evaluate."""
        found = split(*model)
        if self.program is None:

            def losses(parameters: Any, variables: Any, hidden: Any, examples: Any) -> Any:
                loss = found._replace(hidden=hidden).bound(self.loss)
                return jax.vmap(lambda example: loss(parameters, example, variables)[0])(examples)

            self.program = jax.jit(losses)
        jax.block_until_ready(self.program(*found.arrays, self.examples))


def recording_with(options: dict[str, Any]) -> type[Clock]:
    """Make a stand-in that records after all, with other options."""

    class Recording(Clock):
        def __init__(self, path: str, loss: Any, examples: Any, **others: Any) -> None:
            super().__init__(path, loss, examples)
            self.recorder = REAL(path, loss, examples, log=lambda line: None, **options)

        def do(self, t: int, *model: Any) -> None:
            self.recorder.record(t, *model)

        def __exit__(self, *raised: Any) -> None:
            self.recorder.close()  # with what is still to be stored
            super().__exit__(*raised)

    return Recording


REAL = td.Recorder


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def timed(loop: Any, kind: type[Clock], steps: int) -> tuple[float, list[int]]:
    """Run a loop with something in the recorder's place: seconds an iteration, and memory after each."""
    made = []

    def make(*arguments: Any, **options: Any) -> Clock:
        made.append(kind(*arguments, **options))
        return made[0]

    td.Recorder = make
    with tempfile.TemporaryDirectory() as room:
        loop.main(f"{room}/recording", steps, 2000)
    return (made[0].ended - made[0].began) / (steps - WARM), made[0].memory


def main() -> None:
    """Print a row for each loop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print("| loop | alone | one evaluation | measures of all layers | factors of the head | memory, MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, head in LOOPS.items():
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        loop = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loop)
        kinds = {
            "alone": Clock,
            "floor": Floor,
            "measures": recording_with({"layers": "all", "gradient_layout": "measures"}),
            "head": recording_with({"layers": head}),
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(options.rounds):
            for kind, stand_in in kinds.items():
                took, memory = timed(loop, stand_in, options.steps)
                seconds[kind].append(took)
        median = {kind: statistics.median(values) for kind, values in seconds.items()}
        cells = [f"{1e3 * median[kind]:.1f} ms, {median[kind] / median['alone']:.1f}" for kind in kinds]
        half = len(memory) // 2
        print(f"| {name} | {' | '.join(cells)} | {memory[half] / 1e6:.0f}, {memory[-1] / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()
