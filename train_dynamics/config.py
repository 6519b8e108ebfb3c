"""The settings that decide what a recording contains. They are checked once and stored with it."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

MOST_RECORDS = 100_000_000  # the iterations to record are listed in memory before the first
LARGEST_IMAGE = 4096
SCALINGS = ("auto", "pixels", "columns", "none")


LAYOUTS = ("factored", "dense", "sketch", "measures")


class InputError(ValueError):
    """A mistake in the user's input. Its text is one line that says what is expected."""

    @classmethod
    def flag(cls, name: str, value: Any, expected: str) -> "InputError":
        """Name the flag, its value and what is expected."""
        if isinstance(value, tuple):
            value = ",".join(map(str, value))
        return cls(f"--{name}={'' if value is None else value}: {expected}")


def pluralise(count: int, noun: str) -> str:
    """Write a count with its noun, in the plural unless the count is one.

    Example:
        >>> pluralise(1, "seed"), pluralise(6000, "example")
        ('1 seed', '6,000 examples')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def bytes_in_words(count: int) -> str:
    """Write a number of bytes in a readable unit.

    Example:
        >>> bytes_in_words(2500)
        '2.5 kB'
    """
    unit = next((unit for unit in ("GB", "MB", "kB") if count >= 1000 ** (" kMG".index(unit[0]))), "B")
    return f"{count} B" if unit == "B" else f"{count / 1000 ** ' kMG'.index(unit[0]):.1f} {unit}"


def time_in_words(seconds: float) -> str:
    """Write a duration in a readable unit.

    Example:
        >>> time_in_words(16.2), time_in_words(4000)
        ('16 s', '67 min')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _field(default: Any, help: str, since: int = 4, **kwargs: Any) -> Any:
    """Describe a field. Recordings in a format older than `since` do not store it; they used its default."""
    return dataclasses.field(default=default, metadata={"help": help, "since": since}, **kwargs)


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """The settings of one study: data, network, training, and what is recorded.

    Every field has a flag of the same name in `train_dynamics.train`, except `num_seeds`, which is `--seeds`. Two
    configurations are equal if they give the same recording. `data_dir` and `eval_batch_size` do not count, because
    they do not change what is recorded.

    Raises:
        InputError: If a value is out of range, or if two values contradict each other.

    Example:
        >>> StudyConfig(hidden_sizes=(32, 16), layers=("fc2",)).layer_names
        ('fc1', 'fc2', 'fc3')
    """

    dataset: str = _field(
        "mini_mnist",
        "Data set. Either mini_mnist, which comes with the package; or any TFDS data set by name (mnist, cifar10, "
        "NAME/CONFIG, NAME:VERSION); or an .npz file; or a .csv or .parquet table; or a directory with one "
        "sub-directory of PNG or JPEG images per class; or MODULE:FUNCTION or FILE.py:FUNCTION, a function that "
        "returns arrays.",
    )
    data_dir: str | None = _field(
        None,
        "Directory of prepared TFDS data sets. Default: TFDS's own directory.",
        compare=False,
    )
    split: str = _field(
        "train",
        "Split of the data set to train on and record, or parts of splits: train[:50%], train[100:200], "
        "train+test. Data sets that are not from TFDS have one split, train.",
    )
    inputs: str = _field(
        "",
        "What the network sees: a TFDS feature, an array of an .npz file, or columns of a table, comma separated. "
        "Default: the feature 'image', the array 'inputs', or all columns except the labels.",
        since=5,
    )
    labels: str = _field(
        "",
        "What the network learns to predict: a TFDS feature, an array of an .npz file, or a column of a table. "
        "Default: the feature 'label' or the array 'labels'; a table has no default. Whole numbers and words are "
        "classes; numbers with a decimal point are targets of a regression.",
        since=5,
    )
    image_size: int | None = _field(
        None, "Height and width to resize images to, in pixels. Default: no resizing.", since=5
    )
    input_scaling: str = _field(
        "auto",
        "How to scale inputs for the network. 'pixels': 8 or 16 bits to [0, 1], then by --pixel_mean and "
        "--pixel_std. 'columns': each column to mean 0 and standard deviation 1. 'none': no scaling. 'auto': "
        "images like 'pixels', tables like 'columns', anything else not at all.",
        since=5,
    )
    num_examples: int | None = _field(
        None, "Number of examples to draw, uniformly and without replacement. Default: the whole split."
    )
    subset_seed: int = _field(
        0, "Seed for drawing --num_examples and --label_noise. Every training seed gets the same examples."
    )
    label_noise: float = _field(
        0.0,
        "Share of the labels to flip, in [0, 1), each to another class drawn uniformly. The networks train on the "
        "flipped labels, and the recording stores which ones were flipped.",
    )
    pixel_mean: float = _field(0.1307, "Mean to subtract from pixels scaled to [0, 1].")
    pixel_std: float = _field(0.3081, "Standard deviation to divide by after subtracting --pixel_mean.")
    model: str = _field(
        "mlp",
        "Network: mlp, or module:attribute or file.py:attribute. The attribute is a Flax Linen module, a function "
        "of rngs that makes a Flax NNX module, or a train_dynamics.Task.",
        since=5,
    )
    loss: str = _field(
        "",
        "Loss of one example: softmax_cross_entropy or another loss from Optax, or module:function or "
        "file.py:function, called with the network's output and the label. Default: softmax cross-entropy for "
        "classes, squared error for targets.",
        since=5,
    )
    hidden_sizes: tuple[int, ...] = _field(
        (8,),
        "Widths of the hidden layers of the mlp, in units, comma separated. Empty gives a linear model with the "
        "single layer fc1.",
    )
    initial: str = _field(
        "",
        "Initial weights for all seeds: a .npz or .safetensors file, or an Orbax checkpoint. The seeds then differ "
        "only in the order of their batches. Default: each seed draws its own.",
        since=5,
    )
    optimizer: str = _field(
        "sgd",
        "Optimizer: a name from Optax, with arguments if needed, as in adamw(weight_decay=0.01); or "
        "module:function or file.py:function, called with the learning rate.",
        since=5,
    )
    learning_rate: float | str = _field(
        0.01,
        "Learning rate: a number, or an Optax schedule with its arguments, as in "
        "cosine_decay_schedule(init_value=0.1,decay_steps=1000).",
    )
    momentum: float = _field(0.0, "Momentum of sgd, in [0, 1). 0 is plain SGD.")
    nesterov: bool = _field(False, "Use Nesterov momentum.")
    batch_size: int = _field(
        128,
        "Examples per batch. The last batch of an epoch may be smaller. A number above the number of examples puts "
        "all of them into one batch.",
    )
    epochs: int = _field(30, "Passes over the examples.")
    holdout_folds: int | None = _field(
        None,
        "Split the examples into this many equal folds, and train each seed without one of them, in turn. All "
        "examples are still recorded, so that you have predictions for examples a network never saw, which finding "
        "wrong labels needs.",
        since=6,
    )
    num_seeds: int = _field(10, "Number of seeds, that is, of training runs.")
    first_seed: int = _field(0, "First seed. The others count up from it.")
    layers: tuple[str, ...] = _field(
        ("fc2",),
        "Layers whose per-example gradients are recorded, comma separated. For the mlp: fc1 (at the inputs), fc2 "
        "and so on. For any model: parameters by path, with wildcards as in conv1/*; or all, the default for any "
        "model but the mlp.",
    )
    record_every: int = _field(
        1, "Record once per this many updates. The first and the last iteration are always recorded."
    )
    records_per_doubling: int | None = _field(
        None,
        "Instead of --record_every, record less and less often: every iteration up to twice this number, every "
        "second one up to four times it, every fourth one up to eight times it, and so on.",
    )
    eval_batch_size: int | None = _field(
        None,
        "Examples to evaluate at a time. Fewer need less memory. Default: all at once, which is fastest.",
        compare=False,
    )
    gradient_layout: str = _field(
        "factored",
        "How to store gradients. 'factored': as activation and cotangent, which is exact and small. 'dense': in "
        "the parameter's own shape, for every example. 'sketch': as a random projection. 'measures': only the "
        "norm, the product with the mean gradient, and the alignment. Choose by layer as in "
        "conv*:measures,head/kernel:factored.",
    )
    sketch_size: int = _field(256, "Length of a gradient's sketch, in numbers.", since=5)

    def __post_init__(self) -> None:
        self._require("dataset", bool(self.dataset), "must name a data set, for example mini_mnist or mnist")
        self._require("split", bool(self.split), "must name a split, for example train or test")
        self._require("input_scaling", self.input_scaling in SCALINGS, f"must be one of {', '.join(SCALINGS)}")
        if self.image_size is not None:
            self._require_int("image_size", 1, LARGEST_IMAGE)
        for name in ("batch_size", "epochs", "num_seeds", "record_every"):
            self._require_int(name, 1)
        if self.holdout_folds is not None:
            self._require_int("holdout_folds", 2)
        for name in ("num_examples", "records_per_doubling", "eval_batch_size"):
            if getattr(self, name) is not None:
                self._require_int(name, 1)
        for name in ("subset_seed", "first_seed"):
            self._require_int(name, 0, 2**31 - 1)
        self._require("num_seeds", self.first_seed + self.num_seeds <= 2**31, "the last seed must be below 2147483648")
        self._require(
            "hidden_sizes",
            all(isinstance(size, int) and size > 0 for size in self.hidden_sizes),
            "must be positive whole numbers, comma separated, for example 32,16",
        )
        self._require("label_noise", 0 <= self.label_noise < 1, "must be at least 0 and below 1")
        self._require_float("pixel_mean", math.isfinite, "must be a finite number")
        self._require_float("pixel_std", lambda value: value > 0, "must be a positive number")
        if not isinstance(self.learning_rate, str):
            self._require_float("learning_rate", lambda value: value > 0, "must be a positive number")
        self._require_float("momentum", lambda value: 0 <= value < 1, "must be at least 0 and below 1")
        self._require("nesterov", not self.nesterov or self.momentum > 0, "needs a --momentum above 0")
        self._require(
            "momentum",
            not self.momentum or self.optimizer == "sgd",
            "works with sgd only; give other optimizers their own, as in adamw(b1=0.9)",
        )
        if self.model != "mlp" and self.layers == FIELDS["layers"].default:
            object.__setattr__(self, "layers", ("all",))
        known = ", ".join(self.layer_names)
        paths = all(name == "all" or "/" in name or "*" in name for name in set(self.layers) - set(self.layer_names))
        self._require(
            "layers",
            bool(self.layers) and (paths or self.model != "mlp"),
            f"must be one or more of {known}, comma separated, or parameters by path, or all",
        )
        self._require("layers", len(set(self.layers)) == len(self.layers), "names a layer twice")
        self._require(
            "records_per_doubling",
            self.records_per_doubling is None or self.record_every == 1,
            "cannot be combined with --record_every",
        )
        self._require(
            "gradient_layout",
            all(layout in LAYOUTS for _, layout in self.layout_rules),
            f"must be {', '.join(LAYOUTS[:-1])} or {LAYOUTS[-1]}, or by layer as in conv*:measures,head*:factored",
        )
        self._require_int("sketch_size", 2)

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InputError.flag(flag_name(name), getattr(self, name), expected)

    def _require_int(self, name: str, least: int, most: int | float = math.inf) -> None:
        value = getattr(self, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        bound = f"{least} or more" if most == math.inf else f"between {least} and {most}"
        self._require(name, whole and least <= value <= most, f"must be a whole number, {bound}")

    def _require_float(self, name: str, holds: Callable[[float], bool], expected: str) -> None:
        value = getattr(self, name)
        self._require(name, math.isfinite(value) and holds(value), expected)
        with np.errstate(over="ignore"):
            rounded = float(np.float32(value))  # which training computes with
        within = math.isfinite(rounded) and holds(rounded)
        self._require(name, within, f"{expected} in float32, where it is {rounded:g}")

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the network's layers, from input to output."""
        return tuple(f"fc{k + 1}" for k in range(len(self.hidden_sizes) + 1))

    @property
    def layout_rules(self) -> list[tuple[str, str]]:
        """Pairs of a layer pattern and a gradient layout. The first pattern that matches a layer decides.

        Example:
            >>> StudyConfig(gradient_layout="fc1:measures,factored").layout_rules
            [('fc1', 'measures'), ('*', 'factored')]
        """
        rules = (rule.rpartition(":") for rule in self.gradient_layout.split(","))
        return [(pattern or "*", layout) for pattern, _, layout in rules]

    @property
    def seeds(self) -> range:
        """The seeds, one for each training run."""
        return range(self.first_seed, self.first_seed + self.num_seeds)

    def examples_trained_on(self, num_examples: int) -> int:
        """Number of examples that each seed trains on, once the largest held-out fold is left out.

        Raises:
            InputError: If there are fewer examples than folds.
        """
        if self.holdout_folds is None:
            return num_examples
        if self.holdout_folds > num_examples:
            raise InputError.flag("holdout_folds", self.holdout_folds, f"must be at most {num_examples}, the examples")
        return num_examples - math.ceil(num_examples / self.holdout_folds)

    def examples_per_batch(self, num_examples: int) -> int:
        """Number of examples in a full batch: `batch_size`, or all examples if there are fewer."""
        return min(self.batch_size, self.examples_trained_on(num_examples))

    def iterations_per_epoch(self, num_examples: int) -> int:
        """Number of updates in one pass over `num_examples` examples. The last batch may be smaller."""
        return math.ceil(self.examples_trained_on(num_examples) / self.batch_size)

    def num_iterations(self, num_examples: int) -> int:
        """Number of updates in the whole run."""
        return self.epochs * self.iterations_per_epoch(num_examples)

    def iterations(self, num_examples: int) -> Int[np.ndarray, " t"]:
        """List the iterations that are recorded. The first and the last are always among them.

        Example:
            >>> StudyConfig(batch_size=1, epochs=2, record_every=3).iterations(num_examples=5)
            array([ 0,  3,  6,  9, 10])
            >>> StudyConfig(batch_size=1, epochs=2, records_per_doubling=2).iterations(num_examples=5)
            array([ 0,  1,  2,  3,  4,  6,  8, 10])
        """
        last = self.num_iterations(num_examples)
        if (records := last // self.record_every) > MOST_RECORDS:
            raise InputError.flag(
                "epochs",
                self.epochs,
                f"makes {records:,} iterations to choose records from, and {MOST_RECORDS:,} are the most; choose fewer "
                "epochs, or a larger --batch_size or --record_every",
            )
        found = np.arange(0, last, self.record_every)
        found = found[is_on_schedule(found, self.record_every, self.records_per_doubling)]
        return np.append(found, last)

    def differences(self, other: "StudyConfig") -> list[str]:
        """List the flags in which two configurations give different recordings, with both values."""
        return [
            f"--{flag_name(field.name)} {_show(getattr(self, field.name))} instead of "
            f"{_show(getattr(other, field.name))}"
            for field in dataclasses.fields(self)
            if field.compare and getattr(self, field.name) != getattr(other, field.name)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields in a form that JSON can store."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "StudyConfig":
        """Build a configuration from what `to_dict` returned, also after a round trip through JSON.

        Fields that were added after format 4 may be missing; they then get their defaults.

        Raises:
            InputError: If any other field is missing, or if a field is unknown or out of range.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        required = {field.name for field in dataclasses.fields(cls) if field.metadata["since"] <= 4}
        if wrong := (set(values) - names) | (required - set(values)):
            raise InputError(f"configuration fields missing or unknown: {', '.join(sorted(wrong))}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def is_on_schedule(
    t: Int[np.ndarray, "*t"] | int, record_every: int, records_per_doubling: int | None
) -> Bool[np.ndarray, "*t"] | np.bool_:
    """Tell whether `--record_every` or `--records_per_doubling` selects each iteration."""
    gap = record_every
    if records_per_doubling is not None:
        doublings = np.maximum(np.asarray(t) // records_per_doubling, 1)
        gap = 2 ** np.floor(np.log2(doublings)).astype(int)
    return np.asarray(t) % gap == 0


FIELDS = {field.name: field for field in dataclasses.fields(StudyConfig)}


def flag_name(field: str) -> str:
    """Name the flag that sets a field."""
    return "seeds" if field == "num_seeds" else field


def _show(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
