import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import oracles
from tests.conftest import SMALL, logits_of
from train_dynamics.config import InputError, StudyConfig
from train_dynamics.data.batches import held_out
from train_dynamics.data.datasets import standardise
from train_dynamics.gradients import per_example
from train_dynamics.training import steps


@pytest.fixture
def arrays(small_dataset):
    images = standardise(small_dataset.images, SMALL.pixel_mean, SMALL.pixel_std)
    return jnp.asarray(images), jnp.asarray(small_dataset.labels)


start_of, record_of, step, update = (
    jax.jit(function, static_argnums=0) for function in (steps.initial_state, steps.record, steps.step, steps.update)
)


def test_an_epoch_is_a_permutation_and_its_last_batch_is_smaller():
    batches = steps.batch_indices(StudyConfig(), seed=3, num_examples=6000, start=0, stop=94)
    assert batches.shape == (94, 128)
    for epoch in (batches[:47], batches[47:]):
        assert sorted(epoch[epoch >= 0]) == list(range(6000))
        assert [(row >= 0).sum() for row in epoch] == [128] * 46 + [112]
    assert (batches[:47] != batches[47:]).any()


@pytest.mark.parametrize(("num_examples", "folds"), [(50, 5), (7, 3), (5, 5), (51, 2)])
def test_folds_hold_out_every_example_of_some_seed(num_examples, folds):
    config = dataclasses.replace(SMALL, holdout_folds=folds, batch_size=4)
    masks = np.stack([held_out(config, seed, num_examples) for seed in range(folds)])
    assert masks.any(axis=0).all() and (masks.sum(axis=1) == -(-num_examples // folds)).all()
    np.testing.assert_array_equal(masks[1], held_out(config, folds + 1, num_examples))
    per_epoch = config.iterations_per_epoch(num_examples)
    for seed in range(folds):
        batches = steps.batch_indices(config, seed, num_examples, 0, 2 * per_epoch)
        for epoch in (batches[:per_epoch], batches[per_epoch:]):
            np.testing.assert_array_equal(np.sort(epoch[epoch >= 0]), np.flatnonzero(~masks[seed]))


def test_more_folds_than_examples_are_refused():
    with pytest.raises(InputError, match="--holdout_folds=9: must be at most 5, the examples"):
        dataclasses.replace(SMALL, holdout_folds=9).num_iterations(5)


def test_batches_depend_on_seed_and_iteration_alone():
    whole = steps.batch_indices(SMALL, seed=1, num_examples=50, start=0, stop=16)
    for start, stop in [(0, 3), (3, 4), (2, 9), (7, 16)]:
        np.testing.assert_array_equal(steps.batch_indices(SMALL, 1, 50, start, stop), whole[start:stop])
    assert (steps.batch_indices(SMALL, 2, 50, 0, 16) != whole).any()
    other = dataclasses.replace(SMALL, learning_rate=1.0, hidden_sizes=(3,), num_seeds=1, first_seed=1)
    np.testing.assert_array_equal(steps.batch_indices(other, 1, 50, 0, 16), whole)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_update_is_sgd_on_the_mean_loss_of_the_batch(arrays, momentum, nesterov):
    images, labels = arrays
    config = dataclasses.replace(SMALL, momentum=momentum, nesterov=nesterov, learning_rate=0.1)
    setup = steps.set_up(config, 10)
    state = start_of(setup, jnp.int32(0), images[0])
    expected = jax.tree.map(lambda array: np.asarray(array, np.float64), state.parameters)
    velocity = jax.tree.map(np.zeros_like, expected)
    for batch in ([4, 7, 9, 1], [2, -1, -1, -1], [0, 30, 40, -1]):
        chosen = [n for n in batch if n >= 0]
        of_each = [oracles.whole_gradient(expected, np.asarray(images[n]), int(labels[n])) for n in chosen]
        gradient = jax.tree.map(lambda *each: sum(each) / len(each), *of_each)
        velocity = jax.tree.map(lambda v, g: momentum * v + g, velocity, gradient)
        descent = jax.tree.map(lambda v, g: momentum * v + g, velocity, gradient) if nesterov else velocity
        expected = jax.tree.map(lambda p, d: p - 0.1 * d, expected, descent)
        state = update(setup, state, jnp.array(batch), images, labels)
    # A sum of 784 products, itself about 1, is wrong by some sqrt(784) steps of 6e-8 in float32, and so are the logits;
    # cotangents by half of that, times a pixel of 3, a rate of 0.1 and three updates whose momentum adds up to 5.6.
    tolerance = 28 * 6e-8 / 2 * 3 * 0.1 * 5.6
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), state.parameters, expected)


def test_observing_does_not_disturb(arrays):
    images, labels = arrays
    setup = steps.set_up(SMALL, 10)
    examples = steps.place_examples(setup, *map(np.asarray, arrays))
    start = start_of(setup, jnp.int32(0), images[0])
    batches = jnp.asarray(steps.batch_indices(SMALL, 0, len(labels), 0, 16))
    shapes = jax.eval_shape(lambda: steps.record(setup, start.parameters, examples))
    buffer = jax.tree.map(lambda one: jnp.zeros((16, *one.shape), one.dtype), shapes)
    recorded, _ = jax.jit(lambda *args: steps.run_block(setup, *args))(
        start, buffer, batches[:, None], jnp.ones(16, jnp.int32), examples
    )

    @jax.jit
    def unobserved(state):
        return jax.lax.scan(lambda state, b: (steps.update(setup, state, b, images, labels), None), state, batches)[0]

    # Compiled apart, the two programs may add in another order: 16 updates of weights below 1, each of which rounds by
    # 6e-8 at most in either program.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), recorded, unobserved(start))


def test_a_record_is_of_the_state_before_the_update(arrays):
    setup = steps.set_up(SMALL, 10)
    examples = steps.place_examples(setup, *map(np.asarray, arrays))
    state = start_of(setup, jnp.int32(5), examples.images[0])
    after, record = step(setup, state, jnp.arange(16)[None], jnp.int32(1), examples)
    jax.tree.map(np.testing.assert_array_equal, record["parameters"], state.parameters)
    assert (after.parameters["fc1"]["bias"] != state.parameters["fc1"]["bias"]).any()


@pytest.mark.parametrize("layout", ["factored", "dense"])
def test_no_scatter_adds_in_an_order_that_gpus_would_sort_for(arrays, layout):
    setup = steps.set_up(dataclasses.replace(SMALL, gradient_layout=layout), 10)
    examples = steps.place_examples(setup, *map(np.asarray, arrays))
    state = start_of(setup, jnp.int32(0), examples.images[0])
    program = step.lower(setup, state, jnp.arange(16)[None], jnp.int32(1), examples).as_text()
    assert set(re.findall(r'"stablehlo.scatter".* unique_indices = (\w+)', program)) == {"true"}


def test_the_start_depends_on_the_seed_alone(arrays):
    images, _ = arrays
    setup = steps.set_up(SMALL, 10)
    one, same, other = (start_of(setup, jnp.int32(seed), images[0]).parameters for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert (one["fc1"]["kernel"] != other["fc1"]["kernel"]).any()


@pytest.mark.parametrize("layout", ["factored", "dense"])
@pytest.mark.parametrize("layers", [("fc1",), ("fc1", "fc2"), ("fc2",)])
def test_pixels_that_are_the_same_in_all_images_change_no_record(layout, layers):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(30, 3, 4, 1)).astype(np.float32)
    same = rng.permutation(12)[:5]
    images.reshape(30, 12)[:, same] = rng.normal(size=5)  # of different values, and none of them zero
    labels = rng.integers(10, size=30).astype(np.int32)
    config = dataclasses.replace(SMALL, layers=layers, gradient_layout=layout)
    setup = steps.set_up(config, 10)
    examples = steps.place_examples(setup, images, labels)
    dense_input = layout == "dense" and "fc1" in layers
    expected_places = range(12) if dense_input else sorted(set(range(12)) - set(same))
    assert examples.places.tolist() == list(expected_places)
    np.testing.assert_array_equal(examples.varying.reshape(30, -1), images.reshape(30, 12)[:, examples.places])
    state = start_of(setup, jnp.int32(3), examples.images[0])
    found = record_of(setup, state.parameters, examples)
    truth = per_example.kernel_gradients(setup.model, state.parameters, examples.images, examples.labels, layers)
    logits = logits_of(setup.model, state.parameters, examples.images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, examples.labels)
    # Sums over 12 pixels, 5 hidden values and 10 classes, near 2.3, where float32 rounds by 1.2e-7.
    np.testing.assert_allclose(found["loss"], losses, rtol=0, atol=3e-6)
    for layer in layers:
        if layout == "dense":
            gradient = found["gradient"][layer]
        else:
            activation = images.reshape(30, 12) if layer == "fc1" else found["activation"][layer]
            gradient = activation[:, :, None] * found["cotangent"][layer][:, None, :]
        np.testing.assert_allclose(gradient, truth[layer], rtol=0, atol=3e-6)  # likewise
    jax.tree.map(np.testing.assert_array_equal, found["parameters"], state.parameters)


def test_images_may_all_be_the_same():
    images, labels = np.full((4, 2, 2, 1), 0.5, np.float32), np.arange(4, dtype=np.int32)
    setup = steps.set_up(SMALL, 10)
    examples = steps.place_examples(setup, images, labels)
    assert examples.varying is examples.images
    state = start_of(setup, jnp.int32(0), examples.images[0])
    logits = logits_of(setup.model, state.parameters, examples.images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, examples.labels)
    np.testing.assert_allclose(record_of(setup, state.parameters, examples)["loss"], losses, rtol=0, atol=3e-6)
