"""Networks, as Flax Linen modules."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


def uniform_within_fan_in(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, fan_in: int) -> jax.Array:
    """Draw uniformly within 1/sqrt(fan in) on either side of zero."""
    bound = fan_in**-0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class MLP(nn.Module):
    """Fully connected ReLU network on flattened images, with layers `fc1`, `fc2`, ...

    Kernels and biases start uniformly within 1/sqrt(fan in), as PyTorch's `nn.Linear` does; the variance is a third
    of the one that LeCun et al., "Efficient BackProp" (1998), recommend.

    Attributes:
        hidden_sizes: Widths of the hidden layers, in units.
        num_classes: Width of the output layer.

    Example:
        >>> MLP((8,), 10).apply(variables, images).shape  # images [n, 28, 28, 1]
        (n, 10)
    """

    hidden_sizes: tuple[int, ...]
    num_classes: int

    @nn.compact
    def __call__(self, images: Float[Array, "n *image"]) -> Float[Array, "n c"]:
        """Compute the logits of a batch."""
        x = images.reshape(len(images), -1)
        sizes = (*self.hidden_sizes, self.num_classes)
        for k, size in enumerate(sizes):
            fan_in = x.shape[-1]

            def start(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype, fan_in: int = fan_in) -> jax.Array:
                return uniform_within_fan_in(key, shape, dtype, fan_in)

            x = nn.Dense(size, kernel_init=start, bias_init=start, name=f"fc{k + 1}")(x)
            if k < len(self.hidden_sizes):
                x = nn.relu(x)
        return x
