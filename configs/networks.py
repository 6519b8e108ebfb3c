"""Networks that the flag files beside this one train; each takes a batch of inputs and gives a batch of logits."""

import jax
from flax import linen as nn
from flax import nnx


class CNN(nn.Module):
    """Three convolutions that halve the image each, an average over the rest, and a dense layer; 3,738 parameters."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:  # [n, 28, 28, 1] -> [n, 10]
        """Compute logits."""
        x = nn.relu(nn.Conv(8, (3, 3), strides=2, name="conv1")(images))  # [n, 14, 14, 8]
        x = nn.relu(nn.Conv(16, (3, 3), strides=2, name="conv2")(x))  # [n, 7, 7, 16]
        x = nn.relu(nn.Conv(16, (3, 3), strides=2, name="conv3")(x))  # [n, 4, 4, 16]
        return nn.Dense(10, name="head")(x.mean((1, 2)))


class WideCNN(nn.Module):
    """Three wider convolutions, and two dense layers; 89,546 parameters."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:  # [n, 28, 28, 1] -> [n, 10]
        """Compute logits."""
        x = nn.relu(nn.Conv(16, (3, 3), strides=2, name="conv1")(images))  # [n, 14, 14, 16]
        x = nn.relu(nn.Conv(32, (3, 3), strides=2, name="conv2")(x))  # [n, 7, 7, 32]
        x = nn.relu(nn.Conv(64, (3, 3), strides=2, name="conv3")(x))  # [n, 4, 4, 64]
        x = nn.relu(nn.Dense(64, name="hidden")(x.reshape(len(x), -1)))
        return nn.Dense(10, name="head")(x)


class NormalisedCNN(nnx.Module):
    """The same with batch normalisation and dropout: updates use them, records are taken without their noise."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        sizes = ((1, 8), (8, 16), (16, 16))  # channels in and out
        self.convs = nnx.List([nnx.Conv(*both, (3, 3), strides=2, use_bias=False, rngs=rngs) for both in sizes])
        self.norms = nnx.List([nnx.BatchNorm(features, momentum=0.9, rngs=rngs) for _, features in sizes])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:  # [n, 28, 28, 1] -> [n, 10]
        """Compute logits."""
        x = images
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return self.head(self.dropout(x.mean((1, 2))))


class Transformer(nn.Module):
    """Tokens to two classes: blocks of attention and a small MLP, each added to what comes in, and an average.

    Attributes:
        num_words: Size of the vocabulary.
        width: Numbers that stand for a token.
        num_blocks: How many blocks.
    """

    num_words: int = 4
    width: int = 16
    num_blocks: int = 2

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:  # [n, t] -> [n, 2]
        """Compute logits."""
        start = nn.initializers.normal(0.3)
        places = self.param("places", start, (tokens.shape[-1], self.width))
        x = nn.Embed(self.num_words, self.width, embedding_init=start, name="embed")(tokens) + places  # [n, t, width]
        for k in range(self.num_blocks):
            y = nn.LayerNorm(name=f"norm{k + 1}")(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=2, name=f"attention{k + 1}")(y)
            y = nn.LayerNorm(name=f"norm_mlp{k + 1}")(x)
            y = nn.gelu(nn.Dense(2 * self.width, name=f"widen{k + 1}")(y))
            x = x + nn.Dense(self.width, name=f"narrow{k + 1}")(y)
        return nn.Dense(2, name="head")(x.mean(-2))


cnn = CNN()
wide_cnn = WideCNN()
transformer = Transformer()
