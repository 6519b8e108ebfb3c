"""Check that a recording is whole and right.

    python -m train_dynamics.verify --recording=recordings/mini_mnist

Exit status 0 if it is; 1 if it is not, and then every damage is named in a line of its own.
"""

import sys

from absl import flags
from tqdm import tqdm

from train_dynamics.commands import NumberParser, print_line, run
from train_dynamics.config import InputError, pluralise
from train_dynamics.recording.reader import Recording
from train_dynamics.recording.verification import verify

RECORDING = flags.DEFINE_string("recording", "recordings/mini_mnist", "Recording to check.")
flags.DEFINE(
    NumberParser(int),
    "samples",
    100,
    "Pairs of seed and iteration to compute again, with up to 64 examples each; 0 only compares checksums.",
)
flags.DEFINE(NumberParser(int), "sample_seed", 0, "Seed of the draw of those.")


def main() -> None:
    """Run the command."""
    for name in ("samples", "sample_seed"):
        if flags.FLAGS[name].value < 0:
            raise InputError.flag(name, flags.FLAGS[name].value, "must be 0 or more")
    recording = Recording(RECORDING.value)
    with tqdm(total=recording.num_records, unit="it", disable=None, dynamic_ncols=True) as bar:
        found = verify(
            recording, flags.FLAGS.samples, flags.FLAGS.sample_seed, lambda block: bar.update(len(block.iterations))
        )
    if found.problems:
        sys.exit("\n".join(f"verify: {problem}" for problem in found.problems))
    records, seeds = pluralise(recording.num_records, "record"), pluralise(len(recording.seeds), "seed")
    print_line(f"{recording.path}: all {records} of {seeds} are there")
    print_line(f"The checksums of all {found.num_bytes / 1e9:.2g} GB are right")
    if recording.further is not None:
        print_line("What train_dynamics.further stored is there, and its checksums are right")
    if not recording.replayable and flags.FLAGS.samples:
        print_line(
            f"No gradient was computed again: that would run {recording.config.model}, which this command does not"
        )
    if found.num_compared:
        errors = ", ".join(f"{name} {error:.1e}" for name, error in found.errors.items() if name != "prediction")
        print_line(
            f"{found.num_compared:,} gradients were computed again, in float64. Largest differences, over the largest "
            f"value: {errors}; all predictions are the same"
        )


if __name__ == "__main__":
    run("verify", main)
