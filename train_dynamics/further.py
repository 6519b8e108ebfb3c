"""Train the networks of a recording further, and again under privacy, for the two scores that need it.

    python -m train_dynamics.further --recording=recordings/mini_mnist

The results are stored in further/ inside the recording, and train_dynamics.analyze computes the two scores from them.
DP-SGD holds the gradients of one batch of every seed on a device at once, which takes seeds x batch size x weights x 4
bytes.
"""

import os
import sys

from absl import flags

from train_dynamics.commands import NumberParser, print_line, run, stop_on_signals
from train_dynamics.config import InputError
from train_dynamics.recording.reader import Recording
from train_dynamics.recording.remote import check_local

RECORDING = flags.DEFINE_string(
    "recording", "recordings/mini_mnist", "Finished recording whose networks are trained further."
)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Directory of prepared TFDS data sets. Default: the recorded one.")
HOLDOUT_SPLIT = flags.DEFINE_string("holdout_split", "test", "Split of the data set to train the networks further on.")
HOLDOUT_EPOCHS = flags.DEFINE(
    NumberParser(int), "holdout_epochs", None, "Passes over that split. Default: as many epochs as were recorded."
)
GRADIENT_CLIP = flags.DEFINE(
    NumberParser(float),
    "gradient_clip",
    8.0,
    "Under DP-SGD, clip every example's gradient to this L2 norm, over all weights together, in nats per unit of "
    "weight.",
)
NOISE_MULTIPLIERS = flags.DEFINE_list(
    "noise_multipliers",
    ["1", "2", "4", "8", "16", "32"],
    "Noise levels of DP-SGD, comma separated: standard deviation of the noise added to the sum of a batch's "
    "gradients, divided by --gradient_clip.",
)


def main() -> None:
    """Run the command."""
    check_local(RECORDING.value)
    recording = Recording(RECORDING.value)
    if not recording.finished:
        raise InputError.flag("recording", recording.path, "is unfinished; let train_dynamics.train finish it first")
    if len(recording.labels) < 2:
        raise InputError.flag(
            "recording", recording.path, "has only one example, and scores compare examples with each other"
        )
    if not recording.replayable:
        right = "further training works for the default network and loss only"
        raise InputError.flag("recording", recording.path, f"was made with {recording.config.model}; {right}")
    if recording.config.holdout_folds is not None:
        right = "further training works only for networks that were trained on all examples"
        raise InputError.flag("recording", recording.path, f"was made with --holdout_folds; {right}")
    if not os.access(recording.path, os.W_OK):
        raise InputError.flag(
            "recording", recording.path, "cannot be written to, and the results go into further/ inside it"
        )
    try:
        noise_multipliers = tuple(float(value) for value in NOISE_MULTIPLIERS.value)
    except ValueError:
        raise InputError.flag(
            "noise_multipliers", tuple(NOISE_MULTIPLIERS.value), "must be numbers, comma separated, for example 1,4,16"
        ) from None
    import jax  # takes seconds to import, which a typing error should not

    from train_dynamics.training.further import FurtherConfig, held_out, train_further
    from train_dynamics.training.sweep import enable_compilation_cache

    config = FurtherConfig(HOLDOUT_SPLIT.value, HOLDOUT_EPOCHS.value, GRADIENT_CLIP.value, noise_multipliers)
    if recording.further is not None:
        there, asked = recording.further.settings, config.to_dict()
        different = [
            f"{name}: {there.get(name)} and not {asked[name]}" for name in asked if there.get(name) != asked[name]
        ]
        if different:
            raise InputError(
                f"{recording.path / 'further'} was made with other settings ({'; '.join(different)}); move it "
                "elsewhere first"
            )
        print_line(f"{recording.path / 'further'} is there already; nothing to do")
        return
    holdout = held_out(recording.config, config, DATA_DIR.value)
    noted = stop_on_signals("further: stopping after this epoch; a second signal stops it at once")
    enable_compilation_cache()
    jax.config.update("jax_enable_x64", False)
    with recording.writing():
        found = train_further(recording, config, holdout, log=print_line, stop=lambda: bool(noted))
        if found is None:
            print("further: interrupted; nothing was stored", file=sys.stderr)
            sys.exit(128 + noted[0])
        recording.save_further(found)
    print_line(f"Stored {recording.path / 'further'}; train_dynamics.analyze computes the scores from it")


if __name__ == "__main__":
    run("further", main)
