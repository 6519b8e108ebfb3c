"""Per-example gradients by the cut backward pass, timed beside `jax.vmap(jax.grad)` in one process, round by round.

    python benchmarks/engine.py          # two minutes on two cores

Compare ratios: machines are noisy, and both sides see the same noise.
"""

import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from train_dynamics.gradients import per_example as gradients
from train_dynamics.gradients.evaluation import definition, evaluate, find_layers
from train_dynamics.task.mlp import MLP

ROUNDS = 7


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):  # [32, 32, 3]
        x = nn.avg_pool(nn.relu(nn.Conv(32, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.avg_pool(nn.relu(nn.Conv(64, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(64)(x.reshape(-1)))
        return nn.Dense(10)(x)


def interleaved(sides, rounds=ROUNDS):
    """Time compiled functions in turns; give the medians in seconds."""
    times = {name: [] for name in sides}
    for run in sides.values():
        jax.block_until_ready(run())
    for _ in range(rounds):
        for name, run in sides.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(of_side) for name, of_side in times.items()}


def report(title, times, base):
    print(title)
    for name, seconds in times.items():
        print(f"  {name:40} {1000 * seconds:8.1f} ms   {times[base] / seconds:5.2f} times as fast as {base}")


def cnn(num_examples):
    """Give the loss of an example, parameters and examples of a convolutional network."""
    model, rng = CNN(), np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(num_examples, 32, 32, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, num_examples))
    params = jax.jit(model.init)(jax.random.key(0), images[0])["params"]

    def loss(params, example):
        logits = model.apply({"params": params}, example[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, example[1]), logits

    return loss, params, (images, labels)


def convolutional():
    loss, params, examples = cnn(500)
    layers = find_layers(loss, params, jax.tree.map(lambda leaf: leaf[0], examples))
    forms = {form: dict.fromkeys(layers, form) for form in ("factored", "dense")}
    plain = jax.jit(lambda params, examples: definition(loss, params, examples, list(layers)))
    sides = {"vmap(grad)": lambda: plain(params, examples)}
    for form, layouts in forms.items():
        run = jax.jit(lambda params, examples, layouts=layouts: evaluate(loss, params, examples, layouts))
        sides[form] = lambda run=run: run(params, examples)
    report("CNN, 500 examples of 32x32x3, gradients of all layers", interleaved(sides), "vmap(grad)")


def perceptron(num_examples=6000, seeds=10):
    model, rng = MLP((8,), 10), np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(num_examples, 784)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, num_examples), jnp.int32)
    params = jax.vmap(lambda key: model.init(key, images[:1])["params"])(jax.random.split(jax.random.key(0), seeds))

    def loss(params, example):
        image, label = example
        logits = gradients.forward(model, params, image[None])[0]
        prediction = jnp.argmax(logits).astype(jnp.uint8)
        return gradients.cross_entropy(logits, label), prediction

    def intercepted(params, images, labels):
        found = gradients.evaluate(model, params, images, labels, ("fc2",))
        return found.loss, found.prediction, found.activation["fc2"], found.cotangent["fc2"]

    def cut(params, images, labels):
        found = evaluate(loss, params, (images, labels), {"fc2/kernel": "factored"})
        return found.loss, found.outputs, found.kept["activation.fc2/kernel"], found.kept["cotangent.fc2/kernel"]

    runs = {f.__name__: jax.jit(jax.vmap(f, (0, None, None))) for f in (intercepted, cut)}
    results = [jax.tree.leaves(run(params, images, labels)) for run in runs.values()]
    same = all(np.array_equal(a, b) for a, b in zip(*results, strict=True))
    sides = {name: lambda run=run: run(params, images, labels) for name, run in runs.items()}
    report(f"784-8-10, fc2, {num_examples} examples, {seeds} seeds", interleaved(sides, 41), "intercepted")
    print(f"  the same, bit for bit: {same}")


if __name__ == "__main__":
    convolutional()
    perceptron()
