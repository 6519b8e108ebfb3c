"""A Flax Linen loop, with batch normalisation and augmentation, that is recorded.

    python examples/linen_loop.py --recording=recordings/linen_loop
    python -m train_dynamics.analyze --recording=recordings/linen_loop

Three lines are not the loop's own; comments count them. The records are of the images as they are, and taken with the
statistics of batch normalisation fixed: through those of a batch no example has a gradient of its own.
"""

import argparse
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from flax.training import train_state

import train_dynamics as td

LAYOUT = "conv*:measures,head/*:factored"


class Network(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:  # [n, 28, 28, 1] -> [n, 10]
        x = nn.Conv(8, (3, 3), strides=2, use_bias=False, name="conv1")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm1")(x))
        x = nn.Conv(16, (3, 3), strides=2, use_bias=False, name="conv2")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm2")(x))
        return nn.Dense(10, name="head")(x.mean((1, 2)))


class TrainState(train_state.TrainState):
    batch_stats: Any


network = Network()


def loss_of_one(params: Any, example: tuple[jax.Array, jax.Array], batch_stats: Any) -> tuple[jax.Array, jax.Array]:
    image, label = example
    logits = network.apply({"params": params, "batch_stats": batch_stats}, image[None], train=False)[0]
    return optax.softmax_cross_entropy_with_integer_labels(logits, label), logits


@jax.jit
def update(state: TrainState, images: jax.Array, labels: jax.Array, key: jax.Array) -> TrainState:
    images = shifted(images, key)

    def mean_loss(params: Any) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, changed = network.apply(variables, images, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), changed["batch_stats"]

    gradient, batch_stats = jax.grad(mean_loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=gradient, batch_stats=batch_stats)


def shifted(images: jax.Array, key: jax.Array) -> jax.Array:
    """Augmentation: shift each image by up to two pixels."""
    shifts = jax.random.randint(key, (len(images), 2), -2, 3)
    return jax.vmap(lambda image, shift: jax.numpy.roll(image, shift, (0, 1)))(images, shifts)


def main(recording: str, steps: int, num_examples: int) -> None:
    data = td.load_dataset(td.StudyConfig(num_examples=num_examples))
    images, labels = data.images.astype(np.float32) / 255, data.labels
    variables = network.init(jax.random.key(0), images[:1], train=False)
    state = TrainState.create(apply_fn=network.apply, tx=optax.adam(0.01), **variables)
    rng = np.random.default_rng(0)
    # 1: records what every example asks: of the last layer exactly, of the convolutions how much and where to
    recorder = td.Recorder(recording, loss_of_one, (images, labels), layers="*/kernel", gradient_layout=LAYOUT)
    with recorder:  # 2: and stores the last of it, however the loop ends
        for t in range(steps):
            recorder.record(t, state.params, state.batch_stats)  # 3: the statistics are the third argument of the loss
            batch = rng.integers(len(images), size=128)
            state = update(state, images[batch], labels[batch], jax.random.key(t))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recording", default="recordings/linen_loop", help="directory to record into")
    parser.add_argument("--steps", type=int, default=400, help="updates")
    parser.add_argument("--num_examples", type=int, default=2000, help="images of MNIST")
    main(**vars(parser.parse_args()))
