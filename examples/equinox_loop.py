"""An Equinox loop that is recorded.

    python examples/equinox_loop.py --recording=recordings/equinox_loop
    python -m train_dynamics.analyze --recording=recordings/equinox_loop

Three lines are not the loop's own; comments count them.
"""

import argparse

import equinox as eqx
import jax
import numpy as np
import optax

import train_dynamics as td


class Network(eqx.Module):
    conv: eqx.nn.Conv2d
    mlp: eqx.nn.MLP

    def __init__(self, key: jax.Array) -> None:
        keys = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(1, 8, 3, stride=2, key=keys[0])
        self.mlp = eqx.nn.MLP(8 * 13 * 13, 10, 32, depth=1, key=keys[1])

    def __call__(self, x: jax.Array) -> jax.Array:  # [1, 28, 28] -> [10]
        return self.mlp(jax.nn.relu(self.conv(x)).ravel())


def loss_of_one(model: Network, example: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    image, label = example
    logits = model(image)
    return optax.softmax_cross_entropy_with_integer_labels(logits, label), logits


optimizer = optax.sgd(0.1, momentum=0.9)


@eqx.filter_jit
def update(
    model: Network, state: optax.OptState, images: jax.Array, labels: jax.Array
) -> tuple[Network, optax.OptState]:
    def mean_loss(model: Network) -> jax.Array:
        return jax.vmap(lambda *example: loss_of_one(model, example)[0])(images, labels).mean()

    gradient = eqx.filter_grad(mean_loss)(model)
    change, state = optimizer.update(gradient, state, eqx.filter(model, eqx.is_array))
    return eqx.apply_updates(model, change), state


def main(recording: str, steps: int, num_examples: int) -> None:
    data = td.load_dataset(td.StudyConfig(num_examples=num_examples))
    images, labels = data.images.astype(np.float32).transpose(0, 3, 1, 2) / 255, data.labels
    model = Network(jax.random.key(0))
    state = optimizer.init(eqx.filter(model, eqx.is_array))
    rng = np.random.default_rng(0)
    # 1: records into this directory what every example asks of the last layer; `data` shows the images
    recorder = td.Recorder(recording, loss_of_one, (images, labels), layers="mlp/layers/1/weight", dataset=data)
    with recorder:  # 2: and stores the last of it, however the loop ends
        for t in range(steps):
            recorder.record(t, model)  # 3: the module as it is
            batch = rng.integers(len(images), size=128)
            model, state = update(model, state, images[batch], labels[batch])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recording", default="recordings/equinox_loop", help="directory to record into")
    parser.add_argument("--steps", type=int, default=400, help="updates")
    parser.add_argument("--num_examples", type=int, default=2000, help="images of MNIST")
    main(**vars(parser.parse_args()))
