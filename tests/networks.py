"""Small networks of all kinds, for the tests of gradients: `loss, params, examples` each."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx


def cross_entropy(logits, label):
    return optax.softmax_cross_entropy_with_integer_labels(logits, label), logits


def linen(model, inputs, classes=3, seed=0):
    """A Linen network that maps one example to logits."""
    inputs = jnp.asarray(inputs)
    params = jax.jit(model.init)(jax.random.key(seed), inputs[0])["params"]
    labels = jnp.arange(len(inputs)) % classes
    return (
        lambda params, example: cross_entropy(model.apply({"params": params}, example[0]), example[1]),
        params,
        (
            inputs,
            labels,
        ),
    )


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(9)(x))
        x = nn.LayerNorm()(x)
        x = nn.Dropout(0.5, deterministic=True)(x)
        return nn.Dense(3)(x)


class Tokens(nn.Module):
    """Attention with layer norm, over embedded tokens."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 16)(tokens)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        x = x + nn.Dense(16, name="out")(nn.gelu(nn.Dense(48, name="in")(x)))
        return nn.Dense(3, name="head")(x.mean(0))


class Tied(nn.Module):
    """The same dense layer twice, and an embedding that is the output layer too."""

    @nn.compact
    def __call__(self, tokens):
        embed, layer = nn.Embed(3, 24), nn.Dense(24)
        x = embed(tokens)
        return embed.attend(layer(nn.relu(layer(x))).sum(0))


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        stack = nn.scan(
            lambda layer, x, _: (nn.tanh(layer(x)), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        return nn.Dense(3)(stack(nn.Dense(6), x, None)[0])


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(nn.SimpleCell(7))(x)[-1])


class Remat(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.remat(nn.Dense)
        return layer(3)(nn.relu(layer(12)(nn.relu(layer(12)(x)))))


class Convolutions(nn.Module):
    """Convolutions with each of the given options, side by side."""

    options: tuple

    @nn.compact
    def __call__(self, x):
        seen = [nn.relu(nn.Conv(features, **dict(options))(x)) for features, options in self.options]
        return nn.Dense(3)(jnp.concatenate([array.mean(range(array.ndim - 1)) for array in seen]))


CONVOLUTIONS = {
    "plain": (4, {"kernel_size": (3, 3)}),
    "stride": (4, {"kernel_size": (3, 2), "strides": (2, 3), "padding": "VALID"}),
    "dilation": (4, {"kernel_size": (2, 3), "kernel_dilation": (3, 2), "padding": ((1, 4), (0, 2))}),
    "input_dilation": (4, {"kernel_size": (3, 3), "input_dilation": (2, 3), "padding": ((2, 0), (1, 3))}),
    "negative": (4, {"kernel_size": (2, 2), "padding": ((-1, -2), (2, -1)), "strides": (2, 1)}),
    "groups": (6, {"kernel_size": (3, 3), "feature_group_count": 2}),
    "depthwise": (8, {"kernel_size": (3, 3), "feature_group_count": 4, "strides": 2}),
    "circular": (4, {"kernel_size": (3, 3), "padding": "CIRCULAR"}),
    "one": (4, {"kernel_size": (1, 1)}),
}


def convolution(name, rng, seed=0):
    features, options = CONVOLUTIONS[name]
    model = Convolutions(((features, tuple(options.items())),))
    return linen(model, rng.normal(size=(5, 9, 8, 4)).astype(np.float32), seed=seed)


class Late(nn.Module):
    """A convolution with so few positions that factors are smaller than its gradient."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(24, (3, 3), padding="VALID")(x)
        return nn.Dense(3)(nn.relu(x).reshape(-1))


class Sequence(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.ConvTranspose(5, (3,), strides=2)(x))
        return nn.Dense(3)(nn.Conv(6, (4,), strides=2)(x).max(0))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)])

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x))).mean((0, 1))
        return self.layers[1](nnx.relu(self.layers[0](x)))


def nnx_network(rng):
    graph, params = nnx.split(Nnx(nnx.Rngs(0)))

    def loss(params, example):
        return cross_entropy(nnx.merge(graph, params)(example[0]), example[1])

    return loss, params, (jnp.asarray(rng.normal(size=(4, 6, 6, 2)), jnp.float32), jnp.arange(4) % 3)


class Eqx(eqx.Module):
    conv: eqx.nn.Conv2d
    mlp: eqx.nn.MLP

    def __init__(self, key):
        self.conv = eqx.nn.Conv2d(2, 5, 3, stride=2, padding=1, key=key)
        self.mlp = eqx.nn.MLP(5, 3, 10, 2, key=key)

    def __call__(self, x):
        return self.mlp(jax.nn.relu(self.conv(x)).mean((1, 2)))


def equinox_network(rng):
    params, static = eqx.partition(Eqx(jax.random.key(0)), eqx.is_inexact_array)

    def loss(params, example):
        return cross_entropy(eqx.combine(params, static)(example[0]), example[1])

    return loss, params, (jnp.asarray(rng.normal(size=(4, 2, 7, 7)), jnp.float32), jnp.arange(4) % 3)


def functions(rng):
    """A plain function with uses of weights that no framework would think of."""
    shapes = {
        "a": (6, 8),
        "heads": (8, 2, 5),
        "out": (2, 5, 8),
        "both": (8, 8),
        "mask": (8, 8),
        "unused": (3,),
        "s": (),
    }
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}

    def loss(params, example):
        x, target = example
        x = jax.nn.relu(x @ params["a"] + jnp.zeros(8))
        heads = jnp.einsum("td,dhk->htk", x, params["heads"])
        x = x + jnp.einsum("htk,hkd->td", heads, params["out"])
        x = jnp.tanh(x @ params["both"]) @ params["both"].T
        x = x @ (params["mask"] * jnp.eye(8)) + jnp.vdot(params["mask"], params["mask"]) * params["s"]
        return jnp.square(x.sum(0) - target).sum(), {"x": x, "none": None}

    x = jnp.asarray(rng.normal(size=(5, 3, 6)), jnp.float32)
    return loss, params, (x.at[0].set(0.0), jnp.asarray(rng.normal(size=(5, 8)), jnp.float32))


def network(name, rng):
    """Build a network by name."""
    normal = rng.normal(size=(5, 6)).astype(np.float32)
    tokens = rng.integers(0, 11, (5, 4))
    return {
        "dense": lambda: linen(Dense(), normal),
        "relu_at_zero": lambda: linen(Dense(), np.zeros_like(normal)),  # biases are zero as well
        "tokens": lambda: linen(Tokens(), tokens),
        "tied": lambda: linen(Tied(), tokens % 3),
        "scanned": lambda: linen(Scanned(), normal),
        "recurrent": lambda: linen(Recurrent(), normal.reshape(5, 3, 2)),
        "remat": lambda: linen(Remat(), normal),
        "late": lambda: linen(Late(), rng.normal(size=(5, 4, 4, 16)).astype(np.float32)),
        "sequence": lambda: linen(Sequence(), rng.normal(size=(5, 7, 4)).astype(np.float32)),
        "nnx": lambda: nnx_network(rng),
        "equinox": lambda: equinox_network(rng),
        "functions": lambda: functions(rng),
        **{name: lambda name=name: convolution(name, rng) for name in CONVOLUTIONS},
    }[name]()


NETWORKS = (
    *("dense", "relu_at_zero", "tokens", "tied", "scanned", "recurrent", "remat", "late", "sequence"),
    *("nnx", "equinox", "functions"),
    *CONVOLUTIONS,
)
