"""Measures and sketches against dense gradients in float64, and losses that mix examples."""

import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks import network
from tests.test_engine import both, close, one_of
from train_dynamics.config import InputError
from train_dynamics.gradients.evaluation import definition, evaluate, find_layers
from train_dynamics.gradients.independence import check_independent, of_batch
from train_dynamics.recording.layers import Factors, Layer
from train_dynamics.recording.layout import Layout
from train_dynamics.recording.sketch import sketch_error, sketch_of


def flat(gradients):
    return np.concatenate([np.reshape(gradient, (len(gradient), -1)) for gradient in gradients.values()], axis=1)


@pytest.mark.parametrize("name, batch_size", [("tokens", 2), ("late", 2), ("plain", None), ("functions", 3)])
def test_measures_against_dense_gradients_in_float64(name, batch_size, rng):
    loss, params, examples = network(name, rng)
    layers, found, gradients = both(loss, params, examples, "measures", batch_size=batch_size)
    gradients = {name: np.asarray(gradient, np.float64) for name, gradient in gradients.items()}
    assert len(found.kept) == 3 * (len(layers) + 1)
    # Rounding: 100 additions in float32 of numbers of the gradients' size. Products are off by that of the norms.
    rounding = 100 * np.finfo(np.float32).eps
    largest = np.linalg.norm(flat(gradients), axis=1)
    for name, gradient in {**gradients, "all": flat(gradients)}.items():
        gradient = gradient.reshape(len(gradient), -1)
        mean = gradient.mean(0)
        norm, product = np.linalg.norm(gradient, axis=1), gradient @ mean
        # A squared norm from Gram matrices is off by rounding of its terms, so the norm by the root of it.
        np.testing.assert_allclose(found.kept[f"norm.{name}"], norm, rtol=rounding, atol=rounding * largest.max())
        within = rounding * largest.max() * (np.linalg.norm(mean) + rounding * largest.max())
        np.testing.assert_allclose(found.kept[f"product.{name}"], product, rtol=rounding, atol=within)
        if norm.min() > 1e-3 * largest.max() and np.linalg.norm(mean) > 1e-3 * largest.max():
            cosine = product / norm / np.linalg.norm(mean)
            np.testing.assert_allclose(found.kept[f"alignment.{name}"], cosine, atol=1e3 * rounding)


def test_product_of_all_is_the_derivative_along_the_mean_gradient(rng):
    loss, params, examples = network("tokens", rng)

    @jax.jit
    def along(params):
        losses = lambda params: jax.vmap(loss, (None, 0))(params, examples)[0]  # noqa: E731
        return jax.jvp(losses, (params,), (jax.grad(lambda params: losses(params).mean())(params),))[1]

    found = jax.jit(lambda params: evaluate(loss, params, examples, {"head/bias": "measures"}))(params)
    assert set(found.kept) == {
        f"{kind}.{name}" for kind in ("norm", "product", "alignment") for name in ("head/bias", "all")
    }
    close(found.kept["product.all"], along(params))


def test_measures_by_hand():
    def loss(w, x):
        return jnp.vdot(w, x), ()

    # Gradients (2, 0), (0, 2), (-2, 1): mean (0, 1).
    examples = jnp.array([[2.0, 0.0], [0.0, 2.0], [-2.0, 1.0]])
    kept = evaluate(loss, jnp.zeros(2), examples, {"parameter": "measures"}, batch_size=2).kept
    for name in ("parameter", "all"):
        np.testing.assert_allclose(kept[f"norm.{name}"], [2, 2, 5**0.5], rtol=1e-6)
        np.testing.assert_allclose(kept[f"product.{name}"], [0, 2, 1], rtol=1e-6)
        np.testing.assert_allclose(kept[f"alignment.{name}"], [0, 1, 5**-0.5], rtol=1e-6)
    still = evaluate(loss, jnp.zeros(2), 0 * examples, {"parameter": "measures"}).kept
    assert all(not np.any(array) for array in still.values())  # cosines of zeros too


def test_measures_of_many_weights_need_no_memory_for_all_examples(rng):
    # 100 examples of 1.05 million weights of a product of several positions would be 420 MB.
    examples = jnp.asarray(rng.normal(size=(100, 2, 1024)), jnp.float32)

    def loss(w, x):
        return jnp.tanh(jnp.concatenate([x, x]) * 2 @ w).sum() + jnp.vdot(w, w), ()  # dense: the decay has no factors

    run = jax.jit(lambda w, x: evaluate(loss, w, x, {"parameter": "measures"}, batch_size=4))
    program = run.lower(jnp.ones((1024, 1024)), examples).compile()
    assert program.memory_analysis().temp_size_in_bytes < 100e6


@pytest.mark.parametrize("name", ["late", "equinox"])
def test_sketches_from_factors_and_from_gradients_agree(name, rng):
    loss, params, examples = network(name, rng)
    layers, found, gradients = both(loss, params, examples, "sketch", sketch_size=60)
    assert set(found.kept) == {f"sketch.{name}" for name in layers}
    for name, layer in layers.items():
        dense = np.asarray(gradients[name])
        expected = np.stack([sketch_of(layer, 60, gradient) for gradient in dense])
        size = np.prod(layer.shape, dtype=int)
        assert expected.shape[1] <= min(size, 60) and (size > 60 or expected.shape[1] == size)
        # Sums of up to `size` entries with signs: rounding as of their norm.
        within = 100 * np.finfo(np.float32).eps * np.linalg.norm(dense.reshape(len(dense), -1), axis=1).max()
        np.testing.assert_allclose(found.kept[f"sketch.{name}"], expected, rtol=0, atol=within + 1e-9)


def layer_of(i, o, name, positions=1):
    return Layer(name, (i, o), Factors(i, o, positions, Layout((i, o), (0, 1), (i, o))))


def test_sketches_are_linear_and_the_same_always(rng):
    layer, (first, second) = layer_of(20, 30, "fc1/kernel"), rng.normal(size=(2, 20, 30))
    np.testing.assert_allclose(
        sketch_of(layer, 64, 2 * first - second), 2 * sketch_of(layer, 64, first) - sketch_of(layer, 64, second)
    )
    ones = sketch_of(layer, 64, np.ones((20, 30)))
    np.testing.assert_allclose(ones[:4], [0, 0, 0, 3.5])  # of this version: recordings depend on it


@pytest.mark.parametrize("o, positions", [(40, 1), (40, 3), (3, 1), (3, 2)])
def test_sketch_errors_by_simulation(o, positions, rng):
    """The same two gradients under many projections, by as many names; a tenth is thrice the deviation of 400 draws."""
    i, size, draws = 60, 120, 400
    a, b = rng.normal(size=(2, positions, i)), rng.normal(size=(2, positions, o))
    b[1] = 0.6 * b[0] + 0.8 * b[1]
    a[1] = 0.8 * a[0] + 0.6 * a[1]
    gradients = [x.T @ y for x, y in zip(a, b, strict=True)]
    layers = [layer_of(i, o, str(k), positions) for k in range(draws)]
    sketches = np.array([[sketch_of(layer, size, factors=pair) for pair in zip(a, b, strict=True)] for layer in layers])
    promised = sketch_error(layers[0], size)

    squares = np.square(sketches).sum(-1) / [np.square(gradient).sum() for gradient in gradients]  # [draw, gradient]
    np.testing.assert_allclose(squares.mean(0), 1, atol=4 * promised.squared_norm / draws**0.5)
    spread = squares.std(0).mean()
    assert spread < 1.1 * promised.squared_norm
    if positions == 1:  # outer products are the worst case
        assert spread > 0.8 * promised.squared_norm

    cosines = np.einsum("kgs,khs->kgh", sketches, sketches)[:, 0, 1] / np.linalg.norm(sketches, axis=-1).prod(-1)
    cosine = np.vdot(*gradients) / np.prod([np.linalg.norm(gradient) for gradient in gradients])
    assert abs(cosines.mean() - cosine) < promised.cosine / 3
    assert cosines.std() < 1.1 * promised.cosine * (1 - cosine**2)


def test_the_worst_case_of_a_cosine(rng):
    # p and q outer products, orthogonal on both sides: p + q and p - q are orthogonal, and the bound is met.
    a, b = np.linalg.qr(rng.normal(size=(60, 2)))[0].T, np.linalg.qr(rng.normal(size=(40, 2)))[0].T
    first, second = (a.T @ (b * [[1], [sign]]) for sign in (1, -1))
    size, draws = 400, 400
    layers = [layer_of(60, 40, str(k)) for k in range(draws)]
    sketches = np.array([[sketch_of(layer, size, gradient) for gradient in (first, second)] for layer in layers])
    cosines = (sketches[:, 0] * sketches[:, 1]).sum(-1) / np.linalg.norm(sketches, axis=-1).prod(-1)
    assert 0.85 < cosines.std() / sketch_error(layers[0], size).cosine < 1.1


def test_reading_needs_no_jax():
    code = (
        "import sys, train_dynamics.recording.layers, train_dynamics.recording.sketch; assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Normalised(nn.Module):
    training: bool

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.BatchNorm(use_running_average=not self.training)(nn.Dense(4)(x)))[:, 0]


def batch_loss_of(training, inputs):
    model = Normalised(training)
    state = jax.jit(model.init)(jax.random.key(0), inputs)

    def batch_loss(params, x):
        outputs, _ = model.apply({**state, "params": params}, x, mutable="batch_stats")
        return jnp.square(outputs - 1), outputs

    return batch_loss, state["params"]


def test_losses_of_batches(rng):
    inputs = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
    batch_loss, params = batch_loss_of(False, inputs)
    check_independent(batch_loss, params, inputs)
    losses, outputs = batch_loss(params, inputs)
    found = evaluate(of_batch(batch_loss), params, inputs, {"Dense_1/kernel": "dense"})
    close(found.loss, losses)
    close(found.outputs, outputs)
    expected = jax.jacrev(lambda params: batch_loss(params, inputs)[0])(params)["Dense_1"]["kernel"]
    close(found.kept["gradient.Dense_1/kernel"], expected)


def test_losses_that_mix_examples_are_refused(rng):
    inputs = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
    mixing, params = batch_loss_of(True, inputs)
    with pytest.raises(InputError, match=r"gradient depends on the other examples of its batch.*most at \w+/\w+, by"):
        check_independent(mixing, params, inputs)
    with pytest.raises(InputError, match="depends on the other examples"):
        check_independent(lambda w, x: x @ w / len(x), jnp.ones(3), inputs)
    with pytest.raises(InputError, match=r"must return one loss per example, \[n\]; it returned \[\]"):
        check_independent(lambda w, x: (x @ w).mean(), jnp.ones(3), inputs)
    with pytest.raises(InputError, match=r"must return one loss per example, \[n\]; it returned \[\]"):
        find_layers(of_batch(lambda w, x: (x @ w).mean()), jnp.ones(3), one_of(inputs))
    check_independent(lambda w, x: 0 * (x @ w), jnp.ones(3), inputs)


def test_definition_in_batches(rng):
    loss, params, examples = network("dense", rng)
    names = ["Dense_0/kernel", "LayerNorm_0/scale"]
    found = definition(loss, params, examples, names, batch_size=2)
    jax.tree.map(close, found, definition(loss, params, examples, names))
