import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from tests.conftest import logits_of
from train_dynamics.task.mlp import MLP


@pytest.mark.parametrize("sizes", [(), (8,), (32, 16, 10)])
def test_layers_are_named_and_start_uniformly_within_fan_in(sizes):
    parameters = jax.jit(MLP(sizes, 10).init)(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
    widths = (784, *sizes, 10)
    assert list(parameters) == [f"fc{k + 1}" for k in range(len(sizes) + 1)]
    for k, layer in enumerate(parameters.values()):
        bound = widths[k] ** -0.5
        assert layer["kernel"].shape == widths[k : k + 2]
        assert layer["bias"].shape == widths[k + 1 : k + 2]
        values = np.concatenate([layer["kernel"].ravel(), layer["bias"]])
        assert np.abs(values).max() <= bound
        # A uniform variable within the bound has this standard deviation, here to 5 of its standard errors.
        assert abs(values.std() - bound / 3**0.5) < 5 * bound / len(values) ** 0.5
        assert np.abs(layer["bias"]).max() > 0


def test_forward_is_relu_between_affine_layers(rng):
    images = jnp.asarray(rng.normal(size=(3, 4, 4, 1)), jnp.float32)
    model = MLP((6, 5), 3)
    parameters = jax.jit(model.init)(jax.random.key(1), images[:1])["params"]
    expected = [oracles.forward(jax.tree.map(np.asarray, parameters), image)[1] for image in np.asarray(images)]
    # Sums of 16, 6 and 5 products in float32, of values of about 1, which round by 6e-8 each.
    np.testing.assert_allclose(logits_of(model, parameters, images), expected, rtol=1e-5, atol=2e-6)
