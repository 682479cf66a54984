"""A small causal transformer in Flax NNX: from characters to logits of the next one."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike


class Block(nnx.Module):
    """Attend to the past, then think: each added to what came in (pre-norm)."""

    def __init__(self, width: int, heads: int, param_dtype: DTypeLike, rngs: nnx.Rngs):
        """Draw the parameters."""
        options = {"param_dtype": param_dtype, "dtype": jnp.float32, "rngs": rngs}
        self.norm1 = nnx.LayerNorm(width, **options)
        self.attention = nnx.MultiHeadAttention(
            num_heads=heads, in_features=width, decode=False, **options
        )
        self.norm2 = nnx.LayerNorm(width, **options)
        self.rise = nnx.Linear(width, 4 * width, **options)
        self.fall = nnx.Linear(4 * width, width, **options)

    def __call__(self, x: Array, mask: Array) -> Array:
        """Map (batch, context, width) to the same shape."""
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.fall(jax.nn.gelu(self.rise(self.norm2(x))))


class Transformer(nnx.Module):
    """Map characters, int32 (batch, context), to logits (batch, context, classes).

    The parameters may be bfloat16; the arithmetic is float32.
    """

    def __init__(
        self,
        classes: int,
        context: int,
        widths: tuple[int, ...],
        heads: int,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Draw the parameters: a block for each of `widths`, which are all equal."""
        width = widths[0]
        options = {"param_dtype": param_dtype, "dtype": jnp.float32, "rngs": rngs}
        self.characters = nnx.Embed(classes, width, **options)
        self.places = nnx.Embed(context, width, **options)
        self.blocks = nnx.List([Block(width, heads, param_dtype, rngs) for _ in widths])
        self.norm = nnx.LayerNorm(width, **options)
        self.head = nnx.Linear(width, classes, **options)

    def __call__(self, characters: Array) -> Array:
        """Give the logits of each next character."""
        context = characters.shape[-1]
        x = self.characters(characters) + self.places(jnp.arange(context))
        mask = nnx.make_causal_mask(characters)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))
