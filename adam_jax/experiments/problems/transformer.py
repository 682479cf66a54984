"""A small causal transformer in Flax NNX: from characters to logits of the next one."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array


class Block(nnx.Module):
    """Attend to the past, then think: each added to what came in (pre-norm)."""

    def __init__(self, width: int, heads: int, options: Mapping[str, Any]):
        """Draw the parameters; the options are those of every layer."""
        self.norm1 = nnx.LayerNorm(width, **options)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, **options)
        self.norm2 = nnx.LayerNorm(width, **options)
        self.rise = nnx.Linear(width, 4 * width, **options)
        self.fall = nnx.Linear(4 * width, width, **options)

    def __call__(self, x: Array, mask: Array) -> Array:
        """Map (batch, context, width) to the same shape."""
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.fall(jax.nn.gelu(self.rise(self.norm2(x))))


class Transformer(nnx.Module):
    """Map characters, int32 (batch, context), to logits (batch, context, classes)."""

    def __init__(
        self,
        classes: int,
        context: int,
        widths: Sequence[int],
        heads: int,
        options: Mapping[str, Any],
    ):
        """Draw the parameters: a block for each of `widths`, which are all equal."""
        width = widths[0]
        self.characters = nnx.Embed(classes, width, **options)
        self.places = nnx.Embed(context, width, **options)
        self.blocks = nnx.List([Block(width, heads, options) for _ in widths])
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
