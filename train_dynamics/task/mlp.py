"""Networks, as Flax Linen modules."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def uniform_within(bound: float, key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Draw uniformly from -bound to bound. With its bound fixed, this is an initialiser."""
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class MLP(nn.Module):
    """Fully connected ReLU network on flattened images, with layers `fc1`, `fc2`, ...

    Kernels and biases are drawn uniformly within 1/sqrt(fan in), like PyTorch's `nn.Linear`. That is a third of the
    variance that LeCun et al., "Efficient BackProp" (1998), recommend.

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
            start = functools.partial(uniform_within, x.shape[-1] ** -0.5)
            x = nn.Dense(size, kernel_init=start, bias_init=start, name=f"fc{k + 1}")(x)
            if k < len(self.hidden_sizes):
                x = nn.relu(x)
        return x
