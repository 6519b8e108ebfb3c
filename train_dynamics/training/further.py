"""Trains a recording's networks further, and again with DP-SGD, for scores that the recording alone cannot give.

Both scores are from Carlini, Erlingsson and Papernot, "Distribution Density, Tails, and Outliers in Machine Learning"
(2019). The scores themselves are computed with all others; this file does the training they need.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from train_dynamics.config import InputError, StudyConfig, pluralise
from train_dynamics.data.datasets import Dataset, load_dataset
from train_dynamics.data.scaling import flat_inputs
from train_dynamics.gradients import per_example
from train_dynamics.progress import Progress
from train_dynamics.recording.reader import FurtherTraining, Recording
from train_dynamics.training import steps
from train_dynamics.training.steps import Setup, State
from train_dynamics.training.sweep import assign_seeds, collect, compiled, enough_memory, local_devices

SMALLEST, LARGEST = 1e-6, 1e6
NOISE = 1  # apart from the draw of the weights, which has the seed alone


@dataclasses.dataclass(frozen=True)
class FurtherConfig:
    """Settings of further training. Everything else is taken from the recorded configuration.

    Attributes:
        holdout_split: Split of the data set to train the networks further on.
        holdout_epochs: Passes over it. None means as many epochs as were recorded.
        gradient_clip: Largest L2 norm of an example's gradient under DP-SGD, over all weights together.
        noise_multipliers: Standard deviations of the noise on the sum of a batch's gradients, divided by that norm.

    Raises:
        InputError: If a value is out of range.
    """

    holdout_split: str = "test"
    holdout_epochs: int | None = None
    gradient_clip: float = 8.0
    noise_multipliers: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)

    def __post_init__(self) -> None:
        if self.holdout_epochs is not None and self.holdout_epochs < 1:
            raise InputError.flag("holdout_epochs", self.holdout_epochs, "must be a whole number, 1 or more")
        if not SMALLEST <= self.gradient_clip <= LARGEST:
            raise InputError.flag("gradient_clip", self.gradient_clip, f"must be from {SMALLEST:g} to {LARGEST:g}")
        noise = self.noise_multipliers
        if not noise or not all(0 <= level <= LARGEST for level in noise) or len(set(noise)) < len(noise):
            raise InputError.flag(
                "noise_multipliers", noise, f"must be different numbers from 0 to {LARGEST:g}, comma separated"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields in a form that JSON can store."""
        return {**dataclasses.asdict(self), "noise_multipliers": list(self.noise_multipliers)}


def train_on(
    setup: Setup,
    state: State,
    batches: Int[Array, "t b"],
    images: Float[Array, "n ..."],
    labels: Int[Array, " n"],
) -> State:
    """Make the updates of some batches, without recording."""

    def step(state: State, batch: Int[Array, " b"]) -> tuple[State, None]:
        return steps.update(setup, state, batch, images, labels), None

    return jax.lax.scan(step, state, batches)[0]


def private_update(
    setup: Setup,
    clip: float,
    noise_multiplier: Float[Array, ""],
    key: Array,
    state: State,
    batch: Int[Array, " b"],
    images: Float[Array, "n ..."],
    labels: Int[Array, " n"],
) -> State:
    """Take one step of DP-SGD: Abadi et al., "Deep Learning with Differential Privacy" (2016), algorithm 1.

    Each example's gradient is clipped, the gradients of the batch are summed, noise is added, and the sum is divided by
    the size of a full batch. This holds for a smaller batch too, because its size must stay secret. Batches are those
    of ordinary training; they are not drawn independently, as the accounting of a privacy budget would require.

    Args:
        setup: Network and optimizer.
        clip: Largest L2 norm of an example's gradient.
        noise_multiplier: Standard deviation of the noise on the sum, divided by that norm.
        key: Random key of the noise.
        state: State of weights and optimizer.
        batch: Indices of the examples; -1 for none.
        images: Inputs, as the network sees them.
        labels: Class of each example.
    """

    def of_one(n: Int[Array, ""]) -> per_example.Parameters:
        loss = functools.partial(per_example.example_loss, setup.model)
        found = jax.grad(loss)(state.parameters, images[n], labels[n])
        return jax.tree.map(lambda gradient: jnp.where(n >= 0, gradient, 0), found)

    aggregate = optax.contrib.differentially_private_aggregate(clip, noise_multiplier, key)
    mean, _ = aggregate.update(jax.vmap(of_one)(batch), aggregate.init(state.parameters))
    descent, optimizer = setup.optimizer.update(mean, state.optimizer, state.parameters)
    return State(optax.apply_updates(state.parameters, descent), optimizer)


def train_privately(
    setup: Setup,
    clip: float,
    noise_multiplier: Float[Array, ""],
    seed: Int[Array, ""],
    first: Int[Array, ""],
    state: State,
    batches: Int[Array, "t b"],
    images: Float[Array, "n ..."],
    labels: Int[Array, " n"],
) -> State:
    """Make the DP-SGD updates of some batches, the first of which is that of iteration `first`."""
    noise = jax.random.fold_in(jax.random.key(seed), NOISE)

    def step(state: State, x: tuple[Array, Array]) -> tuple[State, None]:
        t, batch = x
        key = jax.random.fold_in(noise, t)
        return private_update(setup, clip, noise_multiplier, key, state, batch, images, labels), None

    return jax.lax.scan(step, state, (first + jnp.arange(len(batches)), batches))[0]


class Networks:
    """The networks of all seeds, spread over the devices: trains them, and computes their predictions.

    Arrays on the devices have leading axes `[device, s]`; on the host, `[s]`.

    Args:
        study: The recorded configuration.
        setup: Network and optimizer.
        clip: Largest L2 norm of an example's gradient under DP-SGD.
        devices: The devices.
    """

    def __init__(self, study: StudyConfig, setup: Setup, clip: float, devices: Sequence[jax.Device]) -> None:
        self._study, self._devices = study, devices
        self._seeds = assign_seeds(study.seeds, len(devices))

        def begin(parameters: per_example.Parameters) -> State:
            return State(parameters, setup.optimizer.init(parameters))

        self._begin = self._over_seeds(begin, 0, once=True)
        self._draw = self._over_seeds(functools.partial(steps.initial_state, setup), 0, None, once=True)
        self._fit = self._over_seeds(functools.partial(train_on, setup), 0, 0, None, None)
        privately = functools.partial(train_privately, setup, clip)
        self._fit_privately = self._over_seeds(privately, None, 0, None, 0, 0, None, None)
        self._predict = self._over_seeds(functools.partial(_probabilities, setup), 0, None)

    def _over_seeds(self, of_seed: Callable[..., Any], *axes: int | None, once: bool = False) -> Callable[..., Any]:
        program = jax.pmap(jax.vmap(of_seed, axes), in_axes=axes, devices=self._devices)
        ready: list[jax.stages.Compiled] = []  # at the first call, which has the shapes of all

        def call(*arguments: Any) -> Any:
            if not ready:
                ready.append(compiled(program.lower(*arguments), self._devices[0].platform, once))
            return ready[0](*arguments)

        return call

    def take(self, parameters: Any) -> None:
        """Take weights `[s, ...]` to continue from."""
        self._state = self._begin(jax.tree.map(lambda array: array[self._seeds - self._study.first_seed], parameters))

    def draw(self, image: Float[Array, "..."]) -> None:
        """Draw new weights, for inputs of this shape."""
        self._state = self._draw(self._seeds, image)

    def train(self, epoch: int, images: Float[Array, "n ..."], labels: Int[Array, " n"]) -> None:
        """Train for one more epoch."""
        _, batches = _batches(self._study, self._seeds, len(labels), epoch)
        self._state = self._fit(self._state, batches, images, labels)

    def train_privately(
        self, noise_multiplier: float, epoch: int, images: Float[Array, "n ..."], labels: Int[Array, " n"]
    ) -> None:
        """Train for one more epoch, with DP-SGD."""
        first, batches = _batches(self._study, self._seeds, len(labels), epoch)
        noise = np.float32(noise_multiplier)
        self._state = self._fit_privately(noise, self._seeds, first, self._state, batches, images, labels)

    def probabilities(self, images: Float[Array, "n ..."], when: str) -> Float[np.ndarray, "s n c"]:
        """Compute class probabilities.

        Raises:
            InputError: If they are not finite. The message says `when` that was.
        """
        found = collect(self._predict(self._state.parameters, images), self._study.num_seeds)
        _check_finite(found, self._study, when)
        return found


def train_further(
    recording: Recording,
    config: FurtherConfig,
    holdout: Dataset | None = None,
    devices: Sequence[jax.Device] | None = None,
    log: Callable[[str], None] = print,
    stop: Callable[[], bool] = lambda: False,
) -> FurtherTraining | None:
    """Train all networks of a recording further, and train new ones under privacy.

    Args:
        recording: The recording, finished.
        config: Settings that are not in the recording.
        holdout: What `held_out` returned for them. None reads it here.
        devices: Devices to use. Default: all devices of this machine.
        log: Function that prints a line for the user.
        stop: Called after each epoch. Training stops if it returns True.

    Returns:
        What the networks predict for the recorded examples at the end. None if `stop` ended it.

    Raises:
        InputError: If the held-out examples cannot be read, or if training does not stay finite.
    """
    study = recording.config
    holdout = holdout or held_out(study, config)
    devices = list(devices or local_devices())[: study.num_seeds]
    networks = Networks(study, steps.set_up(study, len(recording.class_names)), config.gradient_clip, devices)
    _check_alike(recording.data, holdout, config)
    images, labels = _inputs(study, recording.data)
    held_images, held_labels = _inputs(study, holdout, recording.data)
    epochs = config.holdout_epochs or study.epochs
    levels = config.noise_multipliers
    log(
        f"Training {pluralise(study.num_seeds, 'network')} further for {pluralise(epochs, 'epoch')} of "
        f"{pluralise(len(held_labels), 'example')} of split {config.holdout_split}, and {study.num_seeds} anew by "
        f"DP-SGD at each of {pluralise(len(levels), 'noise level')}"
    )
    bar = Progress("Training further", epochs + len(levels) * study.epochs, "epochs")
    with bar, enough_memory():
        networks.take(recording.parameters(recording.num_iterations))
        for epoch in range(epochs):
            networks.train(epoch, held_images, held_labels)
            bar.update()
            if stop():
                return None
        retrained = networks.probabilities(images, f"of --holdout_split={config.holdout_split}")
        private = []
        for level in levels:
            bar.set_description(f"DP-SGD, noise {level:g}")
            networks.draw(images[0])
            for epoch in range(study.epochs):
                networks.train_privately(level, epoch, images, labels)
                bar.update()
                if stop():
                    return None
            prediction = networks.probabilities(images, f"with noise {level:g}").argmax(axis=-1)
            private.append(prediction.astype(np.min_scalar_type(len(recording.class_names) - 1)))
            accuracy = np.mean(private[-1] == recording.labels)
            bar.write(f"With noise {level:g}, {accuracy:.1%} of the examples are classified correctly")
    return FurtherTraining(config.to_dict(), retrained, np.stack(private, axis=1))


def _probabilities(
    setup: Setup, parameters: per_example.Parameters, images: Float[Array, "n ..."]
) -> Float[Array, "n c"]:
    def of_one(image: Float[Array, "..."]) -> Float[Array, " c"]:
        return jax.nn.softmax(per_example.forward(setup.model, parameters, image[None])[0])

    return jax.lax.map(of_one, images, batch_size=setup.eval_batch_size or len(images))


def _check_finite(probabilities: Float[np.ndarray, "s n c"], study: StudyConfig, when: str) -> None:
    broken = ~np.isfinite(probabilities).all(axis=(1, 2))
    if broken.any():
        raise InputError(
            f"training {when} made the weights of seed {study.seeds[int(broken.argmax())]} no longer finite; smaller "
            "--noise_multipliers, a smaller --gradient_clip or fewer --holdout_epochs may help"
        )


def _check_alike(recorded: Dataset, held_out: Dataset, config: FurtherConfig) -> None:
    """Check that the networks can take the held-out examples.

    Raises:
        InputError: If they cannot.
    """
    if recorded.class_names != held_out.class_names:
        known, other = (", ".join(data.class_names) for data in (recorded, held_out))
        raise InputError.flag(
            "holdout_split", config.holdout_split, f"must have the recorded classes, {known}, and not {other}"
        )
    shapes = tuple(np.shape(data.inputs)[1:] for data in (recorded, held_out))
    if shapes[0] != shapes[1]:
        raise InputError.flag(
            "holdout_split", config.holdout_split, f"must have inputs of shape {shapes[0]}, but has some of {shapes[1]}"
        )


def _inputs(
    study: StudyConfig, dataset: Dataset, like: Dataset | None = None
) -> tuple[Float[Array, "n ..."], Int[Array, " n"]]:
    return jnp.asarray(flat_inputs(dataset, study, like)), jnp.asarray(dataset.labels)


def _batches(
    study: StudyConfig, seeds: Int[np.ndarray, "device s"], num_examples: int, epoch: int
) -> tuple[int, Int[np.ndarray, "device s t b"]]:
    """Return the first iteration of an epoch, and the batches of all its updates."""
    per_epoch = study.iterations_per_epoch(num_examples)
    first = epoch * per_epoch
    found = [steps.batch_indices(study, int(seed), num_examples, first, first + per_epoch) for seed in seeds.flat]
    return first, np.stack(found).reshape(*seeds.shape, per_epoch, study.examples_per_batch(num_examples))


def held_out(study: StudyConfig, config: FurtherConfig, data_dir: str | None = None) -> Dataset:
    """Read the held-out examples, as the data set has them.

    Args:
        study: The recorded configuration.
        config: The settings that name their split.
        data_dir: Directory of the data set, if it has moved.

    Raises:
        InputError: If they cannot be read, or if they are the recorded ones.
    """
    if config.holdout_split == study.split:
        raise InputError.flag("holdout_split", config.holdout_split, "is the recorded split; give another one")
    try:
        return load_dataset(
            dataclasses.replace(
                study,
                data_dir=data_dir or study.data_dir,
                split=config.holdout_split,
                num_examples=None,
                label_noise=0.0,
            )
        )
    except InputError as error:
        raise InputError(str(error).replace("--split=", "--holdout_split=", 1)) from error
