"""Exactness, to the rounding of float32: the one tolerance here, of the largest entry.

A sum of the 784 products of an image rounds as often, by 6e-8 at most. All one way, that is 5e-5; by chance, of which
thousands of entries show the largest, about 2e-6, in an order that is up to the machine. Products in TF32 leave 5e-4.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import oracles
from tests.conftest import logits_of
from train_dynamics.gradients import per_example
from train_dynamics.task.mlp import MLP
from train_dynamics.training import steps

EXACT = 2e-5


def close(found, expected):
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT * np.abs(expected).max())


@pytest.fixture(params=[(8,), (32, 16, 10)], ids=["shallow", "deep"])
def case(request, rng):
    model = MLP(request.param, 10)
    images = jnp.asarray(rng.normal(size=(40, 28, 28, 1)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, 40), jnp.int32)
    parameters = jax.jit(model.init)(jax.random.key(3), images[:1])["params"]
    # Weights away from the start, so that probabilities differ.
    parameters = jax.tree.map(lambda array: 2 * array, parameters)
    return model, parameters, images, labels


def test_definition_by_hand():
    # Input a = 2, weights 0: p = (1/2, 1/2); label 0, so the cotangent is (-1/2, 1/2) and the gradient 2 (-1/2, 1/2).
    parameters = {"fc1": {"kernel": jnp.zeros((1, 2)), "bias": jnp.zeros(2)}}
    found = per_example.kernel_gradients(MLP((), 2), parameters, jnp.array([[2.0]]), jnp.array([0]), ("fc1",))
    np.testing.assert_array_equal(found["fc1"], [[[-1.0, 1.0]]])


def test_definition_against_one_example_at_a_time(case):
    model, parameters, images, labels = case
    layer = list(parameters)[-1]
    found = per_example.kernel_gradients(model, parameters, images, labels, (layer,))[layer]

    def loss(parameters, image, label):
        logits = logits_of(model, parameters, image[None])
        return optax.softmax_cross_entropy_with_integer_labels(logits, label[None])[0]

    gradient = jax.jit(jax.grad(loss))
    for n in range(len(labels)):
        close(found[n], gradient(parameters, images[n], labels[n])[layer]["kernel"])


def test_definition_against_the_closed_form_in_float64(case):
    model, parameters, images, labels = case
    layers = tuple(parameters)
    found = per_example.kernel_gradients(model, parameters, images, labels, layers)
    host = jax.tree.map(np.asarray, parameters)
    expected = [
        oracles.backward(host, image, label)
        for image, label in zip(np.asarray(images), np.asarray(labels), strict=True)
    ]
    for layer in layers:
        close(found[layer], [one[layer] for one in expected])


def test_factors_multiply_to_the_definition_in_every_layer(case):
    model, parameters, images, labels = case
    layers = tuple(parameters)
    found = per_example.evaluate(model, parameters, images, labels, layers)
    expected = per_example.kernel_gradients(model, parameters, images, labels, layers)
    for layer in layers:
        product = found.activation[layer][:, :, None] * found.cotangent[layer][:, None, :]
        close(product, expected[layer])


def test_loss_and_prediction_are_those_of_the_model(case):
    model, parameters, images, labels = case
    found = per_example.evaluate(model, parameters, images, labels, ("fc1",))
    logits = logits_of(model, parameters, images)
    close(found.loss, optax.softmax_cross_entropy_with_integer_labels(logits, labels))
    np.testing.assert_array_equal(found.prediction, logits.argmax(-1))
    assert found.prediction.dtype == np.uint8


@pytest.mark.parametrize("scale", [1, 1000])
def test_cross_entropy_is_that_of_optax(rng, scale):
    logits, labels = jnp.asarray(scale * rng.normal(size=(30, 5)), jnp.float32), jnp.arange(30) % 5
    found, theirs = (
        jax.vmap(jax.value_and_grad(loss))(logits, labels)
        for loss in (per_example.cross_entropy, optax.softmax_cross_entropy_with_integer_labels)
    )
    jax.tree.map(close, found, theirs)
    assert np.isnan(per_example.cross_entropy(logits[0], jnp.int32(5)))


def test_mean_of_examples_is_the_gradient_of_the_mean_loss(case):
    model, parameters, images, labels = case

    def mean_loss(parameters):
        logits = logits_of(model, parameters, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    expected = jax.grad(mean_loss)(parameters)
    found = per_example.kernel_gradients(model, parameters, images, labels, tuple(parameters))
    for layer in parameters:
        close(found[layer].mean(axis=0), expected[layer]["kernel"])


def test_examples_do_not_see_each_other(case):
    model, parameters, images, labels = case
    order = np.random.default_rng(1).permutation(len(labels))
    one = per_example.evaluate(model, parameters, images, labels, ("fc2",))
    other = per_example.evaluate(model, parameters, images[order], labels[order], ("fc2",))
    close(other.cotangent["fc2"], one.cotangent["fc2"][order])
    close(other.activation["fc2"], one.activation["fc2"][order])


def test_matrix_products_are_at_the_highest_precision(case):
    model, parameters, images, labels = case
    text = str(jax.make_jaxpr(lambda p: per_example.evaluate(model, p, images, labels, tuple(parameters)))(parameters))
    text += str(jax.make_jaxpr(lambda p: per_example.kernel_gradients(model, p, images, labels, ("fc1",)))(parameters))
    setup = steps.Setup(model, optax.sgd(0.1), ("fc1",), "fc2", "fc1", dense=False)
    state = steps.State(parameters, setup.optimizer.init(parameters))
    text += str(jax.make_jaxpr(lambda s: steps.update(setup, s, jnp.arange(3), images, labels))(state))
    examples = steps.place_examples(setup, np.asarray(images), np.asarray(labels))
    text += str(jax.make_jaxpr(lambda p: steps.record(setup, p, examples))(parameters))
    assert text.count("dot_general") == text.count("Precision.HIGHEST, Precision.HIGHEST") > 0
