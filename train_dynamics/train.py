"""Train a network from several seeds and record every example's gradient at every iteration.

    python -m train_dynamics.train --recording=recordings/mini_mnist

The same command again goes on where an interrupted one ended.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from train_dynamics.config import InputError, StudyConfig, flag_name

FLAGS = flags.FLAGS
RECORDING = flags.DEFINE_string(
    "recording", "recordings/mini_mnist", "Directory to record into; a recording of the same flags there is continued."
)


def define_flags() -> None:
    """Define a flag for each field of the configuration."""
    for field in dataclasses.fields(StudyConfig):
        define = {bool: flags.DEFINE_boolean, int: flags.DEFINE_integer, float: flags.DEFINE_float}.get(
            type(field.default), flags.DEFINE_string
        )
        if field.name == "num_examples":
            define = flags.DEFINE_integer
        elif isinstance(field.default, tuple):
            define = flags.DEFINE_list
        default = list(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        define(flag_name(field.name), default, field.metadata["help"])


def config_from_flags() -> StudyConfig:
    """Read the configuration off the flags.

    Raises:
        InputError: If a value is malformed, out of range or contradicts another.
    """
    values: dict[str, Any] = {
        field.name: FLAGS[flag_name(field.name)].value for field in dataclasses.fields(StudyConfig)
    }
    try:
        values["hidden_sizes"] = tuple(int(size) for size in values["hidden_sizes"])
    except ValueError:
        raise InputError.flag(
            "hidden_sizes", tuple(values["hidden_sizes"]), "must be whole numbers, comma separated, for example 32,16"
        ) from None
    values["layers"] = tuple(values["layers"])
    return StudyConfig(**values)


def main(argv: list[str]) -> None:
    """Run the command."""
    try:
        if len(argv) > 1:
            raise InputError(f"{argv[1]!r} is no flag; flags look like --epochs=30")
        config = config_from_flags()
        logging.set_verbosity(logging.ERROR)  # Orbax notes every save, JAX every device that is not there
        from train_dynamics import sweep  # imports JAX, which takes seconds that a typing error should not

        sweep.train(config, Path(RECORDING.value))
    except InputError as error:
        sys.exit(f"train: {error}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
