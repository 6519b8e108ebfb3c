"""Gradients of any function, held to `jax.vmap(jax.grad(loss))`.

Both are sums of the same products in another order, of at most 100 positions here. Each of 100 additions rounds by half
an eps of a partial sum, which is of the size of the largest entry: hence 100 eps of that, in float32 and in float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks import NETWORKS, network
from train_dynamics.config import InputError
from train_dynamics.gradients.evaluation import definition, evaluate, find_layers
from train_dynamics.recording.layers import Layer, choose, rebuild

OPERATIONS = 100


def one_of(examples):
    return jax.tree.map(lambda array: array[0], examples)


def close(found, expected, operations=OPERATIONS):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    tolerance = operations * np.finfo(expected.dtype).eps * np.abs(expected).max(initial=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def gradients_of(layers, kept, take=lambda array: np.asarray(array)):
    """Give the gradient of each layer, rebuilt if it is kept as factors."""
    kept = {name: take(array) for name, array in kept.items()}
    return {
        name: kept[f"gradient.{name}"]
        if f"gradient.{name}" in kept
        else rebuild(layer, kept[f"activation.{name}"], kept[f"cotangent.{name}"])
        for name, layer in layers.items()
    }


def both(loss, params, examples, form, **kwargs):
    """Give what is kept in a form, and the definition, of all layers, compiled as one program."""
    layers = find_layers(loss, params, one_of(examples))

    @jax.jit
    def run(params, examples):
        layouts = dict.fromkeys(layers, form)
        return evaluate(loss, params, examples, layouts, **kwargs), definition(loss, params, examples, list(layers))

    return layers, *run(params, examples)


def test_by_hand():
    # x = (1, 2), W = 0, y = x W = (0, 0), loss = |y - (3, 4)|^2 / 2: cotangent (-3, -4), gradient x (x) (-3, -4).
    def loss(params, example):
        x, y = example
        output = x @ params["fc"]["kernel"] + params["fc"]["bias"]
        return jnp.sum((output - y) ** 2) / 2, output

    params = {"fc": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}}
    examples = jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0]])
    layouts = {"fc/kernel": "dense", "fc/bias": "factored"}
    found = evaluate(loss, params, examples, layouts)
    np.testing.assert_array_equal(found.loss, [12.5])
    np.testing.assert_array_equal(found.outputs, [[0, 0]])
    np.testing.assert_array_equal(found.kept["gradient.fc/kernel"], [[[-3, -4], [-6, -8]]])
    np.testing.assert_array_equal(found.kept["gradient.fc/bias"], [[-3, -4]])


def test_factors_by_hand():
    def loss(w, x):  # a sum of two positions: (1, 0, 0, 0) (x) 1 + (0, 2, 0, 0) (x) 1
        return (x @ w).sum(), ()

    x = jnp.zeros((1, 2, 5)).at[0, 0, 0].set(1).at[0, 1, 1].set(2)
    found = evaluate(loss, jnp.ones((5, 5)), x, {"parameter": "factored"})
    np.testing.assert_array_equal(found.kept["activation.parameter"], x)
    np.testing.assert_array_equal(found.kept["cotangent.parameter"], np.ones((1, 2, 5)))


@pytest.mark.parametrize(
    "name, form", [*((name, "factored") for name in NETWORKS), *((name, "dense") for name in ("functions", "late"))]
)
def test_every_parameter_is_exact(name, form, rng):
    loss, params, examples = network(name, rng)
    layers, found, expected = both(loss, params, examples, form)
    for layer, gradient in gradients_of(layers, found.kept).items():
        close(gradient, expected[layer])
    value, outputs = jax.vmap(loss, (None, 0))(params, examples)
    close(found.loss, value)
    jax.tree.map(close, found.outputs, outputs)


@pytest.mark.parametrize("name", ["tokens", "tied", "late", "functions", "groups"])
def test_every_parameter_is_exact_in_float64(name, rng):
    with jax.enable_x64(True):
        loss, params, examples = network(name, rng)
        wide = lambda array: array.astype(jnp.float64) if array.dtype == jnp.float32 else array  # noqa: E731
        params, examples = jax.tree.map(wide, (params, examples))
        layers, found, expected = both(loss, params, examples, "factored")
        for layer, gradient in gradients_of(layers, found.kept).items():
            close(gradient, expected[layer])


FACTORED = {
    "dense": "Dense_0/kernel Dense_1/kernel",
    "tokens": "MultiHeadDotProductAttention_0/key/kernel MultiHeadDotProductAttention_0/out/kernel "
    "MultiHeadDotProductAttention_0/query/kernel MultiHeadDotProductAttention_0/value/kernel head/kernel in/kernel "
    "out/kernel",
    "tied": "Dense_0/kernel",
    "scanned": "Dense_0/kernel",
    "remat": "CheckpointDense_0/kernel CheckpointDense_1/kernel CheckpointDense_2/kernel",
    "late": "Conv_0/kernel Dense_0/kernel",
    "nnx": "layers/0/kernel layers/1/kernel",
    "equinox": "mlp/layers/0/weight mlp/layers/1/weight mlp/layers/2/weight",
    "functions": "a heads out",
}


@pytest.mark.parametrize("name", FACTORED)
def test_layers_that_have_factors(name, rng):
    loss, params, examples = network(name, rng)
    layers = find_layers(loss, params, one_of(examples))
    assert [layer.name for layer in layers.values() if layer.factors] == FACTORED[name].split()
    assert [layer.shape for layer in layers.values()] == [leaf.shape for leaf in jax.tree.leaves(params)]
    shapes = jax.eval_shape(lambda *a: a, params, one_of(examples))
    assert find_layers(loss, *shapes) == layers


def test_positions_and_layout(rng):
    loss, params, examples = network("equinox", rng)
    factors = find_layers(loss, params, one_of(examples))["mlp/layers/0/weight"].factors
    assert factors.layout == ((5, 10), (1, 0), (10, 5))  # Equinox stores [out, in]
    loss, params, examples = network("tied", rng)
    assert find_layers(loss, params, one_of(examples))["Dense_0/kernel"].factors.positions == 8  # 4 tokens, twice


@pytest.mark.parametrize("batch_size", [2, 100])
def test_batches_do_not_change_results(batch_size, rng):
    loss, params, examples = network("late", rng)
    layouts = dict.fromkeys(find_layers(loss, params, one_of(examples)), "factored")
    run = jax.jit(functools.partial(evaluate, loss, layouts=layouts), static_argnames="batch_size")
    jax.tree.map(close, run(params, examples, batch_size=batch_size), run(params, examples))


@pytest.mark.parametrize("name", ["late", "groups"])
def test_under_vmap_over_seeds_in_scan(name, rng):
    loss, params, examples = network(name, rng)
    seeds = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, -leaf]), params)
    layers = find_layers(loss, params, one_of(examples))

    @jax.jit
    def training(seeds):
        def step(seeds, _):
            run = functools.partial(evaluate, loss, layouts=dict.fromkeys(layers, "factored"), batch_size=2)
            found = jax.vmap(run, (0, None))(seeds, examples)
            expected = jax.vmap(lambda params: definition(loss, params, examples, list(layers)))(seeds)
            return jax.tree.map(lambda leaf: 0.9 * leaf, seeds), (found.kept, expected)

        return jax.lax.scan(step, seeds, None, 2)[1]

    kept, expected = training(seeds)
    for name, gradient in gradients_of(layers, kept).items():
        assert gradient.shape == (2, 3, 5, *layers[name].shape)
        close(gradient, expected[name])


def test_a_loss_that_closes_over_values_being_traced(rng):
    def scaled(scale, w, x):
        return evaluate(lambda w, x: (scale * (x @ w).sum(), ()), w, x, {"parameter": "factored"}).kept

    x = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    found = jax.jit(jax.vmap(scaled, (0, None, None)))(jnp.array([1.0, 2.0]), jnp.ones((4, 5)), x)
    np.testing.assert_array_equal(found["cotangent.parameter"], np.ones((2, 3, 5)) * [[[1]], [[2]]])
    np.testing.assert_array_equal(found["activation.parameter"], [x, x])


def test_bfloat16_parameters_are_computed_in_float32(rng):
    loss, params, examples = network("dense", rng)
    coarse = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    again = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), coarse)
    layouts = dict.fromkeys(find_layers(loss, coarse, one_of(examples)), "factored")
    run = jax.jit(lambda params: evaluate(loss, params, examples, layouts))
    jax.tree.map(np.testing.assert_array_equal, run(coarse), run(again))


def test_a_weight_decay_keeps_the_gradient_dense(rng):
    network_loss, params, examples = network("plain", rng)

    def loss(params, example):
        value, outputs = network_loss(params, example)
        return value + sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params)), outputs

    layers, found, expected = both(loss, params, examples, "factored")
    assert not any(layer.factors for layer in layers.values())
    for name in layers:
        close(found.kept[f"gradient.{name}"], expected[name])


def test_choose():
    layers = {name: Layer(name, (2,)) for name in ("conv1/bias", "conv1/kernel", "fc/kernel")}
    assert choose(layers, ["all"]) == list(layers)
    assert choose(layers, ["fc/kernel", "conv1/*", "*/kernel"]) == list(layers)
    assert choose(layers, ["fc/kernel"]) == ["fc/kernel"]
    with pytest.raises(InputError, match=r"no layer matches 'fc2/\*'; there are conv1/bias, conv1/kernel, fc/kernel"):
        choose(layers, ["all", "fc2/*"])


@pytest.mark.parametrize(
    "loss, message",
    [
        (lambda w, x: (x @ w).sum(), r"must return a pair \(loss, outputs\).*; it returned float32\[\]"),
        (lambda w, x: (x @ w, ()), r"with a scalar loss; its loss is float32\[3\]"),
        (lambda w, x: ((x @ w).sum(), 1, 2), "it returned a tuple of 3 arrays"),
        (lambda w, x: (x.argmax(), ()), r"its loss is int32\[\]"),
    ],
)
def test_losses_that_are_refused(loss, message):
    with pytest.raises(InputError, match=message):
        find_layers(loss, jnp.ones((2, 3)), jnp.ones(2))
    with pytest.raises(InputError, match=message):
        evaluate(loss, jnp.ones((2, 3)), jnp.ones((4, 2)), {"parameter": "dense"})


@pytest.mark.parametrize("dtype", ["float16", "int32", "complex64"])
def test_parameters_that_are_refused(dtype):
    params = {"fc": {"w": jnp.ones((2, 3), dtype)}}
    with pytest.raises(InputError, match=f"parameter fc/w is {dtype}; gradients need float32, float64 or bfloat16"):
        find_layers(lambda params, x: (jnp.float32(0), ()), params, jnp.ones(2))


def test_names_and_examples_that_are_refused(rng):
    loss, params, examples = network("dense", rng)
    with pytest.raises(InputError, match=r"no parameter is named kernel; there are bias"):
        evaluate(lambda p, e: (p["bias"].sum(), ()), {"bias": jnp.zeros(3)}, examples, {"kernel": "dense"})
    with pytest.raises(InputError, match="layouts are factored, dense, measures, sketch; found denes"):
        evaluate(loss, params, examples, {"Dense_0/bias": "denes"})
    with pytest.raises(InputError, match=r"that share their first axis; their shapes are \[5, 6\], \[4\]"):
        evaluate(loss, params, (examples[0], examples[1][:4]), {})
    with pytest.raises(InputError, match="there are no parameters"):
        find_layers(loss, {}, one_of(examples))
    with pytest.raises(InputError, match="found 'a/b' again"):
        find_layers(lambda p, e: (p["a/b"], ()), {"a/b": jnp.ones(()), "a": {"b": jnp.ones(())}}, one_of(examples))
