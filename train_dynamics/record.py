"""Record a finished training run from its checkpoints.

    python -m train_dynamics.record --model=networks.py:cnn --checkpoints='runs/3/step_*' --recording=recordings/run3

This computes and records every example's gradient at each checkpoint. Then analyze the recording with
train_dynamics.analyze.
"""

from absl import flags

from train_dynamics.commands import config_from_flags, define_config_flags, print_line, run
from train_dynamics.config import InputError
from train_dynamics.progress import Progress

FIELDS = (
    *("dataset", "data_dir", "split", "inputs", "labels", "image_size", "input_scaling", "num_examples", "subset_seed"),
    *("pixel_mean", "pixel_std", "model", "loss", "hidden_sizes", "batch_size", "layers", "gradient_layout"),
    *("sketch_size", "eval_batch_size"),
)
RECORDING = flags.DEFINE_string("recording", None, "Directory to record into: a new one, or a recording to continue.")
CHECKPOINTS = flags.DEFINE_string(
    "checkpoints",
    None,
    "The checkpoints, with wildcards as in 'runs/3/step_*': Orbax directories, .npz or .safetensors files, or "
    ".msgpack files from Flax.",
)
ITERATION_PATTERN = flags.DEFINE_string(
    "iteration_pattern",
    None,
    "Regular expression with one group that finds the iteration in a checkpoint's name, or else in its path, as in "
    "'step_(\\d+)'. Default: the last number in the name.",
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the run. It tells recordings of the same examples apart.")


def main() -> None:
    """Run the command."""
    if not CHECKPOINTS.value:
        raise InputError.flag("checkpoints", None, "must name checkpoints, as in 'runs/3/step_*'")
    config = config_from_flags(FIELDS, first_seed=SEED.value, num_seeds=1, optimizer="unknown", learning_rate="unknown")
    import jax  # takes seconds to import, which a typing error should not

    from train_dynamics.data.datasets import load_dataset
    from train_dynamics.training.checkpoints import LAST_NUMBER, find_checkpoints, record_task
    from train_dynamics.training.sweep import enable_compilation_cache

    found = find_checkpoints(CHECKPOINTS.value, ITERATION_PATTERN.value or LAST_NUMBER)
    enable_compilation_cache()
    jax.config.update("jax_enable_x64", False)
    dataset = load_dataset(config)
    with Progress("Recording", len(found), "checkpoints") as bar:
        record_task(config, dataset, found, RECORDING.value, print_line, bar.update)


if __name__ == "__main__":
    define_config_flags(FIELDS)
    run("record", main)
