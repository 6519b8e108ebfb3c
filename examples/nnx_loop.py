"""A Flax NNX loop, with AdamW and a cosine schedule, that is recorded.

    python examples/nnx_loop.py --recording=recordings/nnx_loop
    python -m train_dynamics.analyze --recording=recordings/nnx_loop

Three lines are not the loop's own; comments count them.
"""

import argparse

import jax
import numpy as np
import optax
from flax import nnx

import train_dynamics as td

LAYOUT = "conv*:measures,head/*:factored"


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, 8, (3, 3), strides=2, rngs=rngs)
        self.conv2 = nnx.Conv(8, 16, (3, 3), strides=2, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:  # [n, 28, 28, 1] -> [n, 10]
        x = nnx.relu(self.conv1(x))
        x = nnx.relu(self.conv2(x))
        return self.head(self.drop(x.mean((1, 2))))


def loss_of_one(model: Network, example: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    image, label = example
    logits = model(image[None])[0]
    return optax.softmax_cross_entropy_with_integer_labels(logits, label), logits


@nnx.jit
def update(model: Network, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array) -> jax.Array:
    def mean_loss(model: Network) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    loss, gradient = nnx.value_and_grad(mean_loss)(model)
    optimizer.update(model, gradient)
    return loss


def main(recording: str, steps: int, num_examples: int) -> None:
    data = td.load_dataset(td.StudyConfig(num_examples=num_examples))
    images, labels = data.images.astype(np.float32) / 255, data.labels
    model = Network(nnx.Rngs(0))
    rate = optax.cosine_decay_schedule(0.01, steps)
    optimizer = nnx.Optimizer(model, optax.adamw(rate), wrt=nnx.Param)
    rng = np.random.default_rng(0)
    # 1: records what every example asks: of the last layer exactly, of the convolutions how much and where to
    recorder = td.Recorder(recording, loss_of_one, (images, labels), layers="*/kernel", gradient_layout=LAYOUT)
    with recorder:  # 2: and stores the last of it, however the loop ends
        for t in range(steps):
            recorder.record(t, model)  # 3: the module as it is; the record is taken with dropout off
            batch = rng.integers(len(images), size=128)
            update(model, optimizer, images[batch], labels[batch])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recording", default="recordings/nnx_loop", help="directory to record into")
    parser.add_argument("--steps", type=int, default=400, help="updates")
    parser.add_argument("--num_examples", type=int, default=2000, help="images of MNIST")
    main(**vars(parser.parse_args()))
