"""A loop of plain functions over several devices, batches and weights divided among them, that is recorded.

    JAX_NUM_CPU_DEVICES=4 python examples/devices_loop.py --recording=recordings/devices_loop
    python -m train_dynamics.analyze --recording=recordings/devices_loop

Three lines are not the loop's own; comments count them.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import train_dynamics as td

optimizer = optax.sgd(0.1)


def logits_of(params: dict[str, jax.Array], image: jax.Array) -> jax.Array:  # [28, 28, 1] -> [10]
    hidden = jax.nn.relu(image.ravel() @ params["hidden"])
    return hidden @ params["head"]


def loss_of_one(params: dict[str, jax.Array], example: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    image, label = example
    logits = logits_of(params, image)
    return optax.softmax_cross_entropy_with_integer_labels(logits, label), logits


@functools.partial(jax.jit, donate_argnums=(0, 1))
def update(params: dict[str, jax.Array], state: Any, batch: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
    def mean_loss(params: dict[str, jax.Array]) -> jax.Array:
        return jax.vmap(lambda example: loss_of_one(params, example)[0])(batch).mean()

    change, state = optimizer.update(jax.grad(mean_loss)(params), state)
    return optax.apply_updates(params, change), state


def main(recording: str, steps: int, num_examples: int) -> None:
    data = td.load_dataset(td.StudyConfig(num_examples=num_examples))
    images, labels = data.images.astype(np.float32) / 255, data.labels
    mesh = jax.make_mesh((jax.device_count(),), ("device",), axis_types=(AxisType.Auto,))
    keys = jax.random.split(jax.random.key(0))
    start = {
        "hidden": jax.random.normal(keys[0], (784, 32)) / 28,
        "head": jnp.zeros((32, 10)),
    }
    places = {"hidden": NamedSharding(mesh, P(None, "device")), "head": NamedSharding(mesh, P("device", None))}
    params = jax.device_put(start, places)
    state = optimizer.init(params)
    rng = np.random.default_rng(0)
    # 1: records into this directory what every example asks of the last layer
    recorder = td.Recorder(recording, loss_of_one, (images, labels), layers="head")
    with recorder:  # 2: and stores the last of it, however the loop ends
        for t in range(steps):
            recorder.record(t, params)  # 3: the weights where they are, before the update takes their memory
            batch = rng.integers(len(images), size=128)
            divided = jax.device_put((images[batch], labels[batch]), NamedSharding(mesh, P("device")))
            params, state = update(params, state, divided)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recording", default="recordings/devices_loop", help="directory to record into")
    parser.add_argument("--steps", type=int, default=400, help="updates")
    parser.add_argument("--num_examples", type=int, default=2000, help="images of MNIST")
    main(**vars(parser.parse_args()))
