"""Layers that nobody thought of: random convolutions, and random ways to lay a weight out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_engine import both, close, gradients_of


def random_convolution(rng):
    """Draw a convolution that has an output: axes of space, groups, strides, paddings, dilations, orders of axes."""
    while True:
        ndim, groups = int(rng.integers(1, 3)), int(rng.choice([1, 1, 2]))
        draw = lambda low, high, ndim=ndim: rng.integers(low, high, ndim).tolist()  # noqa: E731
        options = {
            "window_strides": draw(1, 4),
            "padding": list(zip(draw(-2, 4), draw(-2, 4), strict=True)),
            "lhs_dilation": draw(1, 3),
            "rhs_dilation": draw(1, 3),
            "dimension_numbers": [("NWC", "WIO", "NWC"), ("NHWC", "HWIO", "NCHW")][ndim - 1]
            if rng.random() < 0.5
            else [("NCW", "OIW", "NCW"), ("NCHW", "OIHW", "NHWC")][ndim - 1],
            ["feature_group_count", "batch_group_count"][int(rng.random() < 0.2)]: groups,
        }
        channels, features, batch = (int(groups * rng.integers(1, 4)) for _ in range(3))
        last = options["dimension_numbers"][0].endswith("C")
        in_kernel = channels // options.get("feature_group_count", 1)
        space, kernel = draw(5, 9), draw(1, 4)
        shape = (batch, *space, channels) if last else (batch, channels, *space)
        kernel = (*kernel, in_kernel, features) if last else (features, in_kernel, *kernel)
        x = jnp.asarray(rng.normal(size=(3, *shape)), jnp.float32)
        w = jnp.asarray(rng.normal(size=kernel), jnp.float32)
        found = jax.eval_shape(lambda x, w: jax.lax.conv_general_dilated(x, w, **options), x[0], w)  # noqa: B023
        if math.prod(found.shape):
            return options, x, w


@pytest.mark.parametrize("draw", [*range(8), *(pytest.param(k, marks=pytest.mark.slow) for k in range(8, 24))])
def test_random_convolutions(draw):
    options, x, w = random_convolution(np.random.default_rng(draw))

    def loss(w, x):
        return jnp.sin(jax.lax.conv_general_dilated(x, w, **options)).sum(), ()

    _, found, expected = both(loss, w, x, "dense")
    close(found.kept["gradient.parameter"], expected["parameter"], 200)  # two examples of 9 x 9 positions at most


def random_layout(rng):
    """Draw a weight's shape, and how to get [12, 20] of it by reshapes and permutations."""
    steps, shape = [], (12, 20)
    for _ in range(rng.integers(1, 4)):  # backwards, from [12, 20]
        if rng.random() < 0.5:
            permutation = rng.permutation(len(shape)).tolist()
            steps.append(("transpose", np.argsort(permutation).tolist()))
            shape = tuple(shape[axis] for axis in permutation)
        else:
            steps.append(("reshape", shape))
            halved = [size % 2 == 0 and rng.random() < 0.5 for size in shape]
            split = [(2, size // 2) if half else (size, 1) for size, half in zip(shape, halved, strict=True)]
            shape = sum(split, ())
    return shape, steps[::-1]


@pytest.mark.parametrize("draw", [*range(8), *(pytest.param(k, marks=pytest.mark.slow) for k in range(8, 24))])
def test_random_layouts_keep_their_factors(draw):
    rng = np.random.default_rng(draw)
    shape, steps = random_layout(rng)
    positions, side = int(rng.integers(1, 4)), rng.random() < 0.5

    def loss(w, x):
        for name, argument in steps:
            w = getattr(w, name)(argument)
        outputs = jnp.einsum("pi,io->po", x, w) if side else jnp.einsum("io,pi->op", w, x)
        return jnp.sin(outputs).sum(), ()

    x = jnp.asarray(rng.normal(size=(3, positions, 12)), jnp.float32)
    layers, found, expected = both(loss, jnp.asarray(rng.normal(size=shape), jnp.float32), x, "factored")
    factors = layers["parameter"].factors
    assert (factors.i, factors.o, factors.positions) == (12, 20, positions)
    close(gradients_of(layers, found.kept)["parameter"], expected["parameter"])
