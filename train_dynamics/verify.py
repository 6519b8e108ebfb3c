"""Check that a recording is complete and correct.

    python -m train_dynamics.verify --recording=recordings/mini_mnist

The exit status is 0 if it is, and 1 if it is not. Every problem is then printed on a line of its own.
"""

import sys

from absl import flags

from train_dynamics.commands import NumberParser, define_code_flags, print_line, run
from train_dynamics.config import InputError, pluralise
from train_dynamics.progress import Progress
from train_dynamics.recording.code import how_to_run, may_run
from train_dynamics.recording.reader import opened
from train_dynamics.recording.verification import Verification, verify

RECORDING = flags.DEFINE_string("recording", "recordings/mini_mnist", "Recording to check.")
flags.DEFINE(
    NumberParser(int),
    "samples",
    100,
    "Number of (seed, iteration) pairs whose gradients are computed again, for up to 64 examples each. 0 only "
    "compares checksums.",
)
flags.DEFINE(NumberParser(int), "sample_seed", 0, "Seed for drawing those pairs.")
MODEL, LOSS = define_code_flags(", to compare its results with what is stored")
MOST_SHOWN = 8


def main() -> None:
    """Run the command."""
    for name in ("samples", "sample_seed"):
        if flags.FLAGS[name].value < 0:
            raise InputError.flag(name, flags.FLAGS[name].value, "must be 0 or more")
    recording = opened(RECORDING.value)
    networks = None
    allowed = may_run(recording, MODEL.value, LOSS.value)
    runs = allowed and not recording.replayable and flags.FLAGS.samples
    if runs and recording.num_records and not recording.data_problems:
        from train_dynamics.training.replay import for_command  # takes seconds to import

        networks = for_command(recording, MODEL.value, LOSS.value)
    with Progress("Checking", sum(part.num_records for part in recording.parts), "records") as bar:
        found = verify(
            recording,
            flags.FLAGS.samples,
            flags.FLAGS.sample_seed,
            lambda block: bar.update(len(block.iterations)),
            networks,
        )
    if found.problems:
        sys.exit("\n".join(f"verify: {problem}" for problem in found.problems))
    records, seeds = pluralise(recording.num_records, "record"), pluralise(len(recording.seeds), "seed")
    print_line(f"{recording.path}: all {records} of {seeds} are there")
    print_line(f"The checksums of all {found.num_bytes / 1e9:.2g} GB are right")
    if recording.further is not None:
        print_line("The results of train_dynamics.further are there, and their checksums are right")
    if not allowed and flags.FLAGS.samples:
        print_line(f"No gradient was computed again, because that would run your own code; {how_to_run(recording)}")
    if found.num_compared:
        _print_compared(found, "float64" if networks is None else networks.precision, recording.contents.classes)


def _print_compared(found: Verification, precision: str, classes: bool) -> None:
    """Print how many gradients were computed again, and how far they are from what is stored."""
    errors = {name: error for name, error in found.errors.items() if name != "prediction"}
    shown = sorted(errors, key=errors.get, reverse=True)[:MOST_SHOWN]
    listed = ", ".join(f"{name} {error:.1e}" for name, error in errors.items() if name in shown)
    less = f", and less in {len(errors) - len(shown)} others" if len(errors) > len(shown) else ""
    same = "; all predictions are the same" if classes else ""
    print_line(
        f"{found.num_compared:,} gradients were computed again, in {precision}. Largest differences, relative to the "
        f"largest value: {listed}{less}{same}"
    )
    if found.num_undecided:
        print_line(
            f"Left out: {found.num_undecided:,} gradients at a kink of a ReLU, where rounding decides the gradient"
        )


if __name__ == "__main__":
    run("verify", main)
